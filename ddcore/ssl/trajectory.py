"""Snapshots of a teacher's run: which steps, and where they wait until the run is over."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

NAME = "trajectory.safetensors"


def snapshot_steps(total: int, count: int) -> list[int]:
    """At most `count` distinct steps, evenly spaced, the first 0 and the last `total`."""
    return sorted({round(i * total / (count - 1)) for i in range(count)})


def flat(module: nn.Module) -> torch.Tensor:
    """A copy of the parameters, in their order, as one float32 vector [P] on the CPU; running statistics are left out."""
    return torch.cat([p.detach().float().cpu().flatten() for p in module.parameters()])


def keep_snapshot(work: Path, step: int, **vectors: torch.Tensor) -> None:
    """Put one step's vectors aside in `work`; a resumed run writes the same again."""
    save_file(vectors, _path(work, step))


def read_kept(work: Path, step: int) -> dict[str, torch.Tensor]:
    """What `keep_snapshot` put aside of one step."""
    return load_file(_path(work, step))


def gather(work: Path, steps: list[int], out: Path) -> None:
    """Write trajectory.safetensors: every vector's snapshots stacked, float32 [s, P], and `step`, int64 [s]."""
    snapshots = [read_kept(work, step) for step in steps]
    tensors = {name: torch.stack([snapshot[name] for snapshot in snapshots]) for name in snapshots[0]}
    save_file({**tensors, "step": torch.tensor(steps)}, out / NAME)


def count_snapshots(folder: Path) -> int:
    """How many snapshots a teacher step recorded in `folder`."""
    with safe_open(folder / NAME, framework="pt") as file:
        return len(file.get_tensor("step"))


def teacher_snapshot(folder: Path, number: int) -> torch.Tensor:
    """The moving average's parameters, float32 [P], at snapshot `number` of a DINO run."""
    with safe_open(folder / NAME, framework="pt") as file:
        found: torch.Tensor = file.get_slice("teacher")[number]
    return found


def _path(work: Path, step: int) -> Path:
    return work / f"snapshot-{step}.safetensors"
