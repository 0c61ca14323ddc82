"""A checkpoint is whole or absent, and gives back every bit."""

import math

import pytest
import torch
from safetensors.torch import save_file

from ddcore import checkpoint
from ddcore.checkpoint import NAME, read_checkpoint, write_checkpoint


def test_every_bit_comes_back(tmp_path):
    ramp = torch.arange(12.0).view(3, 4)
    tensors = {
        "theta": torch.randn(7) * 1e-30,
        "exact": torch.randn(3, dtype=torch.float64),
        "column": ramp[:, 1],  # a view that is not contiguous
        "again": ramp[:, 1],  # and one that shares its memory
        "random": torch.Generator().manual_seed(3).get_state(),
        "scalar": torch.tensor(2.5, requires_grad=True),
        "none": torch.zeros(0),
    }
    facts = {"loss": [0.1, 1 / 3, math.pi * 1e-12], "step": 12, "name": "é"}
    write_checkpoint(tmp_path, "x 1", tensors, facts)
    found, said = read_checkpoint(tmp_path, "x 1")
    assert said == facts
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor.detach())


def test_the_latest_one_counts_and_nothing_else_is_left(tmp_path):
    for step in range(3):
        write_checkpoint(tmp_path, "x 1", {"x": torch.full((2,), float(step))}, {"step": step})
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    tensors, facts = read_checkpoint(tmp_path, "x 1")
    assert facts == {"step": 2}
    assert tensors["x"].tolist() == [2.0, 2.0]


def test_a_crash_while_writing_leaves_the_earlier_one(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, "x 1", {"x": torch.ones(2)}, {"step": 1})

    def torn(tensors, path, metadata):
        path.write_bytes(b"half of a fi")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", torn)
    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, "x 1", {"x": torch.zeros(2)}, {"step": 2})
    tensors, facts = read_checkpoint(tmp_path, "x 1")
    assert (facts, tensors["x"].tolist()) == ({"step": 1}, [1.0, 1.0])


def test_what_cannot_be_read_counts_as_none(tmp_path):
    assert read_checkpoint(tmp_path, "x 1") is None
    path = tmp_path / NAME
    write_checkpoint(tmp_path, "x 1", {"x": torch.ones(1000)}, {"step": 1})
    path.write_bytes(path.read_bytes()[:-100])
    assert read_checkpoint(tmp_path, "x 1") is None
    path.write_bytes(b"")
    assert read_checkpoint(tmp_path, "x 1") is None
    save_file({"x": torch.ones(2)}, path)  # another program's
    assert read_checkpoint(tmp_path, "x 1") is None


def test_a_checkpoint_of_another_layout_is_not_used_and_that_is_said(tmp_path):
    write_checkpoint(tmp_path / "deep" / "work", "experts 1", {"x": torch.ones(2)}, {"step": 1})
    said = []
    assert read_checkpoint(tmp_path / "deep" / "work", "experts 2", said.append) is None
    assert said == ["a checkpoint is of another version of the engine (experts 1, not experts 2) and is not used"]
    assert read_checkpoint(tmp_path / "deep" / "work", "experts 1", said.append) is not None
    save_file({"x": torch.ones(2)}, tmp_path / NAME, metadata={"facts": "{}"})  # as the first versions wrote it
    assert read_checkpoint(tmp_path, "experts 1", said.append) is None
    assert said[1:] == ["a checkpoint is of another version of the engine (unnamed, not experts 1) and is not used"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], checkpoint.os.fsync, checkpoint.os.replace
    monkeypatch.setattr(checkpoint.os, "fsync", lambda file: (done.append("written"), fsync(file)))
    monkeypatch.setattr(checkpoint.os, "replace", lambda *names: (done.append("named"), replace(*names)))
    write_checkpoint(tmp_path, "x 1", {}, {"step": 1})
    assert done == ["written", "named"]
    assert read_checkpoint(tmp_path, "x 1")[1] == {"step": 1}
