"""Planes from inner products are the planes of an ordinary PCA, in any chunk size; distances are distances."""

import pytest
import torch
from sklearn.decomposition import PCA

from ddcore.observatory import pca
from ddcore.observatory.pca import centred_gram, displacement_gram, distances, principal_plane


def make_rows(n: int = 12, p: int = 500) -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    strength = torch.tensor([30.0, 10.0] + [1.0] * (n - 2))
    return 1000 + (torch.randn(n, n, generator=draw) * strength) @ torch.randn(n, p, generator=draw)


def gram_of(rows: torch.Tensor) -> torch.Tensor:
    return centred_gram(lambda a, b: rows[:, a:b], *rows.shape)


@pytest.mark.parametrize("chunk_bytes", [1, 8 * 12 * 7, 2**30])
def test_equals_scikit_learns_pca_in_any_chunk_size(monkeypatch: pytest.MonkeyPatch, chunk_bytes: int) -> None:
    monkeypatch.setattr(pca, "CHUNK_BYTES", chunk_bytes)
    rows = make_rows()
    plane = principal_plane(gram_of(rows), torch.tensor([0]), torch.tensor([11]), components=3)
    reference = PCA(3, svd_solver="full")
    expected = torch.from_numpy(reference.fit_transform(rows.double().numpy()))
    signs = torch.sign((plane.coordinates * expected).sum(0))
    torch.testing.assert_close(plane.coordinates * signs, expected, rtol=1e-8, atol=1e-6)
    torch.testing.assert_close(plane.explained, torch.from_numpy(reference.explained_variance_ratio_), rtol=1e-9, atol=1e-12)


def test_columns_are_read_in_chunks_that_cover_all_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, asked = make_rows(), []
    monkeypatch.setattr(pca, "CHUNK_BYTES", 8 * 12 * 64)

    def read(first: int, last: int) -> torch.Tensor:
        asked.append((first, last))
        return rows[:, first:last]

    centred_gram(read, 12, 500)
    assert asked == [(a, min(a + 64, 500)) for a in range(0, 500, 64)]


def test_paths_run_forward_whatever_the_sign_of_an_eigenvector() -> None:
    rows = torch.arange(6.0).view(-1, 1) * torch.randn(40, generator=torch.Generator().manual_seed(1))
    for flip in (1, -1):
        along = principal_plane(gram_of(flip * rows), torch.tensor([0]), torch.tensor([5])).coordinates[:, 0]
        assert (along.diff() > 0).all()


def test_displacements_forget_where_paths_began() -> None:
    draw = torch.Generator().manual_seed(2)
    starts, moves = 100 * torch.randn(3, 1, 50, generator=draw), torch.randn(3, 4, 50, generator=draw)
    moves[:, 0] = 0
    rows = (starts + moves).reshape(12, 50).double()
    origins = torch.arange(3).mul(4).repeat_interleave(4)
    moved = moves.reshape(12, 50).double()
    torch.testing.assert_close(displacement_gram(gram_of(rows), origins), moved @ moved.T, rtol=0, atol=1e-3)
    found = distances(gram_of(rows), torch.arange(12), origins)
    torch.testing.assert_close(found, moved.norm(dim=1), rtol=1e-4, atol=1e-4)


def test_rows_that_never_move_and_lone_rows_give_zeros_and_not_nan() -> None:
    for rows in (torch.ones(4, 10), torch.ones(1, 10)):
        plane = principal_plane(gram_of(rows), torch.tensor([0]), torch.tensor([len(rows) - 1]))
        assert plane.coordinates.abs().max() < 1e-6
        assert torch.isfinite(plane.explained).all()
