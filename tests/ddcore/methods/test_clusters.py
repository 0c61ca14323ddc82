"""k-means in parts against scikit-learn's."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from ddcore.events import Reporter
from ddcore.ledger import Ledger
from ddcore.methods import clusters


def scattered(kind):
    """Points float32 [n, d], several blocks of them."""
    draw = np.random.default_rng(0)
    points = draw.normal(size=(700, 6))
    made = {
        "all different": points,
        "with copies": np.concatenate([points[:400], points[:300]]),
        "with many equally near": points.round(),
        "copies of a few": points[:9].repeat(80, 0),
    }
    return torch.from_numpy(made[kind].astype(np.float32))


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
@pytest.mark.parametrize("kind", ["all different", "with copies", "with many equally near", "copies of a few"])
@pytest.mark.parametrize("count", [1, 7, 40, 300])
def test_the_centres_are_those_of_scikit_learn(tmp_path, monkeypatch, kind, count):
    monkeypatch.setattr(clusters, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(clusters, "AT_ONCE", 0)
    points = scattered(kind)
    with threadpool_limits(1, user_api="openmp"):  # else it adds in an order of its own
        expected = KMeans(count, n_init=1, random_state=3).fit(points.double().numpy()).cluster_centers_
        found = clusters.cluster(points, count, 3, Ledger(tmp_path, "clusters", Reporter()), Reporter())
    assert torch.equal(found, torch.from_numpy(expected))
