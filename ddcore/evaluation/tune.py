"""The baselines' learning rates, chosen on a validation split of training images: the test split is never read here."""

import functools
import json
from statistics import fmean
from typing import Any

from torch import Tensor

from ddcore.errors import DdcoreError
from ddcore.evaluation.arms import load_sets, network_for, shape_of
from ddcore.evaluation.downstream import Labelled, Seen, load_held_out, load_labelled
from ddcore.evaluation.draws import split, stratified
from ddcore.evaluation.pretrain import pretrain
from ddcore.evaluation.probes import probe_accuracy
from ddcore.evaluation.progress import Ticker
from ddcore.ledger import Ledger
from ddcore.networks.flat import FlatNetwork
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task, generator

VALIDATION = 0.2  # of each class of the first downstream training set
LABELS = 0.1  # of the rest, which the probe is fitted on
SEEDS = 2  # initialisations whose scores are averaged
DRAWS = 3  # label draws for each
LAYOUT = "tune 1"  # of checkpoints


def tune_rates(task: Task) -> dict[str, Any]:
    """Write rates.json: for each baseline, the multiple of the learned rate that does best on the validation split.

    Every baseline tries every rate of the grid; a rate that diverges scores null. Raises `DdcoreError` diverged if all do.
    """
    params, sets = task.params, load_sets(task)
    synthetic = sets["synthetic"]
    network = network_for(params["network"], synthetic).to(task.device)
    labelled = _training_images(task, synthetic)
    fit, held = (labelled.rows(rows) for rows in split(labelled.labels, VALIDATION, generator(params["seed"], "validation")))
    grid = [multiple * synthetic.rate for multiple in params["grid"]]
    arms = [name for name in params["arms"] if name != "synthetic"]
    ticker = Ticker(task.reporter, len(arms) * len(grid) * SEEDS * params["pretrain"]["steps"], "steps")
    ledger, scores = Ledger(task.work, LAYOUT, task.reporter), dict[str, list[tuple[float, float | None]]]()
    for arm in arms:
        scores[arm] = [(rate, _score(task, network, sets[arm], rate, arm, (fit, held), ticker, ledger)) for rate in grid]
    ticker.finish()
    rates = {arm: _best(arm, tried) for arm, tried in scores.items()}
    (task.out / "rates.json").write_text(json.dumps({"rates": rates, "scores": scores}, indent=1))
    edge = sorted(arm for arm, rate in rates.items() if len(grid) > 1 and rate in (min(grid), max(grid)))
    if edge:
        task.reporter.note(f"the best rate lies at an end of pretrain.lr_grid for {', '.join(edge)}: a wider grid might serve them better")
    return {"rates": rates, "learned_rate": synthetic.rate, "validation_images": len(held.labels), "at_end_of_grid": edge}


def _training_images(task: Task, synthetic: SyntheticSet) -> Labelled:
    """All of them, or those that the cells will not score on."""
    folder, place = task.input("downstream_train"), (shape_of(synthetic), synthetic.info, task.device, task.reporter.pulse)
    if (share := task.params.get("validation")) is not None:
        return load_held_out(folder, share, *place)[0]
    return load_labelled(folder, *place)


def _score(
    task: Task,
    network: FlatNetwork,
    data: SyntheticSet,
    rate: float,
    arm: str,
    parts: tuple[Labelled, Labelled],
    ticker: Ticker,
    ledger: Ledger,
) -> float | None:
    """Mean validation accuracy in percent over initialisations and label draws; None if pre-training diverges."""
    (fit, held), settings, kind, accuracies = parts, task.params["pretrain"], task.params["probe"], list[float]()
    end = ticker.done + SEEDS * settings["steps"]
    for seed in range(task.params["seed"], task.params["seed"] + SEEDS):
        if ledger.ahead():
            ticker.skip(settings["steps"])
        theta = ledger.once(functools.partial(_encoder, task, network, data, rate, arm, ticker, ledger, seed))
        if theta is None:
            ticker.skip(end - ticker.done)
            return None
        seen = Seen(network, theta.to(task.device), fit, held, ticker.pulse)
        for draw in range(DRAWS):

            def probe(seen: Seen = seen, seed: int = seed, draw: int = draw) -> float:
                rows = stratified(fit.labels, LABELS, generator(seed, "labels", draw), least=1).to(task.device)
                folds, x, y = generator(seed, "folds", draw), seen.train_x[rows], fit.labels[rows]
                return probe_accuracy(kind, x, y, seen.test_x, held.labels, fit.classes, folds, ticker.pulse, ledger)

            accuracies.append(ledger.once(probe))
    return fmean(accuracies)


def _encoder(
    task: Task, network: FlatNetwork, data: SyntheticSet, rate: float, arm: str, ticker: Ticker, ledger: Ledger, seed: int
) -> Tensor | None:
    """Parameters [P] after pre-training from one initialisation; None if it diverges."""
    words = f"{arm} at rate {rate:.3g}"
    try:
        return pretrain(network, data, rate, task.params["pretrain"], seed, words, ticker.tick, task.device, ledger=ledger).theta
    except DdcoreError as error:
        if error.code != "diverged":
            raise
        return None


def _best(arm: str, tried: list[tuple[float, float | None]]) -> float:
    """The rate with the highest score; the smaller one if two tie."""
    finite = [(score, -rate) for rate, score in tried if score is not None]
    if not finite:
        raise DdcoreError(
            "diverged",
            f"pre-training on arm {arm!r} diverged at every rate tried: {', '.join(f'{rate:.4g}' for rate, _ in tried)}",
            "give smaller multiples in pretrain.lr_grid, or one pretrain.lr",
        )
    return -max(finite)[1]
