"""What a step is given: its parameters, the folders of its inputs, a folder to write to, and where randomness comes from."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ddcore.events import Reporter


@dataclass(frozen=True)
class Resources:
    """Files from outside the graph of steps: uploads by their sha256, checkpoints by the name a spec gives them.

    short_of_memory: an earlier attempt may have ended for want of it, so keep as little as can be; that changes no bit of any result.
    """

    archives: dict[str, Path] = field(default_factory=dict)
    checkpoints: dict[str, Path] = field(default_factory=dict)
    downloads: Path = Path("downloads")
    short_of_memory: bool = False


@dataclass(frozen=True)
class Task:
    """One step about to run. inputs: role -> folders of finished steps, in the plan's order; see `ddcore.plan`."""

    params: dict[str, Any]
    inputs: dict[str, list[Path]]
    out: Path
    work: Path
    reporter: Reporter
    device: torch.device
    resources: Resources = Resources()

    def input(self, role: str) -> Path:
        """The folder of the one step that plays `role`."""
        (folder,) = self.inputs[role]
        return folder


def generator(seed: int, *stream: int | str) -> torch.Generator:
    """A CPU generator for one named stream of randomness: equal arguments, equal numbers, on every machine."""
    text = "/".join(str(part) for part in (seed, *stream))
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)
