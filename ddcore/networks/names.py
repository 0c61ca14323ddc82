"""The models that timm and torchvision know by name, without either: a misspelt backbone is refused where no engine is installed."""

import difflib
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from ddcore.errors import Problem
from ddcore.specs import BackboneSpec, DinoSpec, GivenTeacherSpec, TeacherSpec

OWN = ("resnet18", "convnet", "vit_tiny_patch4")  # the encoders of `ddcore.networks.backbones` itself
PATCH = 4  # pixels, the side of a patch of vit_tiny_patch4
_ANY_SIZE = ("resnet18", "vit_tiny_patch4")  # of OWN, those whose features do not depend on the images' size
MOST_NAMED = 5


@cache
def known_models(library: str) -> dict[str, tuple[str, ...]]:
    """The models of `timm` or `torchvision` in the pinned version: name -> (timm's) tags of its pretrained weights.

    `timm_one_size`: those of timm's that read images of the size they were built for and no other.
    """
    lines = resources.files("ddcore.networks").joinpath(f"{library}.txt").read_text().splitlines()
    return {name: tuple(tags) for name, *tags in (line.split() for line in lines)}


def check_backbone(teacher: TeacherSpec) -> list[Problem]:
    """What is wrong with the name of the teacher's backbone; empty if nothing. timm's names may end in a tag: `name.tag`."""
    source, given = teacher.source if isinstance(teacher, GivenTeacherSpec) else "own", teacher.backbone.name
    if source == "torchvision":
        models = known_models("torchvision")
        return (
            [] if given in models else [_problem(f"torchvision has no model called {given!r}", given, models, "torchvision's name of it")]
        )
    models = known_models("timm")
    own = OWN if source != "timm" else ()  # timm has a resnet18 of its own
    name, dot, tag = given.partition(".")
    if given in own:
        return []
    if name not in models:
        return [_problem(f"timm has no model called {given!r}", given, [*own, *models], " or ".join([*own, "timm's name of a model"]))]
    tags = [f"{name}.{one}" for one in models[name]]
    if dot and given not in tags:
        return [_problem(f"timm's {name} has no weights tagged {tag!r}", given, tags, name)]
    if source == "timm" and not tags:
        return [_problem(f"timm has no weights for {given}", given, [one for one in models if models[one]], "another model")]
    return []


def check_patches(backbone: BackboneSpec, height: int, width: int) -> list[Problem]:
    """What is wrong with the images' sides for vit_tiny_patch4; empty if nothing, or if it is another backbone."""
    if backbone.name != "vit_tiny_patch4" or (height % PATCH == 0 and width % PATCH == 0):
        return []
    message = f"vit_tiny_patch4 cuts images into patches of {PATCH}x{PATCH} pixels"
    given, allowed = f"{height}x{width} pixels", f"sides that are multiples of {PATCH}, or another backbone"
    return [Problem(("teacher", "backbone", "name"), message, given, allowed)]


def check_masked_patches(teacher: TeacherSpec) -> list[Problem]:
    """What is wrong with hiding patches from this teacher's backbone; empty if nothing, or if none are hidden."""
    if not isinstance(teacher, DinoSpec) or not teacher.masked_patches or teacher.backbone.name == "vit_tiny_patch4":
        return []
    said = f"{teacher.backbone.name} has no patches that could be hidden from it here"
    return [Problem(("teacher", "masked_patches"), said, teacher.masked_patches, "0, or teacher.backbone.name vit_tiny_patch4")]


def check_local_crops(teacher: TeacherSpec, height: int, width: int) -> list[Problem]:
    """What is wrong with the size of DINO's local views of such images; empty if nothing, or if they have full size."""
    if not isinstance(teacher, DinoSpec) or teacher.local_crop_size is None:
        return []
    loc, given, full = ("teacher", "local_crop_size"), teacher.local_crop_size, "leave it out, and local crops are resized to full size"
    if given > min(height, width):
        said = f"a local view is no larger than the images, of {height}x{width} pixels"
        return [Problem(loc, said, given, f"4 to {min(height, width)}, or {full}")]
    name = teacher.backbone.name.partition(".")[0]
    if name not in OWN and name in known_models("timm_one_size"):
        return [
            Problem(loc, f"{name} reads images of one size only", given, f"{full}; or another backbone, such as {' or '.join(_ANY_SIZE)}")
        ]
    if name == "convnet":
        said = "a convnet's features are its last map, whose size depends on the images'"
        return [Problem(loc, said, given, f"{full}; or another backbone, such as {' or '.join(_ANY_SIZE)}")]
    patch, view = re.search(r"patch(\d+)", name), teacher.local_view(height, width)
    if patch and any(side % int(patch[1]) for side in view):
        said = f"{name} cuts images into patches of {patch[1]}x{patch[1]} pixels, and local views are {view[0]}x{view[1]}"
        return [Problem(loc, said, given, f"one that makes both sides multiples of {patch[1]}; or {full}")]
    return []


def _problem(what: str, given: str, known: Iterable[str], otherwise: str) -> Problem:
    close = difflib.get_close_matches(given, list(dict.fromkeys(known)), n=MOST_NAMED, cutoff=0.5)  # resnet18 is ours and timm's
    near = f"; did you mean {close[0]}?" if close else ""
    return Problem(("teacher", "backbone", "name"), what + near, given, ", ".join(close) or otherwise)
