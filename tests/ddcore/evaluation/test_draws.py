"""Label draws keep each class's share, differ from draw to draw, and repeat with their generator."""

import torch

from ddcore.checks import labels_of_class
from ddcore.evaluation.draws import split, stratified
from ddcore.task import generator

LABELS = torch.tensor([0] * 100 + [1] * 35 + [2] * 7)[torch.randperm(142, generator=torch.Generator().manual_seed(0))]


def test_every_class_keeps_its_share() -> None:
    rows = stratified(LABELS, 0.1, generator(0, "a"))
    counts = LABELS[rows].bincount(minlength=3).tolist()
    assert counts == [labels_of_class(0.1, n) for n in (100, 35, 7)] == [10, 4, 1]
    assert len(rows.unique()) == len(rows)


def test_draws_repeat_with_their_stream_and_differ_between_streams() -> None:
    first = stratified(LABELS, 0.2, generator(3, "labels", 0))
    assert torch.equal(first, stratified(LABELS, 0.2, generator(3, "labels", 0)))
    assert not torch.equal(first, stratified(LABELS, 0.2, generator(3, "labels", 1)))


def test_all_labels_and_at_least_one() -> None:
    assert torch.equal(stratified(LABELS, 1.0, generator(0)), torch.arange(142))
    assert sorted(LABELS[stratified(LABELS, 0.001, generator(0), least=1)].tolist()) == [0, 1, 2]


def test_split_is_a_partition_with_every_class_on_both_sides_unless_it_has_one_image() -> None:
    labels = torch.cat([LABELS, torch.tensor([3, 4, 4])])
    rest, held = split(labels, 0.2, generator(0))
    assert torch.equal(torch.cat([rest, held]).sort().values, torch.arange(len(labels)))
    assert labels[held].bincount(minlength=5).tolist() == [20, 7, 1, 0, 1]
    assert labels[rest].bincount(minlength=5).tolist() == [80, 28, 6, 1, 1]
