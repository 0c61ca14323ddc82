"""Tuning reads the validation split and nothing else, chooses the best rate that did not diverge, and repeats."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ddcore.checks import DatasetFacts
from ddcore.errors import DdcoreError
from ddcore.evaluation import downstream, tune
from ddcore.evaluation.arms import load_sets, shape_of
from ddcore.evaluation.downstream import load_held_out
from ddcore.evaluation.tune import tune_rates
from ddcore.plan import plan_evaluate
from ddcore.specs import DistillSpec, EvaluateSpec
from ddcore.task import Task

World = Callable[..., Task]


def without_test(task: Task) -> Task:
    return replace(task, inputs={role: folders for role, folders in task.inputs.items() if role in ("dataset", "sets", "downstream_train")})


def test_the_plan_gives_tuning_no_test_split_and_tuning_asks_for_none(world: World) -> None:
    facts = DatasetFacts("a", {"builtin": "a"}, 1000, (1, 8, 8), (100,) * 10)
    test = DatasetFacts("b", {"builtin": "b"}, 500, (1, 8, 8), (50,) * 10)
    spec = EvaluateSpec(synthetic_set="s", downstream=({"train": "a", "test": "b"},))  # type: ignore[arg-type]
    plan = plan_evaluate(spec, DistillSpec(student={"depth": 2, "width": 8}), facts, {"a": facts, "b": test})  # type: ignore[arg-type]
    step = plan.steps["tune"]
    assert set(step.inputs) == {"dataset", "sets", "downstream_train"}
    assert not any(test.digest[:8] in name for names in step.inputs.values() for name in names)
    summary = tune_rates(without_test(world()))
    assert summary["rates"].keys() == {"random", "k_means"}


def test_probe_and_score_use_disjoint_images(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, Any]] = []
    real = tune.probe_accuracy
    monkeypatch.setattr(downstream, "features", lambda network, theta, images, pulse: images.flatten(1))

    def spy(kind: str, train_x: torch.Tensor, train_y: Any, test_x: torch.Tensor, *rest: Any) -> float:
        seen.append(({tuple(row.tolist()) for row in train_x}, {tuple(row.tolist()) for row in test_x}))
        return real(kind, train_x, train_y, test_x, *rest)

    monkeypatch.setattr(tune, "probe_accuracy", spy)
    tune_rates(without_test(world(grid=[1.0])))
    held = set.union(*(test for _, test in seen))
    assert len(held) == 32  # a fifth of 160, the same fifth every time
    assert all(not (fit & held) for fit, _ in seen)
    assert all(len(fit) == 12 for fit, _ in seen)  # a tenth of the rest, half up in each of two classes


def test_the_best_rate_wins_a_diverging_one_scores_null(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {0.025: 50.0, 0.05: 80.0, 0.1: 80.0}
    monkeypatch.setattr(tune, "_score", lambda task, network, data, rate, *rest: scores.get(round(rate, 6)))
    task = without_test(world(grid=[0.5, 1.0, 2.0, 400.0]))
    tune_rates(task)
    found = json.loads((task.out / "rates.json").read_text())
    assert found["rates"] == {"random": pytest.approx(0.05), "k_means": pytest.approx(0.05)}  # of two that tie, the smaller
    assert [score for _, score in found["scores"]["random"]] == [50.0, 80.0, 80.0, None]


def test_real_divergence_is_survived_unless_every_rate_diverges(world: World) -> None:
    task = without_test(world(grid=[1.0, 1e30]))
    tune_rates(task)
    found = json.loads((task.out / "rates.json").read_text())
    assert found["scores"]["k_means"][1][1] is None
    assert found["rates"]["k_means"] == pytest.approx(0.05)
    with pytest.raises(DdcoreError, match="'random' diverged at every rate") as caught:
        tune_rates(without_test(world(grid=[1e30])))
    assert caught.value.code == "diverged"


def test_a_best_rate_at_the_end_of_the_grid_is_noted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "_score", lambda task, network, data, rate, arm, *rest: rate if arm == "random" else -abs(rate - 0.05))
    events: list[dict[str, Any]] = []
    summary = tune_rates(without_test(world(events=events)))
    assert summary["at_end_of_grid"] == ["random"]
    assert next(event["text"] for event in events if event["type"] == "note").endswith("a wider grid might serve them better")


def test_tuning_repeats_and_its_bar_fills_even_when_a_rate_diverges(world: World) -> None:
    events: list[dict[str, Any]] = []
    first, second = without_test(world("a", events=events, grid=[1.0, 1e30])), without_test(world("b", grid=[1.0, 1e30]))
    tune_rates(first)
    tune_rates(second)
    assert (first.out / "rates.json").read_bytes() == (second.out / "rates.json").read_bytes()
    done = [event["done"] for event in events if event["type"] == "progress"]
    assert done == sorted(done)
    assert done[-1] == 2 * 2 * 2 * 12  # arms, rates, initialisations, steps


def test_tuning_does_not_see_the_images_that_cells_hold_out(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[Any] = set()
    real = tune.probe_accuracy
    monkeypatch.setattr(downstream, "features", lambda network, theta, images, pulse: images.flatten(1))

    def spy(kind: str, train_x: torch.Tensor, train_y: Any, test_x: torch.Tensor, *rest: Any) -> float:
        seen.update(tuple(row.tolist()) for part in (train_x, test_x) for row in part)
        return real(kind, train_x, train_y, test_x, *rest)

    monkeypatch.setattr(tune, "probe_accuracy", spy)
    task = without_test(world(grid=[1.0], validation=0.3))
    synthetic = load_sets(task)["synthetic"]
    summary = tune_rates(task)
    assert summary["validation_images"] == 22  # a fifth of the 112 images that are left
    _, held = load_held_out(task.input("downstream_train"), 0.3, shape_of(synthetic), synthetic.info, task.device)
    assert len(held.labels) == 48
    assert not seen & {tuple(row.tolist()) for row in held.images.flatten(1)}
