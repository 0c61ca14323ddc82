"""The loss around an expert is that of the parameters it names; directions are as long as filters, and those of the path's own plane."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from ddcore.data.images import Images, load_dataset, mean_std, normalise
from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.experts.store import Trajectories
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.observatory import landscape as module
from ddcore.observatory.landscape import filter_normalised, landscape, path_plane
from ddcore.observatory.landscape_figures import draw_landscape
from ddcore.observatory.regression import BATCHES, Regressed, evenly, gradient_scatter, regressed
from ddcore.specs import StudentSpec
from ddcore.task import Task, generator

STUDENT = StudentSpec(width=4, depth=1)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, FlatNetwork]:
    """60 images with targets, and two experts of five snapshots, the second on a straight line."""
    root = tmp_path_factory.mktemp("experts")
    draw = torch.Generator().manual_seed(0)
    Images((torch.rand(60, 1, 8, 8, generator=draw) * 255).byte(), None, ()).save(root / "dataset.safetensors")
    save_file({"targets": torch.randn(60, 3, generator=draw)}, root / "targets.safetensors")
    network = build_student(STUDENT, (1, 8, 8), 3)
    start = network.init(draw)
    bent = start + 0.1 * torch.randn(5, network.num_parameters, generator=draw).cumsum(0)
    straight = start + torch.arange(5).unsqueeze(1) * 0.1 * torch.randn(network.num_parameters, generator=draw)
    save_file({"trajectories": torch.stack([bent, straight])}, root / "experts.safetensors")
    (root / "step.json").write_text(json.dumps({"params": {"experts": {"batch_size": 24}}}))
    inputs = {role: [root] for role in ("dataset", "targets", "experts")}
    return Task({"seed": 3}, inputs, root, root, Reporter(), torch.device("cpu")), network


def learnt_by(recorded: tuple[Task, FlatNetwork]) -> tuple[Regressed, Trajectories]:
    task, network = recorded
    return regressed(task, task.inputs["experts"], network), Trajectories(task.inputs["experts"])


def test_every_filter_of_a_direction_is_as_long_as_the_networks_own() -> None:
    network = build_student(STUDENT, (1, 8, 8), 3)
    theta = network.init(torch.Generator().manual_seed(1))
    direction = filter_normalised(network, theta, torch.Generator().manual_seed(2))
    moved = 0
    for own, new in zip(network.split(theta).values(), network.split(direction).values(), strict=True):
        if own.ndim == 1:
            assert not new.any()
            continue
        for a, b in zip(own, new, strict=True):
            assert float(b.norm()) == pytest.approx(float(a.norm()), rel=1e-5)
            moved += 1
    assert moved == 4 + 3  # filters of the convolution, rows of the linear layer
    assert not torch.equal(direction, filter_normalised(network, theta, torch.Generator().manual_seed(4)))


def test_the_paths_plane_is_the_svd_of_its_moves_from_the_end(recorded: tuple[Task, FlatNetwork]) -> None:
    _, store = learnt_by(recorded)
    path = torch.stack([store.row(0, t) for t in range(5)]).double().numpy()
    u, s, _ = np.linalg.svd(path - path[-1], full_matrices=False)
    plane = path_plane(store, 0, Reporter())
    found, expected = plane.path.numpy(), u[:, :2] * s[:2]
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-4, atol=1e-6)
    assert found[0, 0] < 0  # from left to right
    np.testing.assert_allclose(found[-1], 0, atol=1e-6)
    directions = plane.directions.double().numpy()
    np.testing.assert_allclose(directions @ directions.T, np.eye(2), atol=1e-5)
    np.testing.assert_allclose((path - path[-1]) @ directions.T, found, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(plane.explained, (s**2 / (s**2).sum())[:2], rtol=1e-5)
    line = path_plane(store, 1, Reporter())
    assert line.explained[0] == pytest.approx(1.0, abs=1e-6)
    assert not line.path[:, 1].abs().gt(1e-2).any()


def test_losses_are_those_of_the_parameters_they_name(recorded: tuple[Task, FlatNetwork], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SIDE", 5)
    monkeypatch.setattr(module, "POINTS", 8)
    (task, network), (learnt, store) = recorded, learnt_by(recorded)
    found = landscape(learnt, store, 0, 3, Reporter())
    pixels = load_dataset(task.input("dataset")).images
    assert found["images"] == 60
    x = normalise(pixels, *mean_std(pixels))

    def loss(theta: torch.Tensor) -> float:
        with torch.no_grad():
            return float(functional.mse_loss(network(theta, x), learnt.data.targets))

    assert found["path"]["epoch"] == [place / 2 for place in range(9)]
    for epoch, value in zip(found["path"]["epoch"], found["path"]["loss"], strict=True):
        before, part = min(int(epoch), 3), epoch - min(int(epoch), 3)
        theta = (1 - part) * store.row(0, before) + part * store.row(0, before + 1)
        assert value == pytest.approx(loss(theta), rel=1e-4)
    end, random = store.row(0, 4), generator(3, "observe", "landscape")
    torch.randperm(60, generator=random)  # the sample is drawn first
    chance = [filter_normalised(network, end, random) for _ in range(2)]
    for key, (first, second) in (("around", chance), ("plane", path_plane(store, 0, Reporter()).directions)):
        look = found[key]
        assert len(look["x"]) == len(look["y"]) == 5
        for row, column in ((0, 0), (1, 4), (4, 2)):
            theta = end + look["x"][column] * first + look["y"][row] * second
            assert look["loss"][row][column] == pytest.approx(loss(theta), rel=1e-4)
    assert found["around"]["loss"][2][2] == pytest.approx(found["path"]["loss"][-1], rel=1e-5)
    places = np.array(found["plane"]["path"])
    assert found["plane"]["x"][0] < places[:, 0].min() < places[:, 0].max() < found["plane"]["x"][-1]
    assert found["plane"]["y"][0] < places[:, 1].min() < places[:, 1].max() < found["plane"]["y"][-1]


def test_a_landscape_can_be_stopped_and_is_drawn_with_losses_that_are_not_finite(
    recorded: tuple[Task, FlatNetwork], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "SIDE", 3)
    learnt, store = learnt_by(recorded)
    calls = iter(range(1000))
    with pytest.raises(Stopped):
        landscape(learnt, store, 0, 3, Reporter(should_stop=lambda: next(calls) == 20))
    found = landscape(learnt, store, 1, 3, Reporter())
    draw_landscape(found, tmp_path)
    first = (tmp_path / "landscape.png").read_bytes()
    found["around"]["loss"][0][1] = None
    found["path"]["loss"][2] = None
    draw_landscape(found, tmp_path)
    assert (tmp_path / "landscape.png").read_bytes() != first
    assert json.loads((tmp_path / "landscape.json").read_text()) == found
    found["plane"]["loss"] = found["around"]["loss"] = [[1.0] * 3] * 3
    draw_landscape(found, tmp_path)


def test_gradients_scatter_as_those_of_the_batches_drawn(recorded: tuple[Task, FlatNetwork]) -> None:
    (_, network), (learnt, store) = recorded, learnt_by(recorded)
    assert learnt.batch_size == 24
    found = gradient_scatter(learnt, store, 0, 3, Reporter())
    assert found["epoch"] == [0, 1, 2, 3, 4]
    images = learnt.data.images.batch(torch.arange(60))
    random, rows = generator(3, "observe", "gradient noise", 2), []
    for _ in range(BATCHES):
        batch = torch.randperm(60, generator=random)[:24]
        theta = store.row(0, 2).clone().requires_grad_(True)
        functional.mse_loss(network(theta, images[batch]), learnt.data.targets[batch]).backward()
        assert theta.grad is not None
        rows.append(theta.grad.double())
    whole = torch.stack(rows)
    for key, gradients in (("all", whole), ("encoder", whole[:, : network.num_parameters - network.layer_sizes[-1]])):
        noise, products = gradients.var(0, correction=1).sum(), gradients @ gradients.T
        signal = (products.sum() - products.trace()) / (BATCHES * (BATCHES - 1))
        assert found[key][2] == pytest.approx(float((noise / signal).sqrt()), rel=1e-4)


def test_many_snapshots_are_thinned_evenly() -> None:
    assert evenly(41, 9) == list(range(0, 41, 5))
    assert evenly(4, 9) == [0, 1, 2, 3]
