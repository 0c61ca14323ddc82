"""What an observation shows of experts: how they move, how much of their motion is chance, and the error that they walk down."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddcore.data.images import load_dataset
from ddcore.errors import DdcoreError
from ddcore.experts.store import Trajectories
from ddcore.experts.train import targets_of
from ddcore.ledger import Ledger, Once, at_once
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.observatory.feature_figures import draw_noise
from ddcore.observatory.gradient_figures import Ratios, expert_ratios
from ddcore.observatory.landscape import landscape
from ddcore.observatory.landscape_figures import draw_landscape
from ddcore.observatory.motion import motion
from ddcore.observatory.motion_figures import draw_motion
from ddcore.observatory.noise import noise_to_signal
from ddcore.observatory.null import against_null
from ddcore.observatory.pca import Read, centred_gram, displacement_gram, distances
from ddcore.observatory.recordings import ExpertPaths, drawn_experts, told
from ddcore.observatory.regression import gradient_scatter, regressed
from ddcore.observatory.tidy import Row, motion_rows, noise_rows, series
from ddcore.observatory.trajectories import draw_experts
from ddcore.specs import StudentSpec
from ddcore.task import Task, generator
from ddcore.threads import threads_for

ALL, ENCODER = "experts", "experts' encoder"  # what noise is measured over


def observe_experts(task: Task, shards: list[Path], facts: dict[str, Any], rows: list[Row], ledger: Ledger) -> dict[str, Any]:
    """The experts' planes and motion; where `params` say that they share their start, also their noise against their signal.

    Adds to `rows`, draws into the task's folder, returns headline numbers. ledger: of the whole step.
    """
    store = Trajectories(shards)
    chosen = drawn_experts(store)
    data = load_dataset(task.input("dataset"))
    out_dim = targets_of(task, data).shape[1] if task.params.get("path") == "labels" else facts["feature_dim"]
    network = build_student(StudentSpec(**task.params["student"]), data.shape, out_dim)
    count, columns = store.num_snapshots, store.num_parameters
    if network.num_parameters != columns:
        detail = f"the experts have {columns:,} parameters, but the student of this observation has {network.num_parameters:,}"
        raise DdcoreError("missing_input", detail, "observe experts of the network that `student` describes, on images of this size")

    def read(first: int, last: int) -> Tensor:
        return torch.cat([store.columns(expert, first, last) for expert in chosen])

    places = {f"expert {expert}": torch.arange(n * count, (n + 1) * count) for n, expert in enumerate(chosen)}
    layers = list(zip(network.layer_names, network.layer_sizes, strict=True))
    reading, epochs = told(task.reporter, read, columns, "experts"), torch.arange(count)
    moved = ledger.once(lambda: motion(reading, places, epochs, layers, columns, ledger).to_json())
    rows += motion_rows(moved)
    encoder, gram = _grams(told(task.reporter, read, columns, "experts' plane"), len(chosen) * count, network, ledger)
    paths = ExpertPaths(gram, len(chosen), count, store.num_experts)
    moves = displacement_gram(gram, paths.origins)  # else the plane shows how far apart the starts are, shuffled or not
    null = against_null(moves, list(places.values()), generator(task.params["seed"], "observe", "experts"), once=ledger.once)
    draw_experts(paths, task.out)
    draw_motion(moved, null, task.out, prefix="expert_", unit="epoch")
    far = [path["distance_from_start"][-1] for path in moved["paths"].values()]
    summary = {"experts": store.num_experts, "experts_distance": sum(far) / len(far)}
    if task.params.get("same_start") and len(chosen) > 1:
        summary |= _noise(task, paths, {ALL: gram, ENCODER: encoder}, list(places.values()), rows)
    return summary


def observe_regression(
    task: Task, shards: list[Path], facts: dict[str, Any], rows: list[Row], once: Once = at_once
) -> tuple[dict[str, Any], list[Ratios]]:
    """The error of the first expert and its gradients, where experts regress the targets of the finished teacher; else nothing.

    Adds to `rows`, draws the landscape into the task's folder; returns headline numbers, and the curves of the gradients' scatter.
    """
    if task.params.get("path", "final") != "final" or not task.inputs.get("targets"):
        return {}, []
    store, shape = Trajectories(shards), load_dataset(task.input("dataset")).shape
    network = build_student(StudentSpec(**task.params["student"]), shape, facts["feature_dim"])
    learnt, seed = regressed(task, shards, network), task.params["seed"]
    with threads_for(network, learnt.batch_size):
        scatter = gradient_scatter(learnt, store, 0, seed, task.reporter, once)
        found = landscape(learnt, store, 0, seed, task.reporter, once)
    draw_landscape(found, task.out)
    rows += series("path_loss", "expert 0", found["path"]["epoch"], found["path"]["loss"])
    for key, path in (("all", "expert 0"), ("encoder", "expert 0's encoder")):
        rows += series("gradient_noise", path, scatter["epoch"], scatter[key])
    headline = {"expert_gradient_noise": scatter["all"][-1], "expert_gradient_noise_encoder": scatter["encoder"][-1]}
    return headline | {"expert_loss": found["path"]["loss"][-1]}, expert_ratios(scatter, learnt.batch_size)


def _grams(read: Read, rows: int, network: FlatNetwork, ledger: Ledger) -> tuple[Tensor, Tensor]:
    """Centred inner products over the encoder's parameters, which are all before the last layer's, and over all; read once."""
    encoder = network.num_parameters - network.layer_sizes[-1]

    def after(begin: int, end: int) -> Tensor:
        return read(encoder + begin, encoder + end)

    first: Tensor = ledger.once(lambda: centred_gram(read, rows, encoder, ledger))
    last: Tensor = ledger.once(lambda: centred_gram(after, rows, network.layer_sizes[-1], ledger))
    return first, first + last


def _noise(task: Task, paths: ExpertPaths, grams: dict[str, Tensor], places: list[Tensor], rows: list[Row]) -> dict[str, Any]:
    """Noise against signal over all parameters, and over the encoder alone, which compares with the paths of teachers' backbones."""
    apart = float(distances(grams[ALL], paths.starts, paths.starts[:1].expand_as(paths.starts)).max())
    moved = float(distances(grams[ALL], paths.starts + paths.snapshots - 1, paths.starts).mean())
    if apart > 1e-3 * moved:
        detail = f"the experts begin {apart:.3g} apart (L2) and move {moved:.3g}: their scatter is that of their starts, not of chance"
        raise DdcoreError("missing_input", detail, "train the experts from one initialisation, or observe them with same_start false")
    found = {name: noise_to_signal(gram, places, torch.arange(paths.snapshots)) for name, gram in grams.items()}
    for name, one in found.items():
        rows += noise_rows(name, one)
    draw_noise(found, task.out, "expert_noise", "epochs trained", "experts")
    return {f"noise_to_signal_experts{suffix}": found[name]["ratio"][-1] for name, suffix in ((ALL, ""), (ENCODER, "_encoder"))}
