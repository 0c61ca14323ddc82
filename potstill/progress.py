"""How far a job is, for people: its steps gathered into a few stages, shown as bars on a terminal and as lines elsewhere."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

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
UNITS = ((1, "second"), (60, "minute"), (3600, "hour"))


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


def remaining(job: dict[str, Any]) -> str:
    """The job's `eta` in words: `about 3 to 5 minutes left, from 12 past runs`; empty where there is none."""
    eta = job.get("eta")
    if not eta:
        return ""
    size, unit = next((size, unit) for size, unit in UNITS if eta["high_seconds"] < 100 * size or unit == "hour")
    low, high = (_rounded(eta[name] / size, unit == "hour") for name in ("low_seconds", "high_seconds"))
    runs = f"from {eta['runs']:,} past {'run' if eta['runs'] == 1 else 'runs'}"
    if high == "0":
        return f"about to end, {runs}"
    plural = unit if high == "1" else unit + "s"
    if low == high:
        return f"about {high} {plural} left, {runs}"
    short = eta["low_seconds"] < eta["high_seconds"] / 20 or low == "0"
    return f"{'up to' if short else f'about {low} to'} {high} {plural} left, {runs}"


def _rounded(number: float, finely: bool) -> str:
    return f"{number:.2g}" if finely and number < 10 else f"{number:.0f}"


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
    """One bar a stage, with its rate and its time to go, and below the time to the end; a stage appears when it begins."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("  {task.description:<20}"), BarColumn(24), TextColumn("{task.fields[count]:>20} {task.fields[pace]}"))
        self._progress, self._left = Progress(*columns, console=console), Text()
        self._live = Live(Group(self._progress, self._left), console=console)
        self._shown: dict[str, tuple[TaskID, Pace]] = {}

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def update(self, job: dict[str, Any]) -> None:
        for stage in stages(job):
            if stage.name not in self._shown:
                if not (stage.running or stage.done):
                    continue
                self._shown[stage.name] = (self._progress.add_task(stage.name, count="", pace=""), Pace())
            task, pace = self._shown[stage.name]
            self._progress.update(task, completed=stage.done, total=stage.total or None, count=_count(stage), pace=_pace(stage, pace))
        self._left.plain = f"  {left}" if (left := remaining(job)) else ""


class Lines:
    """A line for what runs, every few seconds, with the time to the end, and one for each stage that is over."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console, self._clock = console, clock
        self._last = clock()
        self._paces: dict[str, Pace] = {}
        self._over: set[str] = set()
        self._said = ""

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
        if due and (left := remaining(job)) and left != self._said:
            self._said, self._last = left, self._clock()
            self._console.print(f"  {left}")


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
