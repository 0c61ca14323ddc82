"""The ridge probe is exact: brute-force leave-one-out and scikit-learn agree; the logistic probe finds scikit-learn's optimum."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier

from ddcore.evaluation.probes import (
    FOLDS,
    RIDGE_PENALTIES,
    logistic,
    probe_accuracy,
    ridge,
    standardisation,
    stratified_folds,
)


def make_data(n: int, f: int, classes: int, noise: float = 1.5) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n * 1000 + f)
    y = torch.arange(n) % classes
    centres = torch.randn(classes, f, generator=draw, dtype=torch.float64)
    return centres[y] + noise * torch.randn(n, f, generator=draw, dtype=torch.float64), y


def solve_ridge(x: torch.Tensor, y: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge with a free intercept from the normal equations of the design matrix with a column of ones."""
    design = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    lift = penalty * torch.eye(design.shape[1], dtype=x.dtype)
    lift[-1, -1] = 0
    solution = torch.linalg.solve(design.T @ design + lift, design.T @ y)
    return solution[:-1], solution[-1]


@pytest.mark.parametrize(("n", "f"), [(40, 7), (12, 30), (20, 20)])
def test_ridge_matches_brute_force_leave_one_out_on_both_sides_of_n_equal_f(n: int, f: int) -> None:
    x, y = make_data(n, f, 3)
    one_hot = torch.nn.functional.one_hot(y, 3).double()
    centred = x - x.mean(0)
    scale = float(centred.square().sum()) / min(n - 1, f)
    errors = []
    for penalty in RIDGE_PENALTIES:
        squared = 0.0
        for i in range(n):
            rest = torch.arange(n) != i
            weight, bias = solve_ridge(x[rest], one_hot[rest], penalty * scale)
            squared += float((one_hot[i] - x[i] @ weight - bias).square().sum())
        errors.append(squared)
    best = RIDGE_PENALTIES[int(np.argmin(errors))] * scale
    fitted = ridge(x, y, 3)
    assert fitted.penalty == pytest.approx(best, rel=1e-12)
    weight, bias = solve_ridge(x, one_hot, best)
    torch.testing.assert_close(fitted.weight, weight, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(fitted.bias, bias, rtol=1e-7, atol=1e-9)
    assert 0 < int(np.argmin(errors)) < len(errors) - 1  # the grid is wide enough for its optimum to lie inside


@pytest.mark.parametrize(("n", "f"), [(60, 10), (15, 40)])
def test_ridge_predicts_what_scikit_learn_predicts(n: int, f: int) -> None:
    x, y = make_data(n + 500, f, 4)
    fitted = ridge(x[:n], y[:n], 4)
    reference = RidgeClassifier(alpha=fitted.penalty).fit(x[:n].numpy(), y[:n].numpy())
    # scikit-learn regresses to -1 and 1, one-hot targets are 0 and 1: the same scores up to 2 s - 1.
    torch.testing.assert_close(2 * fitted.scores(x) - 1, torch.from_numpy(reference.decision_function(x.numpy())), rtol=1e-7, atol=1e-8)
    accuracy = probe_accuracy("ridge", x[:n], y[:n], x[n:], y[n:], 4, torch.Generator())
    assert 40 < accuracy < 100


def test_ridge_with_one_label_a_class_becomes_the_nearest_mean_and_not_a_crash() -> None:
    x, y = make_data(205, 16, 5, noise=0.3)
    assert probe_accuracy("ridge", x[:5], y[:5], x[5:], y[5:], 5, torch.Generator()) > 95


def test_a_class_that_has_no_label_is_never_predicted() -> None:
    x, y = make_data(60, 8, 3)
    kept = y != 2
    scores = ridge(x[kept], y[kept], 3).scores(x)
    assert not (scores.argmax(1) == 2).any()


def test_standardisation_leaves_constant_columns_at_zero() -> None:
    x = torch.cat([torch.full((50, 1), 1000.1), torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 4 + 9], 1)
    mean, deviation = standardisation(x)
    z = (x.double() - mean) / deviation
    assert z[:, 0].abs().max() < 1e-6
    torch.testing.assert_close(z[:, 1:].std(0, correction=0), torch.ones(2, dtype=torch.float64))


def test_logistic_finds_the_optimum_that_scikit_learn_finds() -> None:
    x, y = make_data(80, 6, 3)
    fitted = logistic(x, y, 3, torch.Generator().manual_seed(0), penalties=(0.1,))
    reference = LogisticRegression(C=1 / (0.1 * len(x)), tol=1e-10, max_iter=2000).fit(x.numpy(), y.numpy())
    ours = fitted.scores(x).softmax(1)
    torch.testing.assert_close(ours, torch.from_numpy(reference.predict_proba(x.numpy())), rtol=0, atol=1e-4)


def test_logistic_regularises_noise_harder_than_signal() -> None:
    draw = torch.Generator().manual_seed(1)
    noise, y = torch.randn(100, 30, generator=draw, dtype=torch.float64), torch.arange(100) % 2
    signal = noise * 0.1
    signal[:, 0] += y * 2.0 - 1
    folds = torch.Generator().manual_seed(0)
    assert logistic(noise, y, 2, folds).penalty >= 10 * logistic(signal, y, 2, folds).penalty


def test_folds_spread_every_class_evenly() -> None:
    y = torch.tensor([0] * 23 + [1] * 10 + [2] * 4)
    fold = stratified_folds(y, torch.Generator().manual_seed(0))
    for label in range(3):
        sizes = fold[y == label].bincount(minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 1
    assert fold.bincount().tolist() == [8, 8, 7, 7, 7]
