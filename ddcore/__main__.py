"""`python -m ddcore run spec.json out/`: the engine on a command line, with bars and without any service."""

import argparse
import hashlib
import json
import os
import reprlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from ddcore.checks import DatasetFacts
from ddcore.data.archives import inspect
from ddcore.data.builtins import BUILTINS, facts
from ddcore.errors import DdcoreError, SpecError, Stopped
from ddcore.events import Event, Reporter
from ddcore.plan import Plan, Step, plan_distill, plan_evaluate, plan_observe
from ddcore.run import choose_device, keep_freed_memory, run_plan, set_deterministic
from ddcore.specs import DistillSpec, EvaluateSpec, GivenTeacherSpec, ObserveSpec, SweepSpec
from ddcore.sweep_plan import datasets_of, plan_sweep
from ddcore.sweep_presets import SWEEPS
from ddcore.task import Resources


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the run is whole, 1 when it failed, 2 when the spec was refused."""
    parser = argparse.ArgumentParser(prog="python -m ddcore", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run a distillation, an evaluation of one, an observation or a sweep, from a JSON spec")
    run.add_argument(
        "spec",
        type=Path,
        help="a JSON file: a distill spec; an evaluate spec, whose `synthetic_set` names a finished folder; an observe spec under"
        " the key `observe`; or a sweep spec",
    )
    run.add_argument("out", type=Path, help="folder for results; finished steps found in it are not run again")
    run.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    run.add_argument("--threads", type=_threads, default=None, help="CPU threads (default: all cores)")
    given = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        body, catalogue = json.loads(given.spec.read_text()), Catalogue()
        plan, earlier = _plan(body, catalogue)
        device = _device(given.device)
    except (ValueError, OSError, DdcoreError) as error:
        for line in _refusals(error):
            _say(console, "refused: ", line)
        return 2
    set_deterministic(given.threads)
    keep_freed_memory()
    try:
        return _run(given, body, plan, earlier, device, catalogue, console)
    except DdcoreError as error:
        _say(console, f"{error.code}: ", error.detail)
        if error.hint:
            _say(console, "  try: ", error.hint)
    except OSError as error:
        _say(console, "failed: ", str(error))
    except (KeyboardInterrupt, Stopped):
        _say(console, "stopped; ", "run the same command again to go on from the last checkpoint")
    return 1


def _say(console: Console, head: str, text: str) -> None:
    """One line, as it is: brackets in it are no markup, and a pipe does not break it."""
    console.print(Text.assemble((head, "bold"), text), soft_wrap=True)


def _refusals(error: Exception) -> list[str]:
    """A line for each thing that is wrong: where, what, what was given, what is allowed."""
    if isinstance(error, ValidationError):
        return [
            f"{'.'.join(map(str, one['loc'])) or 'spec'}: {one['msg']} (given: {reprlib.repr(one['input'])})"
            for one in error.errors(include_url=False)
        ]
    if isinstance(error, SpecError):
        return [
            f"{'.'.join(map(str, one.loc))}: {one.message} (given: {reprlib.repr(one.given)}; allowed: {one.allowed})"
            for one in error.problems
        ]
    if isinstance(error, DdcoreError):
        return [f"{error.detail}; {error.hint}" if error.hint else error.detail]
    return [f"the spec is not readable JSON: {error}" if isinstance(error, ValueError) else str(error)]


def _device(name: str) -> torch.device:
    try:
        device = choose_device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a torch built without CUDA
        raise DdcoreError("invalid_spec", f"device {name!r}: {str(error).splitlines()[0]}", "give auto, cpu, cuda or cuda:N") from error
    return device


def _threads(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("at least one thread is needed")
    return count


def _run(
    given: argparse.Namespace,
    body: dict[str, Any],
    plan: Plan,
    earlier: list[Path],
    device: torch.device,
    catalogue: "Catalogue",
    console: Console,
) -> int:
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    resources = Resources(catalogue.archives, catalogue.checkpoints, out / "downloads")
    with _stopping(console) as should_stop, Bars(console, plan, should_stop) as bars:
        folders = run_plan(plan, out, device, resources, bars.reporter, bars.done, earlier, should_stop)
    last = _publish(out, given.spec.stem, folders, body)
    _say(console, "done ", f"in {sum(bars.seconds.values()):.1f} s; results: {last}")
    return 0


@contextmanager
def _stopping(console: Console) -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C (or SIGTERM) has asked for an end: the first leaves time for a checkpoint, the second does not."""
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)
        _say(console, "stopping ", "at the next checkpoint; press Ctrl-C again to stop at once")

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _publish(out: Path, spec: str, folders: dict[str, Path], body: dict[str, Any]) -> Path:
    """Give the result steps plain names in `out`, and keep a distillation's spec beside them; a ranking is named by its spec's file."""
    if "ranking" in folders:
        named = {f"ranking-{spec}": folders["ranking"]}
    elif "report" in folders:
        named = {"report": folders["report"]}
    elif "observe" in folders:
        named = {"observe": folders["observe"]}
    else:
        named = {name: folders[name] for name in ("distill", "export", "figures")}
        whole = DistillSpec.model_validate(body)  # with every default, so that a later evaluation means the same run
        (out / "spec.json").write_text(whole.model_dump_json(indent=1))
    for name, folder in named.items():
        link = out / name
        aside = out / f".{name}-{os.getpid()}"
        aside.symlink_to(folder.relative_to(out), target_is_directory=True)
        aside.replace(link)  # in one move: another process may be at it in the same folder
    return out / next(iter(named))


