"""A finished teacher: its weights, and a manifest with all that is needed to use it and to know how good it is."""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ddcore.errors import DdcoreError
from ddcore.networks.backbones import Library, build_backbone
from ddcore.specs import BackboneSpec
from ddcore.ssl import measure

WEIGHTS = "teacher.safetensors"
MANIFEST = "teacher.json"
_NAMED = 5  # tensors that an error lists
_PROTOCOL = (
    f"leave-one-out, cosine, k={measure.NEIGHBOURS}, weights exp(cosine/{measure.TEMPERATURE}),"
    f" up to {measure.QUERIES} of the training images asked about"
)


@dataclass(frozen=True)
class Manifest:
    """What teacher.json holds. mean, std: of each channel, in 0..1 pixel units. Accuracies are percent; None where unknown.

    library: whose model `backbone` names (see `ddcore.networks.backbones`). image_size: height, width.
    """

    backbone: dict[str, Any]
    in_channels: int
    image_size: tuple[int, int]
    mean: list[float]
    std: list[float]
    feature_dim: int
    ssl: str
    knn_accuracy: float | None
    feature_rank: float
    loss: float | None = None
    images_per_second: float | None = None
    min_knn_accuracy: float = 0.0
    library: Library = "own"
    knn_protocol: str = _PROTOCOL


def save_teacher(folder: Path, module: nn.Module, manifest: Manifest) -> None:
    """Write teacher.safetensors (float32; the normalisation in its metadata) and teacher.json."""
    tensors = {
        name: (tensor.float() if tensor.is_floating_point() else tensor).detach().cpu().contiguous().clone()
        for name, tensor in module.state_dict().items()
    }
    save_file(tensors, folder / WEIGHTS, metadata={"normalisation": json.dumps({"mean": manifest.mean, "std": manifest.std})})
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1, allow_nan=False) + "\n")


def load_teacher(folder: Path) -> tuple[nn.Module, Manifest]:
    """The teacher that a step left in `folder`, in evaluation mode on the CPU, and its manifest.

    Raises `DdcoreError`: missing_input if files are absent or damaged, bad_checkpoint if weights and manifest disagree,
    teacher_collapsed if its k-NN accuracy is below the floor in its own manifest.
    """
    try:
        fields = json.loads((folder / MANIFEST).read_text())
        manifest = Manifest(**{**fields, "image_size": tuple(fields["image_size"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DdcoreError("missing_input", f"the teacher's manifest in {folder} cannot be read: {error}", "run its step again") from error
    measure.refuse_collapsed(manifest.knn_accuracy, manifest.feature_rank, manifest.min_knn_accuracy)
    with torch.random.fork_rng(devices=[]):
        module = build_backbone(BackboneSpec(**manifest.backbone), manifest.in_channels, manifest.image_size, manifest.library)
    weights, _ = read_weights(folder / WEIGHTS)
    fit_weights(module, weights)
    return module.eval().requires_grad_(False), manifest


def read_weights(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file; raises `DdcoreError` bad_checkpoint if it is not one."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError) as error:
        hint = "give a safetensors file; pickled checkpoints are not read: load one yourself and save its state dict"
        raise DdcoreError("bad_checkpoint", f"{path.name} cannot be read as safetensors: {error}", hint) from error


def fit_weights(module: nn.Module, weights: dict[str, torch.Tensor]) -> None:
    """Load `weights` into `module`; raises `DdcoreError` bad_checkpoint that lists missing, unexpected and mis-shaped names."""
    own = module.state_dict()
    missing = [name for name in own if name not in weights]
    unexpected = [name for name in weights if name not in own]
    wrong = [
        f"{name} {list(weights[name].shape)} instead of {list(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    lists = {"missing": missing, "unexpected": unexpected, "of another shape": wrong}
    found = [f"{len(names)} {what} ({_shorten(names)})" for what, names in lists.items() if names]
    if found:
        hint = "check backbone.name, width and depth, the channels of the data set, and that names carry no prefix such as 'module.'"
        raise DdcoreError("bad_checkpoint", f"the checkpoint does not fit the backbone: {'; '.join(found)}", hint)
    broken = [name for name, tensor in weights.items() if not math.isfinite(float(tensor.double().sum()))]
    if broken:
        detail = f"tensors are not finite: {_shorten(broken)}"
        raise DdcoreError("bad_checkpoint", detail, "the run that made it diverged; use an earlier one")
    module.load_state_dict({name: tensor.to(own[name].dtype) for name, tensor in weights.items()})


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
