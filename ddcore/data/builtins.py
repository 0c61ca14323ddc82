"""The data sets that are known by name: what they hold and where they come from. Torch-free.

`digits-*` is bundled with scikit-learn and needs no network; the others are fetched by torchvision, which checks their MD5.
"""

import difflib
from dataclasses import dataclass
from typing import Any

from ddcore.checks import DatasetFacts
from ddcore.errors import Problem, SpecError

RESIZED = 64  # pixels: sets of varying size are resized (shorter side, bicubic) and cropped to the centre square of this side


@dataclass(frozen=True)
class Builtin:
    """One split. loader: "digits", or the name of a class in torchvision.datasets, called with `arguments`.
    class_counts is None without labels; download_bytes is 0 where nothing is fetched.

    image_shape: channels, height, width of the tensor; with `resized` the originals vary and are brought to it.
    """

    title: str
    loader: str
    arguments: dict[str, Any]
    image_shape: tuple[int, int, int]
    class_counts: tuple[int, ...] | None
    num_images: int
    homepage: str
    resized: bool = False
    download_bytes: int = 0


Shape = tuple[int, int, int]


def _labelled(title: str, loader: str, arguments: dict[str, Any], shape: Shape, counts: tuple[int, ...], homepage: str) -> Builtin:
    resized = loader in ("Flowers102", "FGVCAircraft")
    return Builtin(title, loader, arguments, shape, counts, sum(counts), homepage, resized, _DOWNLOAD_BYTES.get(loader, 0))


_DOWNLOAD_BYTES = {  # for the progress bar only
    "CIFAR10": 170_498_071,
    "CIFAR100": 169_001_437,
    "STL10": 2_640_397_119,
    "SVHN": 182_040_794,
    "Flowers102": 344_862_509,
    "FGVCAircraft": 2_753_340_328,
}
_DIGITS = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
_CIFAR = "https://www.cs.toronto.edu/~kriz/cifar.html"
_STL = "https://cs.stanford.edu/~acoates/stl10/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_FLOWERS = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
_AIRCRAFT = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/"

_DIGITS_TEST = (50, 51, 49, 51, 50, 51, 50, 50, 48, 50)
_DIGITS_TRAIN = (128, 131, 128, 132, 131, 131, 131, 129, 126, 130)
_SVHN_TRAIN = (4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659)
_SVHN_TEST = (1744, 5099, 4149, 2882, 2523, 2384, 1977, 2019, 1660, 1595)
_FLOWERS_ALL = (
    *(40, 60, 40, 56, 65, 45, 40, 85, 46, 45, 87, 87, 49, 48, 49, 41, 85, 82, 49, 56, 40, 59, 91, 42, 41, 41, 40, 66, 78, 85, 52, 45, 46),
    *(40, 43, 75, 108, 56, 41, 67, 127, 59, 130, 93, 40, 196, 67, 71, 49, 92, 258, 85, 93, 61, 71, 109, 67, 114, 67, 109, 50, 55, 54, 52),
    *(102, 61, 42, 54, 54, 62, 78, 96, 194, 171, 120, 107, 251, 137, 41, 105, 166, 112, 131, 86, 63, 58, 63, 154, 184, 82, 76, 66, 46, 162),
    *(128, 91, 66, 82, 63, 49, 58, 48),
)
_AIRCRAFT_TEST = (33, 33, 34) * 33 + (33,)

BUILTINS: dict[str, Builtin] = {
    "digits-train": _labelled("handwritten digits, 8x8", "digits", {"train": True}, (1, 8, 8), _DIGITS_TRAIN, _DIGITS),
    "digits-test": _labelled("handwritten digits, 8x8", "digits", {"train": False}, (1, 8, 8), _DIGITS_TEST, _DIGITS),
    "cifar10-train": _labelled("CIFAR-10", "CIFAR10", {"train": True}, (3, 32, 32), (5000,) * 10, _CIFAR),
    "cifar10-test": _labelled("CIFAR-10", "CIFAR10", {"train": False}, (3, 32, 32), (1000,) * 10, _CIFAR),
    "cifar100-train": _labelled("CIFAR-100", "CIFAR100", {"train": True}, (3, 32, 32), (500,) * 100, _CIFAR),
    "cifar100-test": _labelled("CIFAR-100", "CIFAR100", {"train": False}, (3, 32, 32), (100,) * 100, _CIFAR),
    "stl10-train": _labelled("STL-10", "STL10", {"split": "train"}, (3, 96, 96), (500,) * 10, _STL),
    "stl10-test": _labelled("STL-10", "STL10", {"split": "test"}, (3, 96, 96), (800,) * 10, _STL),
    "stl10-unlabeled": Builtin(
        "STL-10 without labels", "STL10", {"split": "unlabeled"}, (3, 96, 96), None, 100_000, _STL, download_bytes=_DOWNLOAD_BYTES["STL10"]
    ),
    "svhn-train": _labelled("street view house numbers", "SVHN", {"split": "train"}, (3, 32, 32), _SVHN_TRAIN, _SVHN),
    "svhn-test": _labelled("street view house numbers", "SVHN", {"split": "test"}, (3, 32, 32), _SVHN_TEST, _SVHN),
    "flowers102-train": _labelled("Oxford flowers", "Flowers102", {"split": "train"}, (3, RESIZED, RESIZED), (10,) * 102, _FLOWERS),
    "flowers102-test": _labelled(
        "Oxford flowers", "Flowers102", {"split": "test"}, (3, RESIZED, RESIZED), tuple(n - 20 for n in _FLOWERS_ALL), _FLOWERS
    ),
    "aircraft-train": _labelled(
        "FGVC aircraft variants (its trainval split)",
        "FGVCAircraft",
        {"split": "trainval"},
        (3, RESIZED, RESIZED),
        tuple(100 - n for n in _AIRCRAFT_TEST),
        _AIRCRAFT,
    ),
    "aircraft-test": _labelled(
        "FGVC aircraft variants", "FGVCAircraft", {"split": "test"}, (3, RESIZED, RESIZED), _AIRCRAFT_TEST, _AIRCRAFT
    ),
}


def builtin(name: str) -> Builtin:
    """The split called `name`; raises `SpecError` naming the closest ones."""
    if name not in BUILTINS:
        close = difflib.get_close_matches(name, BUILTINS, n=3) or list(BUILTINS)
        raise SpecError([Problem(("dataset",), f"no built-in data set is called {name!r}", name, ", ".join(close))])
    return BUILTINS[name]


def facts(name: str) -> DatasetFacts:
    """What planning needs of the built-in called `name`; raises `SpecError` if there is none."""
    known = builtin(name)
    return DatasetFacts(
        name=name, source={"builtin": name}, num_images=known.num_images, image_shape=known.image_shape, class_counts=known.class_counts
    )
