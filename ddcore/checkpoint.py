"""One checkpoint a folder, written whole or not at all: tensors and a few JSON facts in one safetensors file.

Each names its layout: which stage wrote it, and a number to be raised with whatever the stage changes about its tensors and facts.
"""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

NAME = "checkpoint.safetensors"
log = logging.getLogger(__name__)


def write_checkpoint(work: Path, layout: str, tensors: dict[str, torch.Tensor], facts: dict[str, Any]) -> None:
    """Replace the checkpoint in `work`; a crash or a power failure in between leaves the earlier one.

    facts: JSON values (floats keep every bit).
    """
    work.mkdir(parents=True, exist_ok=True)
    aside = work / f"{NAME}.part"
    owned = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(owned, aside, metadata={"facts": json.dumps(facts), "layout": layout})
    with aside.open("rb") as written:
        os.fsync(written.fileno())  # else the name may reach the disk before what it names
    os.replace(aside, work / NAME)


def read_checkpoint(
    work: Path, layout: str, note: Callable[[str], None] = log.warning
) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """The tensors (on the CPU) and facts last written to `work`; None if there is no readable checkpoint of this layout.

    note: told why a checkpoint that is there is not used; the step then begins anew, which is slower and right.
    """
    path = work / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            said = file.metadata() or {}
            if said.get("layout") != layout:
                note(f"a checkpoint is of another version of the engine ({said.get('layout', 'unnamed')}, not {layout}) and is not used")
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, json.loads(said["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        note(f"a checkpoint cannot be read and is not used: {error}")
        return None
