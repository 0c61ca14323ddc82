"""Linear probes on frozen features: ridge with an exact leave-one-out choice of its penalty, and logistic regression."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, one_hot

from ddcore.ledger import Ledger, State
from ddcore.threads import threads_worth

# Multiples of the mean non-zero eigenvalue of the Gram matrix, in half-decades: from almost free to little but the class means.
RIDGE_PENALTIES = tuple(10.0 ** (step / 2) for step in range(-10, 5))
LOGISTIC_PENALTIES = tuple(10.0**step for step in range(1, -6, -1))  # strong ones first: each fit starts from the one before
FOLDS = 5
MANY_LABELS = 1000  # from here on one validation fifth is enough; with fewer labels all five take their turn

Pulse = Callable[[], None]


@dataclass(frozen=True)
class Linear:
    """A fitted classifier, scores = x @ weight + bias; weight [f, classes], bias [classes]; the penalty it was fitted with."""

    weight: Tensor
    bias: Tensor
    penalty: float

    def scores(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def probe_accuracy(
    kind: str,
    train_x: Tensor,
    train_y: Tensor,
    test_x: Tensor,
    test_y: Tensor,
    classes: int,
    generator: Generator,
    pulse: Pulse = lambda: None,
    ledger: Ledger | None = None,
) -> float:
    """Percent of test rows that a probe fitted on the training rows gets right.

    kind: "ridge" or "logistic". train_x [n, f], train_y int64 [n], test_x [t, f], test_y int64 [t]. Features are standardised
    with the training rows' mean and deviation. generator: draws the folds that validate the logistic penalty.
    pulse: called now and then; it may raise. ledger: of which this is the part in hand, if of any.
    """
    with threads_worth(max(train_x.numel(), test_x.numel())):  # many small operations would mostly wait for their second thread
        mean, deviation = standardisation(train_x)
        x = (train_x.double() - mean) / deviation
        model = (
            ridge(x, train_y, classes, pulse=pulse)
            if kind == "ridge"
            else logistic(x, train_y, classes, generator, pulse=pulse, ledger=ledger)
        )
        hits = 0
        for rows, truth in zip(torch.split(test_x, 4096), torch.split(test_y, 4096), strict=True):
            pulse()
            hits += int((model.scores((rows.double() - mean) / deviation).argmax(1) == truth).sum())
    return 100.0 * hits / len(test_y)


def standardisation(x: Tensor) -> tuple[Tensor, Tensor]:
    """float64 mean and deviation of each column of x [n, f]; a constant column gets deviation 1, so that it becomes zero."""
    x = x.double()
    mean = x.mean(0)
    deviation = (x - mean).square().mean(0).sqrt()
    return mean, torch.where(deviation > 1e-7 * (1 + mean.abs()), deviation, 1.0)


def ridge(x: Tensor, y: Tensor, classes: int, penalties: tuple[float, ...] = RIDGE_PENALTIES, pulse: Pulse = lambda: None) -> Linear:
    """Ridge regression to one-hot targets, its intercept not penalised; the penalty with the least leave-one-out squared error.

    x: float64 [n, f]. y: int64 [n]. penalties: multiples of the mean non-zero eigenvalue of the centred Gram matrix. The
    leave-one-out residual of row i is exactly residual_i / (1 - h_ii), with h the diagonal of the hat matrix (Hastie, Tibshirani
    & Friedman, 2009, equation 7.64); one eigendecomposition of the smaller Gram matrix (n x n or f x f) serves all penalties.
    """
    targets = one_hot(y, classes).to(x.dtype)
    mean_x, mean_y = x.mean(0), targets.mean(0)
    x, targets = x - mean_x, targets - mean_y
    dual = len(x) <= x.shape[1]
    values, vectors = torch.linalg.eigh(x @ x.T if dual else x.T @ x)
    values = values.clamp_min(0)
    # Columns of `scaled` are left singular vectors times singular values: hat = 1/n + scaled diag(1 / (values + penalty)) scaled'.
    scaled = vectors * values.sqrt() if dual else x @ vectors
    projected = scaled.T @ targets
    scale = float(values.sum()) / max(1, min(len(x) - 1, x.shape[1])) or 1.0
    errors = []
    for penalty in penalties:
        pulse()
        errors.append(_left_out_error(scaled, values, projected, targets, scale * penalty))
    penalty = scale * min(zip(errors, penalties, strict=True), key=lambda pair: (pair[0], -pair[1]))[1]
    if dual:
        weight = x.T @ (vectors @ ((vectors.T @ targets) / (values + penalty).unsqueeze(1)))
    else:
        weight = vectors @ (projected / (values + penalty).unsqueeze(1))
    return Linear(weight, mean_y - mean_x @ weight, penalty)


def _left_out_error(scaled: Tensor, values: Tensor, projected: Tensor, targets: Tensor, penalty: float) -> float:
    """Mean squared leave-one-out error of all rows, for centred targets."""
    shrink = 1 / (values + penalty)
    residual = targets - scaled @ (projected * shrink.unsqueeze(1))
    leverage = 1 / len(scaled) + torch.cat([part.square() @ shrink for part in torch.split(scaled, 4096)])
    left_out = residual / (1 - leverage).clamp_min(1e-12).unsqueeze(1)
    return float(left_out.square().mean())


def logistic(
    x: Tensor,
    y: Tensor,
    classes: int,
    generator: Generator,
    penalties: tuple[float, ...] = LOGISTIC_PENALTIES,
    pulse: Pulse = lambda: None,
    ledger: Ledger | None = None,
) -> Linear:
    """Multinomial logistic regression; the squared-weight penalty with the least log loss on held-out stratified fifths.

    x: float64 [n, f], standardised. y: int64 [n]. Fitted by L-BFGS with a strong-Wolfe line search; the bias is free.
    """
    fits = _Fits(ledger, x.device)
    fold = stratified_folds(y, generator).to(y.device)
    turns = range(1 if len(y) >= MANY_LABELS else FOLDS)
    totals = [0.0] * len(penalties)
    for turn in turns:
        fit, held = fold != turn, fold == turn
        if not (fit.any() and held.any()):
            continue
        start = None
        for i, penalty in enumerate(penalties):
            start = fits.next(functools.partial(_fit_logistic, x[fit], y[fit], classes, penalty, start, pulse))
            totals[i] += float(cross_entropy(start.scores(x[held]), y[held], reduction="sum"))
    chosen = penalties[totals.index(min(totals))]
    return fits.next(lambda: _fit_logistic(x, y, classes, chosen, None, pulse))


class _Fits:
    """The fits of a probe, in order; those of an earlier attempt are not made again."""

    def __init__(self, ledger: Ledger | None, device: torch.device) -> None:
        self._ledger, self._made, self._next = ledger, list[Linear](), 0
        if ledger is not None:
            if found := ledger.resume():
                tensors, penalties = found[0], found[1]["penalties"]
                parts = [tensors[f"fit.{n}"].to(device) for n in range(len(penalties))]
                self._made = [Linear(part[:-1].clone(), part[-1].clone(), penalty) for part, penalty in zip(parts, penalties, strict=True)]
            ledger.hold(self._state)

    def _state(self) -> State:
        tensors = {f"fit.{n}": torch.cat([fit.weight, fit.bias.unsqueeze(0)]) for n, fit in enumerate(self._made)}
        return tensors, {"penalties": [fit.penalty for fit in self._made]}

    def next(self, fit: Callable[[], Linear]) -> Linear:
        if self._next == len(self._made):
            self._made.append(fit())
            if self._ledger is not None:
                self._ledger.offer()
        self._next += 1
        return self._made[self._next - 1]


def stratified_folds(y: Tensor, generator: Generator) -> Tensor:
    """A fold number, 0 to FOLDS - 1, for each label: every class is spread as evenly as it can be, and so is the whole; int64 [n]."""
    shuffled = torch.randperm(len(y), generator=generator)
    by_class = shuffled[y.cpu()[shuffled].sort(stable=True).indices]
    fold = torch.empty(len(y), dtype=torch.int64)
    fold[by_class] = torch.arange(len(y)) % FOLDS
    return fold


def _fit_logistic(x: Tensor, y: Tensor, classes: int, penalty: float, start: Linear | None, pulse: Pulse) -> Linear:
    weight = start.weight.clone() if start else x.new_zeros(x.shape[1], classes)
    bias = start.bias.clone() if start else x.new_zeros(classes)
    weight.requires_grad_(), bias.requires_grad_()
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-6, tolerance_change=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        pulse()
        optimiser.zero_grad()
        value = cross_entropy(x @ weight + bias, y) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return Linear(weight.detach(), bias.detach(), penalty)
