"""Measures of a teacher: k-NN against a loop, effective rank on spectra that are known."""

import math

import pytest
import torch

from ddcore.errors import DdcoreError
from ddcore.ssl.measure import effective_rank, knn_accuracy, refuse_collapsed


def test_knn_is_the_weighted_vote_of_all_others() -> None:
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    features = torch.randn(30, 4, generator=draw) + torch.nn.functional.one_hot(labels, 4) * 1.5
    right = 0
    for i in range(30):
        a = features[i].tolist()
        near = []
        for j in range(30):
            b = features[j].tolist()
            if j != i:
                cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
                near.append((cosine, int(labels[j])))
        votes = [0.0, 0.0, 0.0]
        for cosine, label in sorted(near, reverse=True)[:5]:
            votes[label] += math.exp(cosine / 0.2)
        right += votes.index(max(votes)) == int(labels[i])
    assert 30 < 100 * right / 30 < 95  # the loop tells right from wrong
    assert knn_accuracy(features, labels, k=5, temperature=0.2) == pytest.approx(100 * right / 30)


def test_few_queries_are_a_part_of_all_and_always_the_same() -> None:
    features = torch.eye(4).repeat(50, 1)
    labels = torch.arange(4).repeat(50)
    assert knn_accuracy(features, labels, queries=10) == 100.0
    noise = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    assert knn_accuracy(noise, labels, queries=20) == knn_accuracy(noise, labels, queries=20)
    assert knn_accuracy(noise, labels, queries=20) * 20 / 100 == pytest.approx(round(knn_accuracy(noise, labels, queries=20) * 20 / 100))


def test_effective_rank_counts_equal_directions() -> None:
    basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))[0]
    for rank in (1, 3, 8):
        corners = torch.cat([basis[:rank], -basis[:rank]])
        assert effective_rank(corners * 5 + 100) == pytest.approx(rank, rel=1e-3)
    uneven = torch.tensor([[3.0, 0], [-3, 0], [0, 1], [0, -1]])
    p = [0.75, 0.25]
    assert effective_rank(uneven) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p)), rel=1e-5)


def test_features_that_differ_by_rounding_only_have_no_rank() -> None:
    assert effective_rank(torch.ones(20, 5)) == 0.0
    noise = 1e-7 * torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    assert effective_rank(torch.ones(20, 5) + noise) == 0.0


def test_a_teacher_is_refused_by_rank_or_floor_only() -> None:
    refuse_collapsed(50.0, 1.6, 50.0)
    refuse_collapsed(None, 1.6, 0.0)
    with pytest.raises(DdcoreError, match=r"effective rank 1\.40"):
        refuse_collapsed(None, 1.4, 0.0)
    with pytest.raises(DdcoreError, match=r"floor of 50\.0 %.*k-NN accuracy 49\.9 %"):
        refuse_collapsed(49.9, 8.0, 50.0)
