"""How far a job is, for people: its steps gathered into a few stages, shown as bars on a terminal and as lines elsewhere."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

LINE_EVERY = 3.0  # seconds between lines where there is no terminal
WORDS = {
    "dataset": "read the images",
    "teacher": "train the teacher",
    "targets": "compute targets",
    "experts": "train experts",
    "distill": "choose subsets",
    "export": "export",
    "figures": "draw figures",
    "tune": "tune baselines",
    "evaluate": "pre-train and probe",
    "report": "report",
    "ranking": "rank the variants",
    "observe": "observe",
}
OVER = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True)
class Stage:
    """Steps of one kind. done and total count `unit` if the stage is one step, else steps, the running ones by their fraction."""

    name: str
    done: float
    total: float
    unit: str
    running: bool
    cached: bool
    seconds: float | None  # in which any of its steps ran; None until it is over, or if all of it was cached

    @property
    def over(self) -> bool:
        return self.total > 0 and self.done >= self.total and not self.running


def stages(job: dict[str, Any]) -> list[Stage]:
    """The stages of a job body, in the order of its steps."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for step in job["steps"]:
        name = "distil" if step["name"].rpartition("/")[2] == "distill" else WORDS.get(step["kind"], step["kind"])
        groups.setdefault(name, []).append(step)
    return [_stage(name, steps) for name, steps in groups.items()]


def _stage(name: str, steps: list[dict[str, Any]]) -> Stage:
    running = any(step["state"] == "running" for step in steps)
    cached = all(step["cached"] for step in steps)
    seconds = None if cached or not all(step["state"] in OVER for step in steps) else _wall(steps)
    progress = steps[0].get("progress") or {}
    if len(steps) == 1 and progress.get("total"):
        done = progress["total"] if steps[0]["state"] == "succeeded" else progress["done"]
        return Stage(name, done, progress["total"], progress.get("unit") or "", running, cached, seconds)
    return Stage(name, sum(map(_fraction, steps)), len(steps), "steps", running, cached, seconds)


def _fraction(step: dict[str, Any]) -> float:
    if step["state"] == "succeeded":
        return 1.0
    progress = step.get("progress") or {}
    return min(0.99, progress["done"] / progress["total"]) if step["state"] == "running" and progress.get("total") else 0.0


def _wall(steps: Iterable[dict[str, Any]]) -> float | None:
    """Seconds in which at least one of the steps ran; None if none of them did."""
    own = [step for step in steps if not step["cached"] and step["started_at"] and step["finished_at"]]
    spans = sorted((datetime.fromisoformat(step["started_at"]), datetime.fromisoformat(step["finished_at"])) for step in own)
    if not spans:
        return None
    total, until = 0.0, spans[0][0]
    for start, end in spans:
        total += max(0.0, (end - max(start, until)).total_seconds())
        until = max(until, end)
    return total


class Pace:
    """Rate and time to go of one stage, from what it has done since we first saw it run."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None
        self._total = 0.0

    def update(self, stage: Stage) -> tuple[float | None, float | None]:
        """(units a second, seconds to go), None where there is nothing to tell yet."""
        now = self._clock()
        if self._first is None or stage.total != self._total or stage.done < self._first[1]:
            self._first, self._total = (now, stage.done), stage.total
        since, before = self._first
        if now - since < 0.5 or stage.done <= before:
            return None, None
        rate = (stage.done - before) / (now - since)
        return rate, (stage.total - stage.done) / rate


class Display(Protocol):
    """Shows a job each time it is asked to; a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...
    def update(self, job: dict[str, Any]) -> None: ...


def display(console: Console) -> Display:
    """Bars on a terminal; elsewhere a line every few seconds."""
    return Bars(console) if console.is_terminal else Lines(console)


class Bars:
    """One bar a stage, with its rate and its time to go; a stage appears when it begins."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("  {task.description:<20}"), BarColumn(24), TextColumn("{task.fields[count]:>20} {task.fields[pace]}"))
        self._progress = Progress(*columns, console=console)
        self._shown: dict[str, tuple[TaskID, Pace]] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._progress.stop()

    def update(self, job: dict[str, Any]) -> None:
        for stage in stages(job):
            if stage.name not in self._shown:
                if not (stage.running or stage.done):
                    continue
                self._shown[stage.name] = (self._progress.add_task(stage.name, count="", pace=""), Pace())
            task, pace = self._shown[stage.name]
            self._progress.update(task, completed=stage.done, total=stage.total or None, count=_count(stage), pace=_pace(stage, pace))


class Lines:
    """A line for what runs, every few seconds, and one for each stage that is over."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._last = clock()
        self._paces: dict[str, Pace] = {}
        self._over: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def update(self, job: dict[str, Any]) -> None:
        due = self._clock() - self._last >= LINE_EVERY
        for stage in stages(job):
            pace = _pace(stage, self._paces.setdefault(stage.name, Pace(self._clock)))
            if stage.over and stage.name not in self._over:
                self._over.add(stage.name)
            elif not (due and stage.running):
                continue
            self._console.print(f"  {stage.name:<20} {_count(stage):>20} {pace}")
            self._last = self._clock()


def _count(stage: Stage) -> str:
    if stage.unit == "steps" and stage.total == 1 and not stage.over:
        return ""  # one step that has not said how much there is to do
    if stage.over or stage.unit != "steps":
        return f"{stage.done:.0f}/{stage.total:.0f} {stage.unit}"
    return f"{stage.done:.1f}/{stage.total:.0f} {stage.unit}"


def _pace(stage: Stage, pace: Pace) -> str:
    if stage.cached:
        return "cached"
    if stage.over:
        return f"took {duration(stage.seconds)}" if stage.seconds is not None else ""
    if not stage.running:
        return ""
    rate, left = pace.update(stage)
    if rate is None or left is None:
        return ""
    speed = f"{rate:.3g}/s" if rate >= 1 else f"{1 / rate:.3g} s each"
    return f"{speed}, {duration(left)} to go"


def duration(seconds: float | None) -> str:
    """`4.2 s`, `1:05`, `2:03:04`."""
    if seconds is None:
        return ""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
