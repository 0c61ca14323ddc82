import os

import pytest
import torch

from ddcore import threads
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import StudentSpec
from ddcore.threads import SMALL, cores, threads_for, threads_worth


@pytest.fixture(autouse=True)
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("batch_size", "inside"), [(1, 1), (SMALL // (8 * 64), 1), (SMALL // (8 * 64) + 1, 3)])
def test_one_thread_inside_for_small_maps_only(batch_size, inside):
    with threads_for(build_student(StudentSpec(depth=2, width=8), (1, 8, 8), 4), batch_size):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 3


def test_a_network_of_unknown_size_keeps_its_threads():
    with threads_for(FlatNetwork(torch.nn.Linear(2, 2)), 1):
        assert torch.get_num_threads() == 3


@pytest.mark.parametrize(("numbers", "inside"), [(SMALL, 1), (SMALL + 1, 3)])
def test_one_thread_inside_for_few_numbers_only(numbers, inside):
    with threads_worth(numbers):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 3


def test_threads_are_given_back_after_an_error():
    with pytest.raises(KeyError), threads_for(build_student(StudentSpec(depth=1, width=4), (1, 4, 4), 2), 1):
        raise KeyError
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 8), ("150000 100000", 2), ("9000000 100000", 8), ("1000 100000", 1), (None, 8)]
)
def test_cores_are_those_of_the_affinity_and_the_containers_quota(quota, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8))
    monkeypatch.setattr(threads, "QUOTA", tmp_path / "cpu.max")
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert cores() == expected