class Catalogue:
    """Datasets by name: a built-in, or the path of a zip or folder of images."""

    def __init__(self) -> None:
        self.archives: dict[str, Path] = {}
        self.checkpoints: dict[str, Path] = {}

    def facts(self, ref: str) -> DatasetFacts:
        if ref in BUILTINS:
            return facts(ref)
        path = Path(ref)
        if not path.exists():
            raise DdcoreError("bad_dataset", f"{ref!r} is neither a built-in nor a path", f"built-ins: {', '.join(sorted(BUILTINS))}")
        try:
            found = inspect(path)
        except DdcoreError as error:
            raise DdcoreError(error.code, f"{ref!r}: {error.detail}", error.hint) from error
        sha = _digest(path)
        self.archives[sha] = path
        return DatasetFacts(path.name, {"archive": sha}, found.num_images, found.image_shape, found.class_counts)

    def checkpoint(self, spec: DistillSpec) -> DistillSpec:
        """The spec with a given teacher's checkpoint named by its sha256, as the service does."""
        teacher = spec.teacher
        if not isinstance(teacher, GivenTeacherSpec) or teacher.checkpoint is None:
            return spec
        path = Path(teacher.checkpoint)
        if not path.is_file():
            raise DdcoreError("bad_checkpoint", f"there is no file {teacher.checkpoint!r}", "give the path of a safetensors file")
        sha = _digest(path)
        self.checkpoints[sha] = path
        return spec.model_copy(update={"teacher": teacher.model_copy(update={"checkpoint": sha})})


def _digest(path: Path) -> str:
    """The sha256 of a file, or of a folder's file names and contents in sorted order."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for inner in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{inner.relative_to(path).as_posix()}\0{_digest(inner)}\n".encode())
    return total.hexdigest()


def _plan(body: Any, catalogue: Catalogue) -> tuple[Plan, list[Path]]:
    """The plan of a spec, and the folders of earlier runs in which some of its steps are finished."""
    if not isinstance(body, dict):
        raise DdcoreError("invalid_spec", f"a spec is a JSON object, not {type(body).__name__}")
    if set(body) == {"observe"}:
        observe = ObserveSpec.model_validate(body["observe"])
        return plan_observe(observe, catalogue.facts(observe.dataset)), []
    if "variants" in body or body.get("preset") in list(SWEEPS):  # a list: what was given need not be hashable
        sweep = SweepSpec.model_validate(body)
        sweep = sweep.model_copy(update={"variants": {name: catalogue.checkpoint(one) for name, one in sweep.variants.items()}})
        return plan_sweep(sweep, {name: catalogue.facts(name) for name in datasets_of(sweep)}), []
    if "synthetic_set" not in body:
        distill = catalogue.checkpoint(DistillSpec.model_validate(body))
        return plan_distill(distill, catalogue.facts(distill.dataset)), []
    spec = EvaluateSpec.model_validate(body)
    earlier = Path(spec.synthetic_set)
    distill = catalogue.checkpoint(DistillSpec.model_validate_json((earlier / "spec.json").read_text()))
    names = {name for task in spec.downstream for name in (task.train, task.test)}
    return plan_evaluate(spec, distill, catalogue.facts(distill.dataset), {name: catalogue.facts(name) for name in names}), [earlier]


class Bars:
    """One bar a step, with rate and time left; on a plain pipe, one line a finished step."""

    def __init__(self, console: Console, plan: Plan, should_stop: Callable[[], bool]) -> None:
        self.console, self.seconds, self._should_stop = console, dict[str, float](), should_stop
        self._total, self._started = len(plan), time.monotonic()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:<18}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[speed]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: Any = None

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def reporter(self, step: Step) -> Reporter:
        self._started = time.monotonic()
        self._bar = self._progress.add_task(step.name, total=None, unit="", speed="")
        return Reporter(sink=self._event, should_stop=self._should_stop)

    def _event(self, event: Event) -> None:
        if event["type"] == "progress":
            rate = event["done"] / max(time.monotonic() - self._started, 1e-9)
            self._progress.update(self._bar, completed=event["done"], total=event["total"], unit=event["unit"], speed=f"{rate:,.1f}/s")
        elif event["type"] == "note":
            _say(self.console, "  note: ", event["text"])

    def done(self, step: Step, summary: dict[str, Any], cached: bool) -> None:
        spent = 0.0 if cached else time.monotonic() - self._started
        self.seconds[step.name] = spent
        if self._bar is not None:
            self._progress.remove_task(self._bar)
            self._bar = None
        plain = {name: value for name, value in summary.items() if isinstance(value, int | float | str)}
        facts = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in plain.items())
        _say(self.console, f"{step.name:<22} ", f"{'   cached' if cached else f'{spent:7.1f} s'}  {facts}")


if __name__ == "__main__":
    sys.exit(main())
