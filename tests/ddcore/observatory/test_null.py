"""The null re-orders each path's own steps and nothing else; a walk stays as it was, an ordered path does not."""

import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from ddcore.observatory.null import against_null, shuffled_null
from ddcore.observatory.pca import centred_gram

PATHS = [torch.arange(9), torch.arange(9, 16)]


def gram_of(rows: Tensor) -> Tensor:
    return centred_gram(lambda a, b: rows[:, a:b], *rows.shape)


def explained(rows: Tensor, components: int) -> Tensor:
    return torch.from_numpy(PCA(components, svd_solver="full").fit(rows.double().numpy()).explained_variance_ratio_)


def test_equals_the_pca_of_paths_rebuilt_from_their_re_ordered_steps() -> None:
    draw = torch.Generator().manual_seed(1)
    rows = 50 + torch.randn(16, 200, generator=draw).cumsum(0)
    found = shuffled_null(gram_of(rows), PATHS, torch.Generator().manual_seed(4), draws=3, components=4)
    random = torch.Generator().manual_seed(4)
    for shares in found:
        rebuilt = []
        for path in PATHS:
            steps = list(rows[path].double().diff(dim=0))
            rebuilt.append(rows[path[0]].double())
            for number in torch.randperm(len(path) - 1, generator=random).tolist():
                rebuilt.append(rebuilt[-1] + steps[number])
        torch.testing.assert_close(shares, explained(torch.stack(rebuilt), 4), rtol=1e-8, atol=1e-12)
    assert not torch.equal(found[0], found[1])


def test_the_recorded_shares_are_those_of_the_named_rows_in_their_own_order() -> None:
    rows = torch.randn(20, 60, generator=torch.Generator().manual_seed(2)).cumsum(0)
    chosen = [torch.tensor([0, 2, 4, 6]), torch.tensor([10, 11, 13])]
    found = against_null(gram_of(rows), chosen, torch.Generator().manual_seed(0), draws=5)
    torch.testing.assert_close(torch.tensor(found["explained"]).double(), explained(rows[torch.cat(chosen)], 2), rtol=1e-6, atol=1e-8)
    assert [len(shares) for shares in found["shuffled"]] == [2] * 5


def test_a_random_walk_looks_like_its_null_and_a_path_that_turns_once_does_not() -> None:
    draw = torch.Generator().manual_seed(3)
    walk = torch.randn(60, 5000, generator=draw).cumsum(0)
    found = against_null(gram_of(walk), [torch.arange(60)], draw)
    assert found["explained"][0] == pytest.approx(6 / torch.pi**2, abs=0.02)  # the first share of any long walk in many dimensions
    assert [shares[0] for shares in found["shuffled"]] == pytest.approx([found["explained"][0]] * 20, abs=0.02)
    one, two = torch.randn(2, 5000, generator=draw)
    steps = torch.cat([one.expand(30, -1), two.expand(30, -1)]) + 0.1 * torch.randn(60, 5000, generator=draw)
    turned = against_null(gram_of(steps.cumsum(0)), [torch.arange(60)], draw)
    assert turned["explained"][1] > 0.05 + max(shares[1] for shares in turned["shuffled"])
