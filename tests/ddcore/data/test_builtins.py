"""The table of built-in sets agrees with itself and with the data that is bundled."""

import pytest

from ddcore.data.builtins import BUILTINS, facts
from ddcore.errors import SpecError


def test_facts_name_their_source_and_counts_add_up() -> None:
    digests = set()
    for name, known in BUILTINS.items():
        one = facts(name)
        assert one.source == {"builtin": name}
        assert one.class_counts is None or sum(one.class_counts) == one.num_images
        assert one.image_shape[0] in (1, 3)
        assert (known.download_bytes > 0) == (known.loader != "digits")
        digests.add(one.digest)
    assert len(digests) == len(BUILTINS)


@pytest.mark.parametrize(
    ("name", "images", "classes"),
    [  # as the sets' own pages state them
        ("cifar100-train", 50_000, 100),
        ("stl10-test", 8_000, 10),
        ("svhn-train", 73_257, 10),
        ("svhn-test", 26_032, 10),
        ("flowers102-test", 6_149, 102),
        ("aircraft-train", 6_667, 100),
        ("aircraft-test", 3_333, 100),
    ],
)
def test_published_sizes(name: str, images: int, classes: int) -> None:
    one = facts(name)
    assert (one.num_images, len(one.class_counts or ())) == (images, classes)


def test_an_unknown_name_is_answered_with_close_ones() -> None:
    with pytest.raises(SpecError) as caught:
        facts("cifar10-trian")
    assert "cifar10-train" in caught.value.problems[0].allowed
