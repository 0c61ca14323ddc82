"""Trajectories of several shards read as one array, in both forms of storage."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddcore.errors import DdcoreError
from ddcore.events import Reporter
from ddcore.experts import store
from ddcore.experts.store import Trajectories, write_trajectories
from ddcore.ledger import Ledger
from ddcore.observatory.recordings import read_experts

EPS = 2.0**-8  # bfloat16 has eight bits: twice its largest relative rounding error


def shard(folder, count, snapshots=3, parameters=5, storage="float32"):
    folder.mkdir()
    paths = torch.randn(count, snapshots, parameters, generator=torch.Generator().manual_seed(count)).cumsum(1)
    write_trajectories(folder, paths, storage, "{}")
    return paths


@pytest.mark.parametrize("storages", [("float32",) * 3, ("bf16_deltas",) * 3, ("bf16_deltas", "float32", "bf16_deltas")])
def test_rows_of_all_shards_in_their_order(tmp_path, storages):
    folders = [tmp_path / name for name in ("b", "a", "c")]
    made = zip(folders, (2, 1, 3), storages, strict=True)
    paths = torch.cat([shard(folder, count, storage=storage) for folder, count, storage in made])
    found = Trajectories(folders)
    assert (found.num_experts, found.num_snapshots, found.num_parameters) == (6, 3, 5)
    rows = torch.stack([torch.stack([found.row(expert, snapshot) for snapshot in range(3)]) for expert in range(6)])
    assert torch.equal(rows[:, 0], paths[:, 0])
    torch.testing.assert_close(rows, paths, rtol=0, atol=0 if set(storages) == {"float32"} else 0.02)
    for expert in range(6):
        assert torch.equal(found.columns(expert, 1, 4), rows[expert, :, 1:4])


def test_differences_do_not_drift(tmp_path):
    """After 300 steps a stored snapshot is still off by no more than the rounding of its last difference."""
    paths = shard(tmp_path / "a", 2, snapshots=301, parameters=200, storage="bf16_deltas")
    found = Trajectories([tmp_path / "a"])
    for expert in range(2):
        for snapshot in range(1, 301):
            true, before, stored = paths[expert, snapshot], found.row(expert, snapshot - 1), found.row(expert, snapshot)
            assert ((stored - true).abs() <= EPS * (true - before).abs() + 1e-6 * true.abs()).all()
    careless = paths[:, 0] + paths.diff(dim=1).bfloat16().float().sum(1)
    ours = torch.stack([found.row(expert, 300) for expert in range(2)])
    assert (ours - paths[:, -1]).norm() < 0.2 * (careless - paths[:, -1]).norm()


def test_the_error_of_differences_is_measured_and_their_file_is_half_as_large(tmp_path):
    paths = torch.randn(3, 21, 4000).cumsum(1)
    for name in ("whole", "halved"):
        (tmp_path / name).mkdir()
    assert write_trajectories(tmp_path / "whole", paths, "float32", "{}") == {}
    error = write_trajectories(tmp_path / "halved", paths, "bf16_deltas", "{}")
    found = Trajectories([tmp_path / "halved"])
    rows = torch.stack([torch.stack([found.row(expert, snapshot) for snapshot in range(21)]) for expert in range(3)])
    ratios = (rows - paths).norm(dim=2)[:, 1:] / (paths - paths[:, :1]).norm(dim=2)[:, 1:]
    assert error == pytest.approx({"max": float(ratios.max()), "mean": float(ratios.mean())}, rel=1e-4)
    assert 1e-4 < error["mean"] < error["max"] < EPS
    sizes = [(tmp_path / name / "experts.safetensors").stat().st_size for name in ("halved", "whole")]
    assert sizes[0] < 0.53 * sizes[1]


def test_an_expert_that_never_moved_is_stored_without_an_error(tmp_path):
    assert write_trajectories(tmp_path, torch.ones(1, 4, 3), "bf16_deltas", "{}") == {"max": 0.0, "mean": 0.0}


def test_rows_are_views_of_the_mapped_file_and_writing_to_one_is_found_out(tmp_path):
    paths = shard(tmp_path / "a", 2)
    found = Trajectories([tmp_path / "a"])
    row = found.row(0, 1)
    assert found.row(0, 2).data_ptr() - row.data_ptr() == 5 * 4
    assert found.row(0, 1).data_ptr() == row.data_ptr()
    row.zero_()
    with pytest.raises(RuntimeError, match="changed in place by its reader"):
        found.row(1, 0)
    assert torch.equal(load_file(tmp_path / "a" / "experts.safetensors")["trajectories"], paths)


@pytest.mark.parametrize("storage", ["float32", "bf16_deltas"])
def test_a_device_holds_all_that_fits_its_budget_and_is_sent_the_rest_row_by_row(tmp_path, monkeypatch, storage):
    shard(tmp_path / "a", 2, storage=storage)
    device, sent = torch.device("meta"), []
    monkeypatch.setattr(store, "send", lambda tensor, to: sent.append(to) or tensor.to(to))
    size = Trajectories([tmp_path / "a"]).nbytes
    assert size == (2 * 3 * 5 * 4 if storage == "float32" else 2 * 5 * 4 + 2 * 2 * 5 * 2)
    for budget, expected in ((size, []), (size - 1, [device])):
        found = Trajectories([tmp_path / "a"], device, budget)
        assert (found.row(1, 2).device, found.resident) == (device, not expected)
        assert sent == expected


def test_the_observatory_reads_both_forms(tmp_path):
    draw = [shard(tmp_path / name, 3, snapshots=4, parameters=50, storage=name) for name in ("float32", "bf16_deltas")]
    assert torch.equal(*draw)

    def read(name):
        return read_experts([tmp_path / name], Ledger(tmp_path / "work" / name, "experts", Reporter()), Reporter())

    whole, halved = read("float32"), read("bf16_deltas")
    assert whole is not None
    assert halved is not None
    assert (whole.experts, whole.snapshots, whole.recorded) == (halved.experts, halved.snapshots, halved.recorded) == (3, 4, 3)
    torch.testing.assert_close(halved.gram, whole.gram, rtol=0, atol=float(5e-3 * whole.gram.abs().max()))
    assert not torch.equal(halved.gram, whole.gram)


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    shard(tmp_path / "a", 2)
    shard(tmp_path / "b", 2, snapshots=4)
    with pytest.raises(DdcoreError, match=r"different shapes.*\(3, 5\), \(4, 5\)"):
        Trajectories([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("storage", ["float32", "bf16_deltas"])
@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_damage_is_a_missing_input(tmp_path, damage, storage):
    shard(tmp_path / "a", 2, storage=storage)
    path = tmp_path / "a" / "experts.safetensors"
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        save_file({"start" if storage == "bf16_deltas" else "something": torch.ones(3)}, path)
    with pytest.raises(DdcoreError, match=r"trajectories in experts\.safetensors cannot be read") as caught:
        Trajectories([tmp_path / "a"])
    assert caught.value.code == "missing_input"
