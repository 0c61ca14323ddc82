from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks import machine, unroll
from benchmarks.exactness import SIZES
from benchmarks.machine import Peaks
from benchmarks.pairs import Pairs, interleave
from benchmarks.roofline import Sizes
from benchmarks.settings import Setting

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


@pytest.mark.parametrize("cached", [True, False])
def test_shares_are_of_the_least_work_and_of_what_was_run(cached: bool) -> None:
    sizes = Sizes(64, 3, 32, 32, dims=512, depth=3, maps=128)
    full, half = (Setting(sizes, 64, (5,), 0.0, dtype, torch.device("cpu"), "auto") for dtype in ("float32", "bf16"))
    peaks = Peaks(1e30, 1e9)  # all is memory's
    wide, narrow = (unroll._shares(one, 5, peaks, 2.0, 4.0, cached) for one in (full, half))
    assert narrow["roofline_share"] < 0.6 * wide["roofline_share"]
    assert wide["roofline_share_as_run"] == wide["roofline_share"] or not cached
    assert wide["roofline_share_as_run"] > wide["roofline_share"] or cached
    assert wide["flops_share"] == pytest.approx(2 * wide["baseline_flops_share"], rel=1e-3)


def test_peaks_are_those_of_what_the_convolutions_multiply_in(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def peaks(device: torch.device, dtype: torch.dtype) -> Peaks:
        asked.append(dtype)
        return Peaks(1e9, 1e9)

    monkeypatch.setattr(unroll, "measure_peaks", peaks)
    monkeypatch.setattr(unroll, "max_relative_error", lambda core_of, device: 0.0)
    for dtype in ("auto", "bf16", "float64"):
        unroll.main([*TINY, "--steps", "2", "--repeats", "1", "--dtype", dtype])
    assert asked == [torch.float32, torch.bfloat16, torch.float64]


def test_the_settings_are_the_engines() -> None:
    torch.backends.cudnn.benchmark = True
    machine.prepare(1)
    assert not torch.backends.cudnn.benchmark
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    chosen = [(choice, place) for choice in ("auto", "float32", "bf16", "float64") for place in ("cpu", "cuda")]
    names = [machine.choose_dtype(choice, torch.device(place)) for choice, place in chosen]
    assert names == ["float32", "tf32", "float32", "float32", "bf16", "bf16", "float64", "float64"]


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
