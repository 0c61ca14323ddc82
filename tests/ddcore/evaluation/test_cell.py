"""A cell scores every arm on the same terms, repeats exactly, and fails with the arm's name when an arm does."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from ddcore.data.images import Images, load_dataset
from ddcore.errors import DdcoreError, Stopped
from ddcore.evaluation import cell, downstream
from ddcore.evaluation.arms import arms_of
from ddcore.evaluation.cell import evaluate_cell
from ddcore.events import Reporter
from ddcore.specs import StudentSpec
from ddcore.synthetic import SyntheticSet, load_synthetic
from ddcore.task import Task
from tests.ddcore.evaluation.conftest import NETWORK, make_set

World = Callable[..., Task]


def records_of(task: Task) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((task.out / "scores.json").read_text())["records"]
    return found


def test_every_arm_is_scored_at_every_fraction_draw_and_probe(world: World) -> None:
    task = world(label_fractions=[0.05, 1.0])
    evaluate_cell(task)
    records = records_of(task)
    arms = {"synthetic", "synthetic_8bit", "random", "k_means", "none"}
    for arm in arms:
        places = [(r["fraction"], r["draw"], r["probe"]) for r in records if r["arm"] == arm]
        assert places == [(0.05, 0, "ridge"), (0.05, 1, "ridge"), (1.0, 0, "ridge"), (1.0, 0, "knn")]
    assert {r["arm"] for r in records} == arms
    assert all(0 <= r["accuracy"] <= 100 and r["network"] == "convnet-1x8" and r["seed"] == 3 and r["task"] == 0 for r in records)
    assert min(r["accuracy"] for r in records if r["fraction"] == 1.0) > 60  # stripes can be told apart


def test_rates_come_from_the_set_from_tuning_or_from_the_spec(world: World) -> None:
    rates = {arm.name: arm.rate for arm in arms_of(world())}
    assert rates == {"synthetic": pytest.approx(0.05), "synthetic_8bit": pytest.approx(0.05), "random": 0.02, "k_means": 0.02, "none": None}
    task = world()
    task.inputs["rates"] = []
    given = replace(task, params=task.params | {"pretrain": task.params["pretrain"] | {"lr": 0.7}, "rounding": False, "untrained": False})
    assert {arm.name: arm.rate for arm in arms_of(given)} == {"synthetic": 0.7, "random": 0.7, "k_means": 0.7}


def test_layers_rates_serve_the_student_they_were_learned_with_and_others_get_their_mean(world: World) -> None:
    rates = torch.tensor([0.2, 0.05, 0.01])
    plain = make_set(0)
    sets = {"synthetic": replace(plain, learned_lr=rates, info=plain.info | {"student": NETWORK}), "random": make_set(1)}
    task = world(sets=sets)
    evaluate_cell(task)
    own = {arm.name: arm for arm in arms_of(task)}
    for arm in ("synthetic", "synthetic_8bit"):
        assert own[arm].by_layer is not None
        assert torch.equal(own[arm].by_layer, rates)
        assert own[arm].rate == pytest.approx(0.1 * 0.1 ** (1 / 3))
    assert own["random"].by_layer is None
    assert {record["arm"] for record in records_of(task) if record.get("by_layer")} == {"synthetic", "synthetic_8bit"}
    for other in ({"name": "resnet10", "width": 4}, NETWORK | {"width": 4}):
        others = arms_of(world(sets=sets, network=StudentSpec(**other).model_dump()))
        assert all(arm.by_layer is None for arm in others)
        assert others[0].rate == own["synthetic"].rate
    given = arms_of(world(sets=sets, pretrain={**task.params["pretrain"], "lr": 0.3}))
    assert (given[0].rate, given[0].by_layer) == (0.3, None)


@pytest.mark.parametrize(
    ("fields", "name"), [({"name": "resnet10", "width": 4}, "resnet10-4"), ({"name": "vit_tiny", "width": 6, "depth": 1}, "vit_tiny-1x6")]
)
def test_other_architectures_are_evaluated_too(world: World, fields: dict[str, Any], name: str) -> None:
    task = world(network=StudentSpec(**fields).model_dump(), rounding=False, label_fractions=[0.5], label_draws=1)
    assert evaluate_cell(task)["network"] == name
    assert len(records_of(task)) == 4 * 2


def test_equal_sets_at_equal_rates_score_equally_so_that_differences_pair(world: World) -> None:
    """Initialisation, batches and drawn labels are shared: two arms with one and the same set cannot differ."""
    same = load_synthetic(world().inputs["sets"][0] / "synthetic.safetensors")
    task = world("twins", sets={"synthetic": same, "random": same}, pretrain={**world().params["pretrain"], "lr": 0.05})
    evaluate_cell(task)
    by_arm = {arm: [r["accuracy"] for r in records_of(task) if r["arm"] == arm] for arm in ("synthetic", "random", "none")}
    assert by_arm["synthetic"] == by_arm["random"]
    assert by_arm["synthetic"] != by_arm["none"]


def test_a_cell_repeats_exactly_and_another_seed_differs(world: World) -> None:
    first, second, other = world("a"), world("b"), world("c", seed=4)
    for task in (first, second, other):
        evaluate_cell(task)
    assert (first.out / "scores.json").read_bytes() == (second.out / "scores.json").read_bytes()
    assert [r["accuracy"] for r in records_of(first)] != [r["accuracy"] for r in records_of(other)]


def test_scores_come_from_the_test_images(world: World) -> None:
    task = world(untrained=False)
    test = load_dataset(task.input("downstream_test"))
    assert test.labels is not None
    Images(test.images, 1 - test.labels, test.classes).save(task.input("downstream_test") / "dataset.safetensors")
    evaluate_cell(task)
    assert max(r["accuracy"] for r in records_of(task) if r["fraction"] == 0.5) < 50  # the true labels turned round


def test_images_of_another_shape_are_fitted(world: World) -> None:
    task = world()
    for role in ("downstream_train", "downstream_test"):
        data = load_dataset(task.input(role))
        large = data.images.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1).contiguous()
        Images(large, data.labels, data.classes).save(task.input(role) / "dataset.safetensors")
    evaluate_cell(task)
    assert min(r["accuracy"] for r in records_of(task) if r["fraction"] == 0.5) > 60


def test_a_diverging_arm_is_named_with_its_rate(world: World) -> None:
    task = world()
    (task.input("rates") / "rates.json").write_text(json.dumps({"rates": {"random": 1e30, "k_means": 0.02}}))
    with pytest.raises(DdcoreError, match=r"'random'.*1e\+30") as caught:
        evaluate_cell(task)
    assert caught.value.code == "diverged"
    assert not (task.out / "scores.json").exists()


def test_a_rising_loss_is_noted(world: World) -> None:
    events: list[dict[str, Any]] = []
    task = world(events=events, pretrain={**world().params["pretrain"], "lr": 2.0, "steps": 3})
    evaluate_cell(task)
    assert any(event["type"] == "note" and "rose" in event["text"] for event in events)


def test_progress_is_one_bar_that_fills(world: World) -> None:
    events: list[dict[str, Any]] = []
    clock = iter(range(10**6))
    task = world()
    evaluate_cell(replace(task, reporter=Reporter(sink=events.append, clock=lambda: float(next(clock)))))
    bar = [event for event in events if event["type"] == "progress"]
    done = [event["done"] for event in bar]
    assert done == sorted(done)
    assert len({event["total"] for event in bar}) == 1
    assert done[-1] == bar[-1]["total"]
    assert done[-2] == done[-1] - 1  # nothing was left uncounted


def test_a_stopped_cell_resumes_to_the_same_scores(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, halves = world("whole"), replace(world("halves"), reporter=Reporter(checkpoint_seconds=0.0))
    evaluate_cell(whole)
    trained: list[str] = []
    real = cell.pretrain

    def spy(*given: Any) -> Any:
        trained.append(given[5])
        if trained == ["synthetic", "synthetic_8bit", "random"]:
            raise Stopped
        return real(*given)

    monkeypatch.setattr(cell, "pretrain", spy)
    with pytest.raises(Stopped):
        evaluate_cell(halves)
    evaluate_cell(halves)
    assert trained == ["synthetic", "synthetic_8bit", "random", "random", "k_means"]
    assert (whole.out / "scores.json").read_bytes() == (halves.out / "scores.json").read_bytes()


def test_sets_of_different_sizes_are_not_compared(world: World) -> None:
    one = load_synthetic(world().inputs["sets"][0] / "synthetic.safetensors")
    fewer = SyntheticSet(one.images[:5], one.targets[:5], one.learned_lr, one.indices[:5], one.info)
    with pytest.raises(DdcoreError, match="differ in size"):
        evaluate_cell(world("odd", sets={"synthetic": one, "random": fewer}))


@pytest.mark.parametrize(
    ("labels", "classes", "words"), [(None, (), "no labels"), (torch.arange(60) % 2, ("across", "up"), "different classes: down, up")]
)
def test_a_test_set_that_cannot_be_scored_is_refused(
    world: World, labels: torch.Tensor | None, classes: tuple[str, ...], words: str
) -> None:
    task = world()
    data = load_dataset(task.input("downstream_test"))
    Images(data.images, labels, classes).save(task.input("downstream_test") / "dataset.safetensors")
    with pytest.raises(DdcoreError, match=words) as caught:
        evaluate_cell(task)
    assert caught.value.code == "bad_dataset"


def test_a_validation_split_scores_on_training_images_that_no_probe_is_fitted_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[set[Any], set[Any]]] = []
    real = cell.probe_accuracy
    monkeypatch.setattr(downstream, "features", lambda network, theta, images, pulse: images.flatten(1))

    def spy(kind: str, train_x: torch.Tensor, train_y: Any, test_x: torch.Tensor, *rest: Any) -> float:
        seen.append(({tuple(row.tolist()) for row in train_x}, {tuple(row.tolist()) for row in test_x}))
        return real(kind, train_x, train_y, test_x, *rest)

    monkeypatch.setattr(cell, "probe_accuracy", spy)
    for seed in (3, 4):
        task = world(f"seed-{seed}", seed=seed, validation=0.3, label_fractions=[0.5, 1.0], label_draws=1)
        del task.inputs["downstream_test"]
        evaluate_cell(task)
    held = set.union(*(test for _, test in seen))
    assert len(held) == 48  # three tenths of 160, the same for every seed
    assert all(test == held and not (fit & held) for fit, test in seen)
    assert {len(fit) for fit, _ in seen} == {56, 112}
