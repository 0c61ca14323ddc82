"""`python -m tests.ddcore.networks.write_names`: writes the names of timm's and torchvision's models for where neither is installed."""

from pathlib import Path

import timm
import torchvision

import ddcore.networks

FOLDER = Path(ddcore.networks.__path__[0])


def listing(library: str) -> str:
    """One line a model: its name, then (timm's) the tags of its pretrained weights."""
    if library == "torchvision":
        return "".join(f"{name}\n" for name in sorted(torchvision.models.list_models(module=torchvision.models)))
    tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for weights in timm.list_pretrained():
        name, _, tag = weights.partition(".")
        tags[name].append(tag)
    return "".join(" ".join([name, *sorted(tags[name])]) + "\n" for name in sorted(tags))


if __name__ == "__main__":
    for library in ("timm", "torchvision"):
        (FOLDER / f"{library}.txt").write_text(listing(library))
