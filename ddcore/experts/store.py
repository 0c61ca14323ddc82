"""Recorded trajectories, read row by row from the shards' memory-mapped files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ddcore.errors import DdcoreError


class Trajectories:
    """The experts of all shards as one array [num_experts, num_snapshots, P] that is never read whole."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._rows: list[tuple[Any, int]] = []
        shapes = set()
        for folder in shards:
            path = folder / "experts.safetensors"
            try:
                file = safe_open(path, framework="pt")
                array = file.get_slice("trajectories")
            except (SafetensorError, OSError) as error:
                detail = f"the trajectories in {path.name} cannot be read: {error}"
                raise DdcoreError("missing_input", detail, "run the experts again") from error
            count, *rest = array.get_shape()
            shapes.add(tuple(rest))
            self._rows += [(array, i) for i in range(count)]
        if len(shapes) != 1:
            raise DdcoreError("missing_input", f"shards of different shapes cannot be matched together: {sorted(shapes)}")
        self.num_experts = len(self._rows)
        self.num_snapshots, self.num_parameters = shapes.pop()

    def row(self, expert: int, snapshot: int) -> torch.Tensor:
        """The flat parameters float32 [P] of one expert at one snapshot; a copy, for what the file gives is its mapped memory."""
        array, index = self._rows[expert]
        out: torch.Tensor = array[index, snapshot]
        return out.clone()
