"""Selections against slow definitions, and MKDT against the set it began from."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

from ddcore.data.images import Images, mean_std, normalise
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.experts.train import train_experts
from ddcore.ledger import Ledger
from ddcore.matching.adjoint import Inner, batches_of, run_inner
from ddcore.matching.cores import Core
from ddcore.matching.losses import normalised_distance
from ddcore.methods import METHODS, run_method
from ddcore.methods.k_means import nearest
from ddcore.networks.flat import build_student
from ddcore.specs import MKDTSpec, StudentSpec
from ddcore.synthetic import FILE, load_synthetic
from ddcore.task import Task, generator

STUDENT = {"name": "convnet", "depth": 1, "width": 6}
N, D = 48, 5
EXPERTS = {"lr": 0.05, "momentum": 0.5, "weight_decay": 0.0, "batch_size": 8, "ema": None}
MKDT = MKDTSpec(iterations=60, inner_steps=6, expert_epochs=1, max_start_epoch=1, batch_size=8, lr_images=3.0, lr_targets=0.1, lr_rate=1e-6)


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Images whose targets are functions of them, in three clusters; three experts of two shards."""
    root = tmp_path_factory.mktemp("material")
    make = generator(0, "material")
    images = torch.randint(256, (N, 1, 6, 6), generator=make).to(torch.uint8)
    centres = torch.tensor([[4.0, 0, 0, 0, 0], [0, 4.0, 0, 0, 0], [0, 0, 4.0, 0, 0]])
    targets = centres[torch.arange(N) % 3] + 0.3 * torch.randn(N, D, generator=make)
    for name in ("dataset", "targets"):
        (root / name).mkdir()
    Images(images, None, ()).save(root / "dataset" / "dataset.safetensors")
    save_file({"targets": targets}, root / "targets" / "targets.safetensors")
    inputs = {name: [root / name] for name in ("dataset", "targets")}
    shards = []
    for first, count in ((0, 2), (2, 1)):
        shards.append(root / f"experts-{first}")
        for folder in (shards[-1], root / f"work-{first}"):
            folder.mkdir()
        params = {"experts": EXPERTS, "student": STUDENT, "epochs": 2, "first": first, "count": count, "seed": 0}
        train_experts(Task(params, inputs, shards[-1], root / f"work-{first}", Reporter(), torch.device("cpu")))
    return root, inputs | {"experts": shards}, images, targets


@pytest.fixture
def run(material, tmp_path):
    _, inputs, _, _ = material

    def go(method, num_images=12, seed=0, init=None):
        out = tmp_path / f"{method['name']}-{num_images}-{seed}"
        for folder in (out, out / "work"):
            folder.mkdir(exist_ok=True)
        params = {"method": method, "num_images": num_images, "seed": seed, "rate": 0.05, "student": STUDENT}
        given_ = inputs | ({"init": [init]} if init else {})
        heard = []
        task = Task(params, given_, out, out / "work", Reporter(sink=heard.append), torch.device("cpu"))
        summary = run_method(task)
        return load_synthetic(out / FILE), out, summary

    return go


@pytest.mark.parametrize("name", ["random", "k_means", "high_loss"])
@pytest.mark.parametrize("m", [1, 12, N])
def test_a_selection_is_of_distinct_real_images_each_with_its_own_target(material, run, name, m):
    _, _, images, targets = material
    made, _, summary = run({"name": name}, m)
    assert len(set(made.indices.tolist())) == len(made.images) == m
    assert torch.equal((made.images * 255).round().to(torch.uint8), images[made.indices])
    assert torch.equal(made.targets, targets[made.indices])
    assert float(made.learned_lr) == pytest.approx(0.05)
    mean, std = mean_std(images)
    assert made.info == {
        "method": {"name": name}, "mean": mean, "std": std, "image_range": [float(made.images.min()), float(made.images.max())]
    }  # fmt: skip
    assert torch.allclose(made.normalised(), normalise(images[made.indices], mean, std), atol=1e-6)
    shown = {"method": name, "num_images": m, "image_shape": [1, 6, 6], "target_dim": D}
    assert {key: summary[key] for key in shown} == shown


def test_random_draws_every_image_equally_often_and_differs_by_seed(run):
    drawn = [run({"name": "random"}, seed=seed)[0].indices for seed in range(80)]
    counts = torch.bincount(torch.cat(drawn), minlength=N)
    assert counts.sum() == 80 * 12
    assert counts.min() >= 6  # each is expected 20 times, give or take 4
    assert counts.max() <= 37
    assert torch.equal(drawn[0], run({"name": "random"}, seed=0)[0].indices)
    assert not torch.equal(drawn[0], drawn[1])


def test_k_means_takes_the_image_nearest_to_each_centre(material, run):
    _, _, _, targets = material
    made, _, _ = run({"name": "k_means"}, 3)
    for cluster in range(3):
        members = [i for i in range(N) if i % 3 == cluster]
        centre = targets[members].mean(0)
        best = min(members, key=lambda i: float((targets[i] - centre).square().sum()))
        assert best in made.indices.tolist()
    again = {seed: run({"name": "k_means"}, 12, seed)[0].indices for seed in (0, 1)}
    assert torch.equal(again[0], run({"name": "k_means"}, 12, 0)[0].indices)
    assert set(again[0].tolist()) != set(again[1].tolist())


