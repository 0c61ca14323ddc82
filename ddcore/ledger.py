"""What a step of many parts has found so far, part by part, and what there is of the part in hand: kept in its checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from ddcore.checkpoint import read_checkpoint, write_checkpoint
from ddcore.errors import Stopped
from ddcore.events import Reporter

Once = Callable[[Callable[[], Any]], Any]  # `Ledger.once`, or a stand-in
State = tuple[dict[str, torch.Tensor], dict[str, Any]]  # tensors and JSON facts
T = TypeVar("T")


class Ledger:
    """Answers of the parts of a step, in the order in which it asks, which must be the same whenever it runs.

    A long part offers, between two of its moments, what it takes to go on from there (`hold`, then `offer` again and again); when it is
    asked for in another attempt, `resume` gives that back. layout: see `ddcore.checkpoint`.
    """

    def __init__(self, work: Path, layout: str, reporter: Reporter) -> None:
        self._work, self._layout, self._reporter = work, layout, reporter
        tensors, facts = read_checkpoint(work, layout, reporter.note) or ({}, {"answers": []})
        self._answers: list[tuple[torch.Tensor | None, Any]] = []
        for number, said in enumerate(facts["answers"]):
            self._answers.append((tensors.pop(f"answer.{number}", None), said))
        self._found: State | None = (tensors, facts["held"]) if "held" in facts else None
        self._next = 0
        self._held: Callable[[], State] | None = None

    def once(self, part: Callable[[], T]) -> T:
        """What `part()` returns, now or in an earlier attempt: a tensor (on the CPU), JSON (with lists for tuples), or both.

        Raises `Stopped`, before or within a part, if the step is to stop; what has been found is in its checkpoint then.
        """
        if self._next == len(self._answers):
            try:
                self._reporter.pulse()
                found: Any = part()
            except Stopped:
                self._save()
                raise
            self._answers.append(_split(found))
            self._held = self._found = None
            self.offer()
        self._next += 1
        tensor, said = self._answers[self._next - 1]
        answer: Any = said["json"] if tensor is None else (tensor, said["json"]) if "json" in said else tensor
        return answer  # type: ignore[no-any-return]

    def ahead(self) -> int:
        """How many parts that have not been asked for yet are answered already."""
        return len(self._answers) - self._next

    def resume(self) -> State | None:
        """What an earlier attempt held of the part in hand; None where it held nothing."""
        found, self._found = self._found, None
        return found

    def hold(self, state: Callable[[], State]) -> None:
        """From now on, until the part in hand is answered, `state()` is what it takes to go on with it."""
        self._held = state

    def offer(self) -> None:
        """Write a checkpoint if one is due."""
        if self._reporter.checkpoint_due():
            self._save()

    def _save(self) -> None:
        tensors = {f"answer.{number}": tensor for number, (tensor, _) in enumerate(self._answers) if tensor is not None}
        facts: dict[str, Any] = {"answers": [said for _, said in self._answers]}
        held = self._found if self._held is None else self._held()
        if held is not None:
            tensors |= held[0]
            facts["held"] = held[1]
        write_checkpoint(self._work, self._layout, tensors, facts)


def at_once(part: Callable[[], T]) -> T:
    """In place of `Ledger.once` where nothing is kept."""
    return part()


def _split(found: Any) -> tuple[torch.Tensor | None, Any]:
    """The tensor of an answer, and its JSON (under "json", if there is any) as it comes back from a file."""
    if isinstance(found, torch.Tensor):
        return found.cpu(), {}
    if isinstance(found, tuple) and found and isinstance(found[0], torch.Tensor):
        tensor, said = found
        return tensor.cpu(), {"json": json.loads(json.dumps(said))}
    return None, {"json": json.loads(json.dumps(found))}
