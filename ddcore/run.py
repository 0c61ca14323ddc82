"""Execute one step in a folder, or a whole plan in a tree of folders."""

import ctypes
import importlib.metadata
import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ddcore.data.build import build_dataset
from ddcore.errors import DdcoreError
from ddcore.evaluation.cell import evaluate_cell
from ddcore.evaluation.report import make_report
from ddcore.evaluation.tune import tune_rates
from ddcore.events import Reporter
from ddcore.experts.train import train_experts
from ddcore.export import export_set
from ddcore.matching.precision import set_precision
from ddcore.methods import run_method
from ddcore.observatory.figures import draw_figures
from ddcore.observatory.observe import observe
from ddcore.plan import Plan, Step
from ddcore.ssl.targets import compute_targets
from ddcore.ssl.train import train_teacher
from ddcore.task import Resources, Task
from ddcore.threads import cores

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # names of glibc's malloc.h

STEPS: dict[str, Callable[[Task], dict[str, Any]]] = {
    "dataset": build_dataset,
    "teacher": train_teacher,
    "targets": compute_targets,
    "experts": train_experts,
    "distill": run_method,
    "export": export_set,
    "figures": draw_figures,
    "tune": tune_rates,
    "evaluate": evaluate_cell,
    "report": make_report,
    "observe": observe,
}


def choose_device(name: str = "auto") -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU; any other name is torch's own."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def set_deterministic(threads: int | None = None) -> None:
    """Same spec, same seed, same hardware: same bits on a CPU. The number of threads orders sums, so it is set, not guessed."""
    torch.set_num_threads(threads or cores())
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is first filled with NaN, at the cost of a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False


def keep_freed_memory() -> None:
    """Tell glibc to reuse freed memory instead of giving it back: training on a CPU otherwise spends much of its time on page faults.

    Does what MALLOC_MMAP_MAX_=0 and a large MALLOC_TRIM_THRESHOLD_ do in the environment; nothing where there is no glibc.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def run_step(
    kind: str,
    params: dict[str, Any],
    inputs: dict[str, list[Path]],
    out: Path,
    work: Path,
    reporter: Reporter,
    device: torch.device,
    resources: Resources,
) -> dict[str, Any]:
    """Run one step; every file left in `out` is a result, `step.json` among them. Returns the summary.

    Raises `DdcoreError` where the cause is known, and `Stopped` when the reporter was told to stop.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    set_precision("auto", device)  # a step may choose otherwise
    try:
        summary = STEPS[kind](Task(params, inputs, out, work, reporter, device, resources))
    except torch.OutOfMemoryError as error:
        raise DdcoreError("out_of_memory", str(error).splitlines()[0], "smaller batches, a smaller student or fewer images") from error
    manifest = {
        "kind": kind,
        "params": params,
        "summary": summary,
        "seconds": round(time.monotonic() - began, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
    }
    (out / "step.json").write_text(json.dumps(manifest, indent=1))
    return summary


def run_plan(
    plan: Plan,
    root: Path,
    device: torch.device,
    resources: Resources,
    reporter_of: Callable[[Step], Reporter],
    on_done: Callable[[Step, dict[str, Any], bool], None],
    finished: Sequence[Path] = (),
) -> dict[str, Path]:
    """Run a plan's steps in order under `root/steps/<key>`; a step whose folder is there, or under a root in `finished`, is not run again.

    on_done(step, summary, cached) is called after each. Returns the folder of each step by its name.
    """
    folders: dict[str, Path] = {}
    for step in plan:
        places = [place / "steps" / f"{step.kind}-{step.key[:16]}" for place in (root, *finished)]
        done = next((place for place in places if (place / "step.json").exists()), places[0])
        folders[step.name] = done
        cached = (done / "step.json").exists()
        if not cached:
            aside, work = done.with_suffix(".part"), done.with_suffix(".work")
            shutil.rmtree(aside, ignore_errors=True)
            inputs = {role: [folders[name] for name in names] for role, names in step.inputs.items()}
            run_step(step.kind, step.params, inputs, aside, work, reporter_of(step), device, resources)
            aside.rename(done)
            shutil.rmtree(work, ignore_errors=True)
        on_done(step, json.loads((done / "step.json").read_text())["summary"], cached)
    return folders
