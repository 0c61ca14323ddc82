import os
from pathlib import Path

from worker.workplace import Workplace


def test_the_checkpoint_outlives_an_attempt_and_its_output_does_not(tmp_path: Path) -> None:
    first = Workplace(tmp_path, "key", 1)
    (first.work / "checkpoint").write_text("half")
    (first.out / "half-written").write_text("x")
    first.close()
    second = Workplace(tmp_path, "key", 2)
    assert second.path == first.path
    assert (second.work / "checkpoint").read_text() == "half"
    assert list(second.out.iterdir()) == []


def test_an_attempt_that_still_works_there_is_not_disturbed(tmp_path: Path) -> None:
    zombie, successor = Workplace(tmp_path, "key", 1), Workplace(tmp_path, "key", 2)
    assert zombie.path != successor.path
    assert (zombie.out.exists(), successor.out.exists()) == (True, True)


def test_what_was_forgotten_for_a_week_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    old, used, recent = (Workplace(tmp_path, name, 1) for name in ("old", "used", "recent"))
    old.close()
    recent.close()
    for place in (old, used):
        os.utime(place.path, (0, 0))
    recent.sweep()
    assert [place.path.exists() for place in (old, used, recent)] == [False, True, True]
