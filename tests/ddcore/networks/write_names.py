"""`python -m tests.ddcore.networks.write_names`: writes the names of timm's and torchvision's models for where neither is installed."""

from pathlib import Path

import timm
import torchvision
from timm.models import get_pretrained_cfg

import ddcore.networks

RESAMPLE = ("deit", "eva", "vision_transformer", "vision_transformer_hybrid")  # have an option `dynamic_img_size`
FOLDER = Path(ddcore.networks.__path__[0])


def listing(library: str) -> str:
    """One line a model: its name, then (timm's) the tags of its pretrained weights."""
    if library == "timm_one_size":
        return "".join(f"{name}\n" for name in sorted(timm.list_models()) if not reads_any_size(name))
    if library == "torchvision":
        return "".join(f"{name}\n" for name in sorted(torchvision.models.list_models(module=torchvision.models)))
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for weights in timm.list_pretrained():
        name, _, tag = weights.partition(".")
        tags[name].append(tag)
    return "".join(" ".join([name, *sorted(tags[name])]) + "\n" for name in sorted(tags))


def reads_any_size(name: str) -> bool:
    """Whether one model of timm, once built, reads images of several sizes: convolutions do, and transformers that can be told to."""
    family = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    return not get_pretrained_cfg(name).fixed_input_size or family in RESAMPLE


if __name__ == "__main__":
    for library in ("timm", "timm_one_size", "torchvision"):
        (FOLDER / f"{library}.txt").write_text(listing(library))
