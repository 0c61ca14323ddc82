"""One cell of an evaluation: one network and one seed; every arm pre-trained and measured on every task."""

import json
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ddcore.evaluation.arms import Arm, arms_of, network_for, network_name, shape_of
from ddcore.evaluation.downstream import Labelled, Seen, load_held_out, load_pair
from ddcore.evaluation.draws import stratified
from ddcore.evaluation.knn import knn_accuracy
from ddcore.evaluation.pretrain import Pretrained, initial, pretrain
from ddcore.evaluation.probes import probe_accuracy
from ddcore.evaluation.progress import Ticker
from ddcore.ledger import Ledger
from ddcore.networks.flat import FlatNetwork
from ddcore.synthetic import SyntheticSet
from ddcore.task import Task, generator

LAYOUT = "evaluate 2"  # of checkpoints

Record = dict[str, Any]
Draw = tuple[float, int, Tensor]  # fraction, number of the draw, rows that keep their label


def evaluate_cell(task: Task) -> dict[str, Any]:
    """Step `evaluate`: writes scores.json, one record for each arm, task, fraction, label draw and probe (accuracy in percent).

    Within a cell all arms share the initialisation, the order of batches and the drawn labels, so that their differences pair.
    Raises `DdcoreError` diverged, naming arm and rate, if pre-training of any arm does.
    """
    params, arms = task.params, arms_of(task)
    data = next(arm.data for arm in arms if arm.data is not None)
    network = network_for(params["network"], data).to(task.device)
    tasks = len(task.inputs["downstream_train"])
    pretraining = sum(arm.data is not None for arm in arms) * params["pretrain"]["steps"]
    ticker = Ticker(task.reporter, pretraining + tasks * len(arms) * (1 + _draws_in_all(params)), "steps")
    ledger = Ledger(task.work, LAYOUT, task.reporter)
    trained = _train_all(task, network, arms, ticker, ledger)
    records: list[Record] = []
    for number in range(tasks):
        train, test = _halves(task, number, data)
        draws = _draws(params, train, number)
        for arm in arms:
            seen = Seen(network, trained[arm.name].theta, train, test, ticker.pulse)
            common = {"arm": arm.name, "task": number, "rate": arm.rate} | ({} if arm.by_layer is None else {"by_layer": True})
            records += [common | record for record in _score(task, seen, draws, number, arm.name, ticker, ledger)]
    ticker.finish()
    return _write(task, records, trained)


def _halves(task: Task, number: int, data: SyntheticSet) -> tuple[Labelled, Labelled]:
    """What probes of one task are fitted and scored on: its two datasets, or two parts of the first where `validation` is given."""
    train, place = task.inputs["downstream_train"][number], (shape_of(data), data.info, task.device, task.reporter.pulse)
    if (share := task.params.get("validation")) is not None:
        return load_held_out(train, share, *place)
    return load_pair(train, task.inputs["downstream_test"][number], *place)


def _write(task: Task, records: list[Record], trained: dict[str, Pretrained]) -> dict[str, Any]:
    name, seed = network_name(task.params["network"]), task.params["seed"]
    losses = {arm: {"first": one.first_loss, "last": one.last_loss} for arm, one in trained.items() if one.first_loss is not None}
    rows = [{"network": name, "seed": seed} | record for record in records]
    (task.out / "scores.json").write_text(json.dumps({"records": rows, "pretraining_loss": losses}, indent=1))
    accuracy = {arm: round(fmean(r["accuracy"] for r in records if r["arm"] == arm and r["probe"] != "knn"), 2) for arm in trained}
    return {"network": name, "seed": seed, "records": len(records), "mean_probe_accuracy": accuracy, "pretraining_loss": losses}


def _train_all(task: Task, network: FlatNetwork, arms: list[Arm], ticker: Ticker, ledger: Ledger) -> dict[str, Pretrained]:
    """Each arm's encoder, in order."""
    seed, settings = task.params["seed"], task.params["pretrain"]
    trained = {}
    for arm in arms:
        if arm.data is None or arm.rate is None:
            trained[arm.name] = Pretrained(initial(network, seed, task.device))
            continue
        if ledger.ahead():
            ticker.skip(settings["steps"])

        def encoder(data: SyntheticSet = arm.data, rate: float = arm.rate, arm: Arm = arm) -> tuple[Tensor, list[float | None]]:
            one = pretrain(network, data, rate, settings, seed, arm.name, ticker.tick, task.device, arm.by_layer, ledger)
            if one.first_loss is not None and one.last_loss is not None and one.last_loss > one.first_loss:
                task.reporter.note(f"the loss of {arm.name} rose from {one.first_loss:.4g} to {one.last_loss:.4g} at rate {rate:.4g}")
            return one.theta, [one.first_loss, one.last_loss]

        theta, (first, last) = ledger.once(encoder)
        trained[arm.name] = Pretrained(theta.to(task.device), first, last)
    return trained


def _draws_in_all(params: dict[str, Any]) -> int:
    return sum(_draws_of(params, fraction) for fraction in params["label_fractions"])


def _draws_of(params: dict[str, Any], fraction: float) -> int:
    draws: int = params["label_draws"] if fraction < 1 else 1
    return draws


def _draws(params: dict[str, Any], train: Labelled, number: int) -> list[Draw]:
    """The labels of task `number` that each draw keeps, the same for every arm of this seed."""
    draws = []
    for fraction in params["label_fractions"]:
        for draw in range(_draws_of(params, fraction)):
            rows = stratified(train.labels, fraction, generator(params["seed"], "labels", number, f"{fraction:g}", draw))
            draws.append((fraction, draw, rows.to(train.labels.device)))
    return draws


def _score(task: Task, seen: Seen, draws: list[Draw], number: int, arm: str, ticker: Ticker, ledger: Ledger) -> list[Record]:
    """The linear probe at every draw, then k-NN with all training labels."""
    train, test = seen.train, seen.test
    kind, seed = task.params["probe"], task.params["seed"]
    records: list[Record] = []
    for fraction, draw, rows in draws:
        ticker.tick(f"linear probe on {arm}, {fraction:.0%} of the labels")
        folds = generator(seed, "folds", number, f"{fraction:g}", draw)

        def probe(rows: Tensor = rows, folds: torch.Generator = folds) -> float:
            x, y = seen.train_x[rows], train.labels[rows]
            return probe_accuracy(kind, x, y, seen.test_x, test.labels, train.classes, folds, ticker.pulse, ledger)

        records.append({"fraction": fraction, "draw": draw, "probe": kind, "accuracy": ledger.once(probe)})
    ticker.tick(f"nearest neighbours on {arm}")
    k, pulse = task.params["knn"], ticker.pulse
    accuracy = ledger.once(lambda: knn_accuracy(seen.train_x, train.labels, seen.test_x, test.labels, k, pulse=pulse))
    return [*records, {"fraction": 1.0, "draw": 0, "probe": "knn", "accuracy": accuracy}]
