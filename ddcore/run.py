"""Execute one step in a folder, or a whole plan in a tree of folders."""

import ctypes
import fcntl
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
from ddcore.errors import DdcoreError, Stopped
from ddcore.evaluation.cell import evaluate_cell
from ddcore.evaluation.ranking import make_ranking
from ddcore.evaluation.report import make_report
from ddcore.evaluation.tune import tune_rates
from ddcore.events import Reporter
from ddcore.experts.train import train_experts
from ddcore.export import export_set
from ddcore.matching.memory import all_bytes, gib, ran_out, said_of
from ddcore.matching.precision import set_precision
from ddcore.methods import run_method
from ddcore.observatory.figures import draw_figures
from ddcore.observatory.observe import observe
from ddcore.plan import Plan, Step
from ddcore.ssl.targets import compute_targets
from ddcore.ssl.train import train_teacher
from ddcore.task import Resources, Task
from ddcore.threads import cores

WAIT = 0.5  # seconds between two looks at steps that other processes are at
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
    "ranking": make_ranking,
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
    except Exception as error:
        if not ran_out(error):
            raise
        detail = f"{said_of(error)}; the step had {gib(all_bytes(device))} of memory to share with whatever else runs there"
        raise DdcoreError("out_of_memory", detail, "smaller batches, a smaller student or fewer images") from error
    manifest = {
        "kind": kind,
        "params": params,
        "summary": summary,
        "seconds": round(time.monotonic() - began, 3),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm", "numpy")},
    }
    try:
        text = json.dumps(manifest, indent=1, allow_nan=False)
    except ValueError as error:
        raise DdcoreError("diverged", f"a figure in the summary of the step is not finite: {error}", "lower its learning rates") from error
    (out / "step.json").write_text(text)
    return summary


def run_plan(
    plan: Plan,
    root: Path,
    device: torch.device,
    resources: Resources,
    reporter_of: Callable[[Step], Reporter],
    on_done: Callable[[Step, dict[str, Any], bool], None],
    finished: Sequence[Path] = (),
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Path]:
    """Run a plan's steps under `root/steps/<key>`; a step whose folder is there, or under a root in `finished`, is not run again.

    Several processes may work in one `root`, on one plan or on several that share steps: each takes the next step that no other is at,
    and waits (until `should_stop`, which raises `Stopped`) only where there is none. on_done(step, summary, cached) is called after each.
    Returns the folder of each step by its name.
    """
    folders: dict[str, Path] = {}
    left = list(plan)
    while left:
        before = len(left)
        for step in left:
            if not all(name in folders for names in step.inputs.values() for name in names):
                continue
            name = f"{step.kind}-{step.key[:16]}"
            done = next((at for at in (place / "steps" / name for place in (root, *finished)) if (at / "step.json").exists()), None)
            cached = done is not None
            if done is None:
                inputs = {role: [folders[name] for name in names] for role, names in step.inputs.items()}
                done = _run_unless_taken(step, inputs, root / "steps" / name, device, resources, reporter_of)
            if done is not None:
                folders[step.name] = done
                on_done(step, json.loads((done / "step.json").read_text())["summary"], cached)
        left = [step for step in left if step.name not in folders]
        if len(left) == before:
            if should_stop():
                raise Stopped
            time.sleep(WAIT)
    return folders


def _run_unless_taken(
    step: Step,
    inputs: dict[str, list[Path]],
    done: Path,
    device: torch.device,
    resources: Resources,
    reporter_of: Callable[[Step], Reporter],
) -> Path | None:
    """Run a step into the folder `done` and return it; None if another process is at it. A process that dies lets go of its step."""
    locks = done.parent.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / done.name).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return None
        if not (done / "step.json").exists():  # finished by another since we looked
            aside, work = done.with_suffix(".part"), done.with_suffix(".work")
            shutil.rmtree(aside, ignore_errors=True)
            run_step(step.kind, step.params, inputs, aside, work, reporter_of(step), device, resources)
            aside.rename(done)
            shutil.rmtree(work, ignore_errors=True)
        (locks / done.name).unlink(missing_ok=True)  # whoever has it open, or makes it anew, finds the step done
    return done
