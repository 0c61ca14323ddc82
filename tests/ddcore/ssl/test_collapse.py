"""Each way in which DINO's outputs collapse has words and advice of its own."""

import math

import pytest

from ddcore.errors import DdcoreError
from ddcore.ssl.collapse import collapse_of
from ddcore.ssl.measure import refuse_collapsed


@pytest.mark.parametrize(
    ("entropy", "kl", "kind"),
    [(0.99, 0.0, "uniform"), (0.99, 0.5, "uniform"), (0.01, 0.01, "single"), (0.01, 0.3, None), (0.5, 0.0, None), (0.97, 0.0, None)],
)
def test_the_kind_is_told_by_entropy_and_divergence(entropy: float, kl: float, kind: str | None) -> None:
    largest = math.log(64)
    assert collapse_of(entropy * largest, kl * largest, 64) == kind


def test_the_refusal_says_which_way_and_what_to_change_against_it() -> None:
    hints = {}
    for kind in ("uniform", "single", None):
        with pytest.raises(DdcoreError, match="nearly the same features") as caught:
            refuse_collapsed(20.0, 1.2, 0.0, kind)
        hints[kind] = caught.value.hint
        assert (f"{kind}" in caught.value.detail) is (kind is not None)
        assert "`entropy` and `kl`" in caught.value.hint
    assert "lower teacher.teacher_temperature" in hints["uniform"]
    assert "raise teacher.teacher_temperature" in hints["single"]
    assert "teacher_temperature" not in hints[None]
