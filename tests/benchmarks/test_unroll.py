from collections.abc import Callable
from typing import Any

import pytest

from benchmarks import unroll
from benchmarks.exactness import SIZES
from benchmarks.pairs import Pairs, interleave

TINY = ["--width=8", "--depth=2", "--size=8", "--channels=1", "--dims=8", "--batch=5", "--device=cpu", "--threads=1", "--repeats=3"]


def test_the_last_line_describes_the_last_row(last_line: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.exactness.SIZES", SIZES[1:])
    unroll.main([*TINY, "--steps", "2", "4", "--core", "eager"])
    found = last_line()
    wanted = {"n": 4, "batch": 5, "device": "cpu", "dtype": "float32", "n_pairs": 3, "threads": 1, "cached": 4}
    assert wanted.items() <= found.items()
    assert [row["n"] for row in found["rows"]] == [2, 4]
    assert found["rows"][-1].items() <= found.items()
    for name in ("time_ratio", "peak_memory_ratio", "max_relative_error_fp64", "bytes_per_extra_step_over_parameter_bytes"):
        assert isinstance(found[name], float)
    # Bytes are exact, so they are the same everywhere: a snapshot a step, and less than all graphs.
    assert found["bytes_per_extra_step_over_parameter_bytes"] == 1.0
    assert 0 < found["peak_memory_ratio"] < found["peak_memory_ratio_as_timed"] < 1.5
    assert found["max_relative_error_fp64"] < 1e-10


def test_a_preset_gives_the_sizes(last_line: Callable[[], dict[str, Any]]) -> None:
    unroll.main(["--preset", "demo", "--steps", "2", "--device", "cpu", "--repeats", "1", "--core", "generic", "--nothing-cached"])
    wanted = {"n": 2, "batch": 20, "core": "generic", "threads": 1, "cached": 0, "parameters": 4920}
    assert wanted.items() <= last_line().items()


@pytest.mark.parametrize(("arguments", "said"), [("--core triton", "--core triton"), ("--dtype tf32", "tf32 is CUDA's")])
def test_what_this_machine_cannot_do_is_refused(arguments: str, said: str) -> None:
    with pytest.raises(SystemExit, match=said):
        unroll.main([*TINY, *arguments.split()])


def test_ratios_are_those_of_neighbours() -> None:
    order = []
    seconds = {"baseline": iter([9.0, 1.0, 2.0, 4.0]), "ours": iter([9.0, 1.0, 1.0, 1.0])}

    def side(name: str) -> float:
        order.append(name)
        return next(seconds[name])

    pairs = interleave(lambda: side("baseline"), lambda: side("ours"), repeats=3, warm_up=1)
    assert order == ["baseline", "ours"] * 4
    assert pairs == Pairs(ours=[1.0, 1.0, 1.0], baseline=[1.0, 2.0, 4.0])
    assert pairs.ratio == 0.5
    assert pairs.quartiles == (0.375, 0.75)


def test_as_many_pairs_are_made_as_there_is_time_for() -> None:
    assert len(interleave(lambda: 1.0, lambda: 1.0, seconds=20.0).ratios) == 10
    assert len(interleave(lambda: 30.0, lambda: 30.0, seconds=20.0).ratios) == 3
