"""A synthetic set: images, targets and a learned rate in one safetensors file that the library alone can read."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ddcore.errors import DdcoreError

FILE = "synthetic.safetensors"
_FIELDS = ("images", "targets", "learned_lr", "indices")


@dataclass(frozen=True)
class SyntheticSet:
    """All that is needed to pre-train a network from a set.

    images: float32 [m, c, h, w] in pixel units (0..1 nominal; learned images may leave that range). targets: float32 [m, d].
    learned_lr: float32 [], or [num_layers] of `FlatNetwork.layer_sizes` for the student in `info` alone. indices: int64 [m], the
    real images they began from. info: plain JSON with at least `mean` and `std`, one number a channel: the normalisation that the
    student expects.
    """

    images: Tensor
    targets: Tensor
    learned_lr: Tensor
    indices: Tensor
    info: dict[str, Any]

    @property
    def rate(self) -> float:
        """The learned rate as one number, for any network: the geometric mean where layers have their own."""
        return mean_rate(self.learned_lr)

    @property
    def rates(self) -> list[float] | None:
        """The layers' rates, if they have their own."""
        return self.learned_lr.tolist() if self.learned_lr.ndim else None

    def normalised(self) -> Tensor:
        """The images as the student sees them, (images - mean) / std; [m, c, h, w]."""
        mean, std = (
            torch.tensor(self.info[k], dtype=self.images.dtype, device=self.images.device).view(1, -1, 1, 1) for k in ("mean", "std")
        )
        return (self.images - mean) / std

    def quantised(self) -> "SyntheticSet":
        """The set as an 8-bit image file would keep it: pixels clipped to 0..1 and rounded to 256 levels."""
        return replace(self, images=(self.images.clamp(0, 1) * 255).round() / 255)

    def save(self, path: Path) -> None:
        """Write one safetensors file; equal sets give equal bytes."""
        text = json.dumps(self.info, sort_keys=True, separators=(",", ":"), allow_nan=False)
        tensors = {
            "images": self.images.float(),
            "targets": self.targets.float(),
            "learned_lr": self.learned_lr.float(),
            "indices": self.indices.long(),
        }
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path, metadata={"potstill": text})


def mean_rate(rate: Tensor) -> float:
    """A rate [] as it is; of layers' rates [num_layers] the geometric mean."""
    return float(rate) if rate.ndim == 0 else float(rate.double().log().mean().exp())


def load_synthetic(path: Path) -> SyntheticSet:
    """Read what `SyntheticSet.save` wrote. Raises `DdcoreError` missing_input if the file is absent, damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            info = json.loads((file.metadata() or {})["potstill"])
            tensors = {name: file.get_tensor(name) for name in _FIELDS}
    except FileNotFoundError:
        raise _unreadable(path, "the file is not there") from None
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, f"not a readable safetensors file: {error}") from error
    except (KeyError, ValueError) as error:
        raise _unreadable(path, f"no potstill metadata in it: {error}") from error
    if problem := _misfit(tensors, info):
        raise _unreadable(path, problem)
    return SyntheticSet(**tensors, info=info)


def _misfit(tensors: dict[str, Tensor], info: Any) -> str | None:
    """What is wrong with the shapes, types or values of a set that was read; None if nothing."""
    images, targets, rate, indices = (tensors[name] for name in _FIELDS)
    if images.ndim != 4 or targets.ndim != 2 or rate.ndim > 1 or not rate.numel() or indices.ndim != 1:
        shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
        return f"shapes {shapes}; expected images [m, c, h, w], targets [m, d], learned_lr [] or [layers], indices [m]"
    if not len(images) == len(targets) == len(indices) > 0:
        return f"{len(images)} images, {len(targets)} targets and {len(indices)} indices; expected equal numbers, at least one"
    if any(tensor.dtype != torch.float32 for tensor in (images, targets, rate)) or indices.dtype != torch.int64:
        return "images, targets and learned_lr must be float32, indices int64"
    if not all(torch.isfinite(tensor).all() for tensor in (images, targets, rate)):
        return "NaN or infinity in its numbers"
    if rate.ndim and rate.min() <= 0:
        return f"a layer's learned rate of {float(rate.min()):g}; each must be above zero"
    return _misfit_info(info, images.shape[1])


def _misfit_info(info: Any, channels: int) -> str | None:
    if not isinstance(info, dict):
        return "its metadata is not a JSON object"
    for name in ("mean", "std"):
        values = info.get(name)
        if (
            not isinstance(values, list)
            or len(values) != channels
            or not all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        ):
            return f"its metadata needs {name!r}: one finite number for each of {channels} channels; it has {values!r}"
    return None if min(info["std"]) > 0 else f"its std must be above zero; it has {info['std']!r}"


def _unreadable(path: Path, why: str) -> DdcoreError:
    return DdcoreError(
        "missing_input", f"{path.name} cannot be read as a synthetic set: {why}", "run the distillation again, or download the set anew"
    )
