"""Recorded runs: which steps, the two forms of one recording, what the short one costs, and how both are read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcore.errors import DdcoreError
from ddcore.ssl import trajectory
from ddcore.ssl.trajectory import Recorder, Storage, count_snapshots, read_trajectory, snapshot_steps, steps_apart, teacher_snapshot

COUNT, WIDTH = 40, 5000
STEPS = list(range(0, 7 * COUNT, 7))


def path(pair: bool = True) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
    """A student whose moves grow and shrink by orders of magnitude around weights of usual sizes, and its moving average."""
    draw = torch.Generator().manual_seed(0)
    student = 0.1 * torch.randn(WIDTH, generator=draw)
    teacher, rows = student.clone(), [(student, student.clone() if pair else None)]
    for t in range(1, COUNT):
        student = student + 10.0 ** (-2 - t / 15) * torch.randn(WIDTH, generator=draw)
        teacher = 0.9 * teacher + 0.1 * student
        rows.append((student, teacher.clone() if pair else None))
    return rows


def record(folder: Path, storage: Storage, pair: bool = True) -> tuple[Path, dict[str, float]]:
    for part in ("work", "out"):
        (folder / storage / part).mkdir(parents=True)
    recorder = Recorder(folder / storage / "work", STEPS, storage)
    for step, (student, teacher) in zip(STEPS, path(pair), strict=True):
        recorder.keep(step, student, teacher)
    return folder / storage / "out", recorder.gather(folder / storage / "out")


def test_steps() -> None:
    assert snapshot_steps(9, 4) == [0, 3, 6, 9]
    assert snapshot_steps(2, 10) == [0, 1, 2]
    assert steps_apart(20, 0.25 * 26) == [0, 6, 13, 20]  # 6.5 steps, to the nearest even where two are near
    assert steps_apart(10, 4.0) == [0, 4, 8, 10]
    assert steps_apart(3, 0.4) == [0, 1, 2, 3]
    assert steps_apart(3, 100.0) == [0, 3]


@pytest.mark.parametrize("pair", [True, False])
def test_whole_snapshots_are_the_file_that_the_library_writes(tmp_path: Path, pair: bool) -> None:
    out, error = record(tmp_path, "float32", pair)
    rows = path(pair)
    tensors = {"student": torch.stack([student for student, _ in rows]), "step": torch.tensor(STEPS)}
    if pair:
        tensors["teacher"] = torch.stack([teacher for _, teacher in rows if teacher is not None])
    save_file(tensors, tmp_path / "whole.safetensors")
    assert (out / trajectory.NAME).read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert error == {}


@pytest.mark.parametrize("pair", [True, False])
def test_differences_take_half_and_no_error_adds_up(tmp_path: Path, pair: bool) -> None:
    whole, _ = record(tmp_path, "float32", pair)
    short, error = record(tmp_path, "gap", pair)
    sizes = [(folder / trajectory.NAME).stat().st_size for folder in (whole, short)]
    assert sizes[1] < 0.52 * sizes[0]
    assert load_file(short / trajectory.NAME)["step"].tolist() == STEPS
    assert set(load_file(short / trajectory.NAME)) == {"start", "deltas", "step"} | ({"gap"} if pair else set())
    found, step = read_trajectory(short)
    assert (list(found), step.tolist()) == (["student", "teacher"] if pair else ["student"], STEPS)
    errors = []
    for name, track in found.items():
        true = torch.stack([one for row in path(pair) if (one := row[name == "teacher"]) is not None])
        stored = track[:, :]
        assert stored.dtype == torch.float32
        assert torch.equal(stored[0], true[0])
        # Each number is off by half a unit in the last place (2^-9) of one difference, and by float32's own rounding.
        last = (true - stored.roll(1, 0)).abs()[1:] if name != "student" or not pair else (true - found["teacher"][:, :]).abs()[1:]
        assert bool(((stored - true).abs()[1:] <= last * 2**-8 + 1e-7).all())
        errors.append((stored - true).norm(dim=1)[1:] / (true - true[0]).norm(dim=1)[1:])
    assert error["max"] == pytest.approx(float(torch.stack(errors).max()), rel=1e-5)
    assert error["mean"] == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    assert 1e-6 < error["max"] < 2**-8


@pytest.mark.parametrize("storage", ["float32", "gap"])
def test_rows_columns_and_parts_of_them_are_the_same_numbers(tmp_path: Path, storage: Storage) -> None:
    out, _ = record(tmp_path, storage)
    assert count_snapshots(out) == COUNT
    for name, track in read_trajectory(out)[0].items():
        assert track.get_shape() == [COUNT, WIDTH]
        every = track[:, :]
        assert torch.equal(torch.cat([track[:, first : first + 999] for first in range(0, WIDTH, 999)], dim=1), every)
        assert torch.equal(track[3:5, 10:20], every[3:5, 10:20])
        for number in (COUNT - 1, 0, 1, 2, 17, 17, 5):  # onwards, again and back
            assert torch.equal(track.row(number), every[number])
        if name == "teacher":
            assert torch.equal(teacher_snapshot(out, 9), every[9])


def test_a_resumed_recording_is_the_same(tmp_path: Path) -> None:
    whole, error = record(tmp_path / "whole", "gap")
    work, rows = tmp_path / "work", path()
    work.mkdir()
    for first, last in ((0, 15), (12, 20), (20, COUNT)):  # the run went back to its checkpoint, then to where it was
        recorder = Recorder(work, STEPS, "gap")
        for step, (student, teacher) in list(zip(STEPS, rows, strict=True))[first:last]:
            recorder.keep(step, student, teacher)
    assert recorder.gather(tmp_path) == error
    assert (tmp_path / trajectory.NAME).read_bytes() == (whole / trajectory.NAME).read_bytes()


def test_what_was_not_recorded_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DdcoreError, match="no recorded run") as absent:
        read_trajectory(tmp_path)
    (tmp_path / trajectory.NAME).write_bytes(b"no such file")
    with pytest.raises(DdcoreError, match=r"trajectory\.safetensors, cannot be read") as damaged:
        read_trajectory(tmp_path)
    assert {error.value.code for error in (absent, damaged)} == {"missing_input"}
    assert "its step records snapshots" in absent.value.hint
