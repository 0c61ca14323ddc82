"""Cosine k-nearest-neighbour accuracy, in batches."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from ddcore.threads import threads_worth

Pulse = Callable[[], None]


def knn_accuracy(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int, batch_size: int = 1024, pulse: Pulse = lambda: None
) -> float:
    """Percent of test rows whose `k` nearest training rows (by cosine) vote for the right class.

    train_x [n, f], train_y int64 [n], test_x [t, f], test_y int64 [t]; k is cut to n. A tie between classes goes to the one
    whose neighbours are nearer in total. pulse: called for each batch of test rows; it may raise.
    """
    with threads_worth(max(train_x.numel(), test_x.numel())):
        train_x, k = normalize(train_x.float(), dim=1), min(k, len(train_x))
        classes = int(max(train_y.max(), test_y.max())) + 1
        correct = 0
        for rows, truth in zip(torch.split(test_x, batch_size), torch.split(test_y, batch_size), strict=True):
            pulse()
            similarity, nearest = (normalize(rows.float(), dim=1) @ train_x.T).topk(k, dim=1)
            # Similarities lie within -1..1, so what is added to a vote stays below half a vote in total: it can only break ties.
            weight = 1 + (similarity.double() + 1) / (4 * k + 1)
            votes = weight.new_zeros(len(rows), classes).scatter_add_(1, train_y[nearest], weight)
            correct += int((votes.argmax(1) == truth).sum())
    return 100.0 * correct / len(test_y)
