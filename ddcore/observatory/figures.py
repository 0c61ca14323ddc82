"""The figures of a distillation: how the networks moved, what they minimised, what became of the images."""

import json
from typing import Any

from ddcore.data.images import load_dataset
from ddcore.ledger import Ledger
from ddcore.observatory.curves import draw_distances, draw_losses
from ddcore.observatory.inner_figure import draw_inner
from ddcore.observatory.inner_path import Clock, inner_paths
from ddcore.observatory.pictures import draw_images
from ddcore.observatory.recordings import read_experts, read_history, read_teacher
from ddcore.observatory.trajectories import draw_experts, draw_teacher
from ddcore.synthetic import FILE, load_synthetic
from ddcore.task import Task

NAMES = ("expert_trajectories", "teacher_trajectories", "distances", "losses", "images", "inner_path")
LAYOUT = "figures 2"  # of checkpoints


def draw_figures(task: Task) -> dict[str, Any]:
    """Step `figures`: each of NAMES as .png, .svg and .json (the numbers drawn), as far as there is something to draw.

    Equal inputs give equal bytes. The summary says which figures were left out and why; and for a matched set, what share
    of the distance to an expert's end is left after pre-training on it, and on the real images that it began from.
    """
    left_out: dict[str, str] = {}
    teacher_folder, set_folder, shards = task.input("teacher"), task.input("set"), task.inputs.get("experts", [])
    _tell(task, 0)
    ledger = Ledger(task.work, LAYOUT, task.reporter)
    experts = read_experts(shards, ledger, task.reporter)
    if experts is None:
        left_out["expert_trajectories"] = "this method trains no experts"
    else:
        draw_experts(experts, task.out)
    _tell(task, 1)
    teacher = read_teacher(teacher_folder, ledger, task.reporter)
    if teacher is None:
        left_out["teacher_trajectories"] = "the teacher was given, not trained: it has no trajectory"
    else:
        draw_teacher(teacher, json.loads((teacher_folder / "teacher.json").read_text())["ssl"], task.out)
    _tell(task, 2)
    if not draw_distances(teacher, experts, task.out):
        left_out["distances"] = "nothing moved: the teacher was given and the method trains no experts"
    _tell(task, 3)
    if not draw_losses(read_history(teacher_folder), [read_history(shard) for shard in shards], read_history(set_folder), task.out):
        left_out["losses"] = "nothing was minimised: the teacher was given and the method selects images"
    _tell(task, 4)
    data = load_synthetic(set_folder / FILE)
    draw_images(data, load_dataset(task.input("dataset")).images[data.indices], data.info["method"]["name"], task.out)
    _tell(task, 5)
    summary: dict[str, Any] = {}
    clock = Clock.of(data.info["method"])
    if clock is None or not shards:
        left_out["inner_path"] = "this method matches no trajectories: no expert's time belongs to a step on its set"
    else:
        found = inner_paths(task, data, shards, clock, ledger)
        draw_inner(found, len(data.images), task.out)
        summary = {f"{name}_distance_left": one[-1] / found.standing[-1] for name, one in found.distances.items()}
    _tell(task, 6)
    return {"figures": [name for name in NAMES if name not in left_out], "left_out": left_out} | summary


def _tell(task: Task, done: int) -> None:
    task.reporter.progress(done, len(NAMES), "figures", NAMES[done] if done < len(NAMES) else "")
