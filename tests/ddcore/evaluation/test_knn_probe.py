"""Cosine k-NN agrees with scikit-learn, in any batch size, and breaks ties towards the nearer class."""

import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from ddcore.evaluation.knn import knn_accuracy


@pytest.mark.parametrize(("k", "batch_size"), [(1, 7), (5, 64)])
def test_agrees_with_scikit_learn(k: int, batch_size: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(300, 6, generator=draw), torch.randint(2, (300,), generator=draw)
    x[:, 0] += 2 * y
    reference = KNeighborsClassifier(k, metric="cosine").fit(x[:200].numpy(), y[:200].numpy())
    expected = 100 * reference.score(x[200:].numpy(), y[200:].numpy())
    assert knn_accuracy(x[:200], y[:200], x[200:], y[200:], k, batch_size) == pytest.approx(expected)


def test_a_tie_goes_to_the_nearer_class_and_a_majority_beats_nearness() -> None:
    train = torch.tensor([[1.0, 0.0], [1.0, 1.0], [-1.0, 0.1], [-1.0, -0.1]])
    test, one = torch.tensor([[1.0, 0.05]]), torch.tensor([1])
    assert knn_accuracy(train, torch.tensor([1, 0, 0, 1]), test, one, 2) == 100  # one vote each; the first is nearer
    assert knn_accuracy(train, torch.tensor([1, 0, 0, 0]), test, one, 4) == 0  # three far votes beat one near


def test_k_is_cut_to_the_number_of_training_rows() -> None:
    x, y = torch.eye(3), torch.tensor([0, 1, 1])
    assert knn_accuracy(x, y, x, y, 50) == knn_accuracy(x, y, x, y, 3)