@given(arrays(np.int8, (9, 2)), arrays(np.int8, (6, 2)))
def test_the_nearest_are_chosen_greedily_and_never_twice(points, centres):
    points, centres = points.astype(float), centres.astype(float)
    free, expected = list(range(9)), []
    for centre in centres:
        expected.append(min(free, key=lambda i: (((points[i] - centre) ** 2).sum(), i)))
        free.remove(expected[-1])
    with TemporaryDirectory() as work:
        assert nearest(points, centres, Ledger(Path(work), "nearest", Reporter()), Reporter()).tolist() == expected


def test_high_loss_takes_the_images_that_experts_regress_worst_after_one_epoch(material, run):
    _, inputs, images, targets = material
    experts, network = Trajectories(inputs["experts"]), build_student(StudentSpec(**STUDENT), (1, 6, 6), D)
    pixels = normalise(images, *mean_std(images))
    scores = []
    for i in range(N):
        errors = [network(experts.row(e, 1), pixels[i : i + 1])[0] - targets[i] for e in range(3)]
        scores.append(sum(float(error.square().mean()) for error in errors) / 3)
    made, _, _ = run({"name": "high_loss"}, 12)
    assert made.indices.tolist() == sorted(range(N), key=lambda i: -scores[i])[:12]
    assert not torch.equal(made.indices, run({"name": "random"}, 12)[0].indices)


def outer_loss(made, experts, draws=20):
    """The mean matching loss over all windows, for a fixed choice of batches."""
    network = build_student(StudentSpec(**STUDENT), (1, 6, 6), D)
    total, batches = [], generator(9, "batches")
    for _ in range(draws):
        order = batches_of(len(made.images), MKDT.batch_size, MKDT.inner_steps, batches)
        for expert in range(3):
            for epoch in (0, 1):
                start, goal = experts.row(expert, epoch), experts.row(expert, epoch + 1)
                done = run_inner(Inner(Core(network), made.normalised(), made.targets, made.learned_lr, order), start)
                total.append(float(normalised_distance(done.end, start, goal)[0]))
    return sum(total) / len(total)


@pytest.mark.parametrize("init", ["random", "high_loss"])
def test_mkdt_matches_better_than_the_set_it_began_from(material, run, init):
    _, inputs, images, _ = material
    begun, folder, _ = run({"name": init}, 12)
    fields = MKDT.model_copy(update={"init": init}).model_dump(mode="json")
    made, out, summary = run(fields, 12, init=folder)
    experts = Trajectories(inputs["experts"])
    assert outer_loss(made, experts) < 0.9 * outer_loss(begun, experts)
    assert torch.equal(made.indices, begun.indices)
    assert not torch.equal(made.images, begun.images)
    assert not torch.equal(made.targets, begun.targets)
    assert made.info["method"] == fields
    assert (made.info["student"], made.info["skipped_windows"]) == (STUDENT, 0)
    assert (made.info["mean"], made.info["std"]) == mean_std(images)
    assert made.info["image_range"] == [float(made.images.min()), float(made.images.max())]
    curves = json.loads((out / "history.json").read_text())
    assert [x for x, _ in curves["matching_loss"]] == list(range(1, 61))
    assert curves["learned_lr"][-1][1] == summary["learned_lr"] == float(made.learned_lr)


def test_mkdt_that_moves_nothing_keeps_the_set_it_began_from(run):
    begun, folder, _ = run({"name": "random"}, 12)
    fields = MKDT.model_dump(mode="json") | {"lr_images": 0.0, "lr_targets": 0.0, "lr_rate": 0.0, "initial_rate": 0.2, "iterations": 3}
    made, _, _ = run(fields, 12, init=folder)
    assert torch.allclose(made.images, begun.images, atol=1e-6)
    assert torch.equal(made.targets, begun.targets)
    assert float(made.learned_lr) == pytest.approx(0.2)


def test_mkdt_learns_a_rate_for_each_layer_through_augmented_steps(run):
    begun, folder, _ = run({"name": "random"}, 12)
    fields = MKDT.model_dump(mode="json") | {"rates": "per_layer", "augment": ["shift", "cutout"], "lr_rate": 1e-4, "iterations": 5}
    made, out, summary = run(fields, 12, init=folder)
    assert made.learned_lr.shape == (3,)  # convolution, norm, linear
    assert len(set(made.rates)) == 3
    assert (summary["learned_lr"], summary["learned_lrs"]) == (made.rate, made.rates)
    assert json.loads((out / "history.json").read_text())["learned_lr"][-1][1] == pytest.approx(made.rate)
    assert begun.rates is None


def test_every_method_of_the_specs_is_in_the_table():
    assert set(METHODS) == {"mkdt", "mkdt_plus", "dino_tm", "random", "k_means", "high_loss"}
