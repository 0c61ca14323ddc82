"""One checkpoint a step, written whole or not at all: tensors and a few JSON facts in one safetensors file."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

NAME = "checkpoint.safetensors"


def write_checkpoint(work: Path, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Replace the checkpoint in `work`; a crash in between leaves the earlier one. facts: JSON values (floats keep every bit)."""
    aside = work / f"{NAME}.{os.getpid()}"
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, aside, metadata={"facts": json.dumps(facts)})
    os.replace(aside, work / NAME)


def read_checkpoint(work: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors (on the CPU) and facts last written to `work`; None if there is no readable checkpoint."""
    path = work / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads((file.metadata() or {})["facts"])
    except (SafetensorError, KeyError, ValueError):
        return None  # damaged: the step begins anew, which is slower and right
