"""Trajectories of several shards read as one array."""

import pytest
import torch
from safetensors.torch import save_file

from ddcore.errors import DdcoreError
from ddcore.experts.store import Trajectories


def shard(folder, count, snapshots=3, parameters=5):
    folder.mkdir()
    paths = torch.randn(count, snapshots, parameters)
    save_file({"trajectories": paths}, folder / "experts.safetensors")
    return paths


def test_rows_of_all_shards_in_their_order(tmp_path):
    folders = [tmp_path / name for name in ("b", "a", "c")]
    paths = torch.cat([shard(folder, count) for folder, count in zip(folders, (2, 1, 3), strict=True)])
    found = Trajectories(folders)
    assert (found.num_experts, found.num_snapshots, found.num_parameters) == (6, 3, 5)
    for expert in range(6):
        for snapshot in range(3):
            assert torch.equal(found.row(expert, snapshot), paths[expert, snapshot])


def test_a_row_is_the_readers_own(tmp_path):
    paths = shard(tmp_path / "a", 1)
    found = Trajectories([tmp_path / "a"])
    found.row(0, 1).zero_()
    assert torch.equal(found.row(0, 1), paths[0, 1])


def test_shards_that_do_not_belong_together_are_refused(tmp_path):
    shard(tmp_path / "a", 2)
    shard(tmp_path / "b", 2, snapshots=4)
    with pytest.raises(DdcoreError, match=r"different shapes.*\(3, 5\), \(4, 5\)"):
        Trajectories([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("damage", ["absent", "cut", "other"])
def test_damage_is_a_missing_input(tmp_path, damage):
    shard(tmp_path / "a", 2)
    path = tmp_path / "a" / "experts.safetensors"
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        save_file({"something": torch.ones(3)}, path)
    with pytest.raises(DdcoreError, match=r"trajectories in experts\.safetensors cannot be read") as caught:
        Trajectories([tmp_path / "a"])
    assert caught.value.code == "missing_input"
