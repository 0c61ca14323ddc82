"""A teacher that already exists: pretrained weights by name, or a checkpoint; measured like one trained here."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import nn

from ddcore.beside import beside
from ddcore.data.images import Images, mean_std
from ddcore.errors import DdcoreError, Problem, SpecError
from ddcore.ledger import Ledger
from ddcore.networks.backbones import Library, build_backbone, drop_classifier, feature_dim, timm_backbone, torchvision_backbone
from ddcore.specs import BackboneSpec, GivenTeacherSpec
from ddcore.ssl.measure import MEASURED, measure, refuse_collapsed
from ddcore.ssl.teacher import Manifest, fit_weights, read_weights, save_teacher
from ddcore.task import Task

Normalisation = tuple[list[float], list[float]]


def given_teacher(spec: GivenTeacherSpec, data: Images, task: Task) -> dict[str, Any]:
    """Write teacher.safetensors and teacher.json of an existing encoder, measured on `data`.

    Pixels are normalised as its weights were trained: by the model's own mean and deviation, by those in the checkpoint's metadata, or,
    where a checkpoint has none, by those of `data`. Raises `DdcoreError` bad_checkpoint, download_failed, invalid_spec, teacher_collapsed.
    """
    channels, size = data.shape[0], (data.shape[1], data.shape[2])

    def fetching() -> None:
        task.reporter.progress(0, 1, "download", f"fetching the weights of {spec.backbone.name}")

    library: Library = "own"
    if spec.source == "checkpoint":
        module, (mean, std) = _checkpoint(spec, data, task)
    elif spec.source == "timm":
        library = "timm"
        module, (mean, std) = beside(lambda: _timm(spec.backbone.name, channels, size, task.resources.downloads), fetching)
    else:
        library = "torchvision"
        module, (mean, std) = beside(lambda: _torchvision(spec.backbone.name, channels, task.resources.downloads), fetching)
    module = module.eval().to(task.device)
    feature_dim(module, channels, size)
    accuracy, rank, width = measure(module, data, mean, std, task.reporter, Ledger(task.work, MEASURED, task.reporter))
    refuse_collapsed(accuracy, rank, spec.min_knn_accuracy)
    manifest = Manifest(
        backbone=spec.backbone.model_dump(),
        in_channels=channels,
        image_size=size,
        mean=mean,
        std=std,
        feature_dim=width,
        ssl="given",
        knn_accuracy=accuracy,
        feature_rank=rank,
        min_knn_accuracy=spec.min_knn_accuracy,
        library=library,
    )
    save_teacher(task.out, module, manifest)
    return {"ssl": "given", "knn_accuracy": accuracy, "feature_rank": rank, "feature_dim": width}


def _checkpoint(spec: GivenTeacherSpec, data: Images, task: Task) -> tuple[nn.Module, Normalisation]:
    name = spec.checkpoint or ""
    if name not in task.resources.checkpoints:
        raise DdcoreError("missing_input", f"checkpoint {name} is not at hand", "upload it again, or check the path")
    weights, metadata = read_weights(task.resources.checkpoints[name])
    module = _initialised(spec.backbone, data)
    fit_weights(module, weights)
    if "normalisation" not in metadata:
        task.reporter.note("the checkpoint carries no pixel normalisation: that of the data set is used")
        return module, mean_std(data.images, task.reporter.pulse)
    try:
        own = json.loads(metadata["normalisation"])
        mean, std = [float(v) for v in own["mean"]], [float(v) for v in own["std"]]
    except (ValueError, TypeError, KeyError) as error:
        detail = f"the checkpoint's normalisation cannot be read: {error}"
        raise DdcoreError("bad_checkpoint", detail, "its metadata holds JSON: {mean: [...], std: [...]}") from error
    if len(mean) != data.shape[0] or len(std) != data.shape[0] or min(std) <= 0:
        raise DdcoreError("bad_checkpoint", f"the checkpoint normalises {len(mean)} channels, images have {data.shape[0]}", "use another")
    return module, (mean, std)


def _initialised(backbone: BackboneSpec, data: Images) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return build_backbone(backbone, data.shape[0], (data.shape[1], data.shape[2]))


def _timm(name: str, channels: int, size: tuple[int, int], downloads: Path) -> tuple[nn.Module, Normalisation]:
    if timm.is_model(name) and not timm.is_model_pretrained(name):
        problem = Problem(("teacher", "backbone", "name"), f"timm has no weights for {name}", name, "a name of timm.list_pretrained()")
        raise SpecError([problem])
    try:
        model = timm_backbone(name, channels, size, pretrained=True, cache=str(downloads / "timm"))
    except (OSError, RuntimeError) as error:
        raise _not_fetched(name, error) from error
    settings: dict[str, Any] = vars(model)["pretrained_cfg"]
    return model, _for_channels(settings["mean"], settings["std"], channels)


def _torchvision(name: str, channels: int, downloads: Path) -> tuple[nn.Module, Normalisation]:
    shaped = torchvision_backbone(name, channels)  # refuses unknown names
    weights = torchvision.models.get_model_weights(name).DEFAULT
    try:
        state = weights.get_state_dict(model_dir=str(downloads / "torchvision"), progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:
        raise _not_fetched(name, error) from error
    whole = torchvision.models.get_model(name, weights=None)
    whole.load_state_dict(state)
    drop_classifier(whole)
    prefix = "model." if channels == 1 else ""
    shaped.load_state_dict({prefix + key: tensor for key, tensor in whole.state_dict().items()})
    transforms = weights.transforms()
    return shaped, _for_channels(transforms.mean, transforms.std, channels)


def _for_channels(mean: Any, std: Any, channels: int) -> Normalisation:
    """A model's own normalisation; its average where grey images stand in for colour."""
    if channels == 1:
        return [sum(mean) / len(mean)], [sum(std) / len(std)]
    return list(mean), list(std)


def _not_fetched(name: str, error: Exception) -> DdcoreError:
    hint = "check the worker's network and try again, or give a safetensors checkpoint"
    return DdcoreError("download_failed", f"the weights of {name} could not be fetched or verified: {error}", hint)
