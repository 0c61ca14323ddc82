"""The observe step: all that the recorded paths of a teacher, its repeated runs and its experts show, as one table and as figures."""

import functools
import json
from pathlib import Path
from typing import Any

from torch import nn

from ddcore.data.images import Images, load_dataset
from ddcore.errors import DdcoreError
from ddcore.ledger import Ledger
from ddcore.networks.backbones import build_backbone
from ddcore.observatory.collapse_figure import draw_collapse
from ddcore.observatory.curves import draw_losses
from ddcore.observatory.experts import observe_experts, observe_regression
from ddcore.observatory.feature_figures import draw_features, draw_noise
from ddcore.observatory.gradient_figures import Ratios, draw_gradient_noise, teacher_ratios
from ddcore.observatory.motion import joined, motion
from ddcore.observatory.motion_figures import draw_motion
from ddcore.observatory.noise import noise_to_signal
from ddcore.observatory.null import against_null
from ddcore.observatory.pca import centred_gram
from ddcore.observatory.recordings import TeacherPaths, read_history, read_params, told
from ddcore.observatory.snapshots import per_snapshot
from ddcore.observatory.tidy import Row, feature_rows, history_rows, motion_rows, noise_rows, write_parquet
from ddcore.observatory.trajectories import draw_teacher
from ddcore.specs import BackboneSpec
from ddcore.ssl.trajectory import read_trajectory
from ddcore.task import Task, generator

TABLE, COLUMNS = "observations.json", "observations.parquet"
LAYOUT = "observe 2"  # of checkpoints
SAMPLE = 2000  # images whose features are compared between snapshots


def observe(task: Task) -> dict[str, Any]:
    """Write observations.json ({"facts", "rows": see `ddcore.observatory.tidy`}), the rows as .parquet, and the figures.

    Returns the headline numbers.

    params: {"seed": int}, with experts also {"student": a `StudentSpec`, "path", "same_start": see `ddcore.specs.ObserveSpec`}. inputs:
    dataset, teacher (the folders of all runs, the one to be looked at closely first), experts (shards, or none), with experts also
    targets. Raises `DdcoreError` missing_input for a run that recorded no snapshots, and for runs of different networks.
    """
    runs = task.inputs["teacher"]
    facts = json.loads((runs[0] / "teacher.json").read_text())
    rows, ledger = list[Row](), Ledger(task.work, LAYOUT, task.reporter)
    summary: dict[str, Any] = {"ssl": facts["ssl"], "runs": len(runs), "knn_accuracy": facts["knn_accuracy"]}
    summary |= _teacher(task, runs[0], facts, rows, ledger)
    if len(runs) > 1:
        summary |= _noise(task, runs, rows, ledger)
    curves: list[Ratios] = []
    if shards := task.inputs.get("experts"):
        summary |= observe_experts(task, shards, facts, rows, ledger)
        found, curves = observe_regression(task, shards, facts, rows, ledger.once)
        summary |= found
    draw_gradient_noise(_own_gradients(task, runs[0], facts) + curves, task.out)
    summary["figures"] = sorted(path.stem for path in task.out.glob("*.png"))
    (task.out / TABLE).write_text(json.dumps({"facts": summary, "rows": rows}, allow_nan=False))
    write_parquet(rows, task.out / COLUMNS)
    return summary


def _teacher(task: Task, folder: Path, facts: dict[str, Any], rows: list[Row], ledger: Ledger) -> dict[str, Any]:
    """The first run: its plane and that plane's null, its motion, its features, its curves."""
    arrays, step = read_trajectory(folder)
    read, places, columns = joined(arrays, {name: array.get_shape() for name, array in arrays.items()})
    data, spec = load_dataset(task.input("dataset")), BackboneSpec(**facts["backbone"])
    layers = layers_of(build_backbone(spec, data.shape[0], (data.shape[1], data.shape[2])))
    once, reporter = ledger.once, task.reporter
    moved = once(lambda: motion(told(reporter, read, columns, "motion"), places, step, layers, columns, ledger).to_json())
    gram = once(lambda: centred_gram(told(reporter, read, columns, "plane"), len(arrays) * len(step), columns, ledger))
    paths = TeacherPaths(gram, tuple(arrays), step)
    random = generator(task.params["seed"], "observe", "null")
    null = against_null(paths.gram, [paths.rows(name) for name in paths.names], random, once=once)
    features = per_snapshot(folder, data.to(task.device), spec, SAMPLE, reporter, once)
    history = read_history(folder)
    draw_teacher(paths, facts["ssl"], task.out)
    draw_losses(history, [], {}, task.out)
    draw_motion(moved, null, task.out)
    draw_features(features, task.out)
    rows += [*motion_rows(moved), *feature_rows(features), *history_rows("teacher", history)]
    summary = {
        "snapshots": len(step),
        "parameters": columns,
        "distance": moved["paths"]["student"]["distance_from_start"][-1],
        "explained_by_plane": sum(null["explained"]),
        "explained_if_shuffled": sum(map(sum, null["shuffled"])) / len(null["shuffled"]),
        "rank": features[-1]["rank"],
    }
    if moved["pair"]:
        summary["gap"] = moved["pair"]["gap"][-1]
    if residuals := history.get("ema_residual"):
        summary["ema_residual"] = max(value for _, value in residuals)
    if out_dim := read_params(folder).get("teacher", {}).get("out_dim"):  # of DINO alone
        summary["collapse"] = draw_collapse(history, features, out_dim, _chance(data), task.out)
    return summary


def _noise(task: Task, runs: list[Path], rows: list[Row], ledger: Ledger) -> dict[str, Any]:
    """Of each network (DINO has two): how much of its displacement all runs share, and how much is each run's own."""
    found, recorded = {}, [read_trajectory(folder) for folder in runs]
    for name in recorded[0][0]:
        arrays = {f"run {number}": arrays[name] for number, (arrays, _) in enumerate(recorded)}
        try:
            read, places, columns = joined(arrays, {run: array.get_shape() for run, array in arrays.items()})
        except ValueError as error:  # they share no space
            raise DdcoreError("missing_input", str(error), "observe runs of one network, all recorded with the same settings") from error
        reading = told(task.reporter, read, columns, f"{name}s of all runs")
        gram = ledger.once(functools.partial(centred_gram, reading, sum(map(len, places.values())), columns, ledger))
        found[name] = noise_to_signal(gram, list(places.values()), recorded[0][1])
        rows += noise_rows(name, found[name])
    draw_noise(found, task.out)
    return {f"noise_to_signal_{name}": one["ratio"][-1] for name, one in found.items()}


def _chance(data: Images) -> float | None:
    """Accuracy in percent of naming the most frequent class for every image; None without labels."""
    return None if data.labels is None else 100 * float(data.labels.bincount().max()) / len(data)


def _own_gradients(task: Task, run: Path, facts: dict[str, Any]) -> list[Ratios]:
    """The scatter of the first run's gradients, if it was told to compare some."""
    points = read_history(run).get("gradient_noise", [])
    images = len(load_dataset(task.input("dataset")))
    size = min(images, read_params(run).get("teacher", {}).get("batch_size", images))
    return teacher_ratios(facts["ssl"], size, points, int(read_trajectory(run)[1][-1]))


def layers_of(module: nn.Module) -> list[tuple[str, int]]:
    """(name, parameters) of each module with parameters of its own, in the order in which flat snapshots hold them."""
    own = [(name, sum(p.numel() for p in part.parameters(recurse=False))) for name, part in module.named_modules()]
    return [(name or type(module).__name__, size) for name, size in own if size]
