"""Staged targets: a DINO run's teacher at moments of its run, and experts that follow it from one to the next."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file

from ddcore.data.images import Images, load_dataset, mean_std, normalise
from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.experts import train
from ddcore.experts.store import Trajectories
from ddcore.experts.train import train_experts
from ddcore.networks.backbones import build_backbone
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import build_student
from ddcore.specs import BackboneSpec, StudentSpec
from ddcore.ssl import targets as targets_step
from ddcore.ssl.targets import compute_targets, stage_targets, standardise
from ddcore.ssl.teacher import load_teacher
from ddcore.ssl.train import train_teacher
from ddcore.task import Task, generator

COUNT, SHAPE = 20, (1, 8, 8)
STUDENT = {"name": "convnet", "depth": 1, "width": 4}
SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "batch_size": 8, "ema": None}
BACKBONES = {"convnet": {"name": "convnet", "width": 4, "depth": 2}, "resnet18": {"name": "resnet18", "width": 4, "depth": 3}}


class World:
    """Folders of finished steps: a DINO teacher of five snapshots, its targets, its stages."""

    def __init__(self, root, backbone):
        self.root = root
        images = torch.randint(256, (COUNT, *SHAPE), generator=generator(0, "world")).to(torch.uint8)
        (root / "dataset").mkdir()
        Images(images, None, ()).save(root / "dataset" / "dataset.safetensors")
        self.images = images
        dino = {
            "ssl": "dino", "backbone": backbone, "epochs": 8, "batch_size": 10, "lr": 0.01, "warmup_epochs": 0, "out_dim": 16,
            "hidden_dim": 16, "bottleneck_dim": 8, "momentum": 0.6, "snapshots": 5, "augment": {"jitter": 0.0, "grayscale": 0.0},
        }  # fmt: skip
        self.run("teacher", train_teacher, {"teacher": dino, "seed": 1}, "dataset")
        self.run("targets", compute_targets, {}, "dataset", "teacher")

    def run(self, name, step, params, *inputs, reporter=None, **roles):
        for folder in (self.root / name, self.root / f"work-{name}"):
            folder.mkdir(exist_ok=True)
        given = {role: [self.root / role] for role in inputs} | {role: [self.root / folder] for role, folder in roles.items()}
        task = Task(params, given, self.root / name, self.root / f"work-{name}", reporter or Reporter(), torch.device("cpu"))
        return step(task)

    def stages(self, count, name="stages"):
        summary = self.run(name, compute_targets, {"stages": count}, "dataset", "teacher")
        return load_file(self.root / name / "targets.safetensors"), summary


@pytest.fixture(scope="module", params=BACKBONES)
def world(request, tmp_path_factory):
    return World(tmp_path_factory.mktemp(request.param), BACKBONES[request.param])


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    made = World(tmp_path_factory.mktemp("stages"), BACKBONES["convnet"])
    made.stages(3)
    return made


def test_the_last_stage_is_the_finished_teachers_targets_bit_for_bit_and_the_others_are_not(world):
    stages, summary = world.stages(4)
    final = load_file(world.root / "targets" / "targets.safetensors")["targets"]
    assert set(stages) == {f"stage-{n}" for n in (1, 2, 3, 4)}
    assert torch.equal(stages["stage-4"], final)
    for stage in (1, 2, 3):
        assert not torch.allclose(stages[f"stage-{stage}"], final, atol=0.01)
    assert summary == {"num_images": COUNT, "target_dim": final.shape[1], "stages": 4}


def test_every_stage_is_standardised_by_itself(world):
    for stage in world.stages(4)[0].values():
        assert stage.mean(0).abs().max() < 1e-5
        varies = (stage != 0).any(0)
        torch.testing.assert_close(stage.std(0, correction=0)[varies], torch.ones(int(varies.sum())), rtol=0, atol=1e-4)


def at_snapshot(world, number):
    """The teacher's moving average at a snapshot, with running statistics of the whole data set as one batch; and its features."""
    _, manifest = load_teacher(world.root / "teacher")
    vector = load_file(world.root / "teacher" / "trajectory.safetensors")["teacher"][number]
    fresh = build_backbone(BackboneSpec(**manifest.backbone), 1, (8, 8))
    torch.nn.utils.vector_to_parameters(vector.clone(), fresh.parameters())
    x = normalise(world.images, manifest.mean, manifest.std)
    norms = [part for part in fresh.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
        fresh.train()(x)
        return fresh.eval()(x), norms


@pytest.mark.parametrize(("stages", "places"), [(4, [1, 2, 3]), (2, [2])])
def test_stages_are_evenly_spaced_snapshots_of_the_moving_average(world, stages, places):
    found, _ = world.stages(stages, f"stages-{stages}")
    for stage, place in enumerate(places, 1):
        expected = standardise(at_snapshot(world, place)[0])[0]
        torch.testing.assert_close(found[f"stage-{stage}"], expected, rtol=1e-3, atol=2e-3)


def test_a_teacher_with_batch_norm_is_among_them_and_its_statistics_are_of_each_stage(tmp_path):
    made = World(tmp_path, BACKBONES["resnet18"])
    assert at_snapshot(made, 1)[1]  # else the tests above would tell nothing of it
    stages, _ = made.stages(4)
    module, manifest = load_teacher(made.root / "teacher")
    careless = copy.deepcopy(module)
    vector = load_file(made.root / "teacher" / "trajectory.safetensors")["teacher"][1]
    torch.nn.utils.vector_to_parameters(vector.clone(), careless.parameters())
    with torch.no_grad():
        stale = standardise(careless(normalise(made.images, manifest.mean, manifest.std)))[0]
    assert not torch.allclose(stages["stage-1"], stale, atol=0.05)


def test_a_rest_of_one_image_is_no_batch_to_measure_statistics_on(tmp_path, monkeypatch):
    made = World(tmp_path, BACKBONES["resnet18"])
    monkeypatch.setattr(targets_step, "BATCH", COUNT - 1)
    stages, _ = made.stages(2)
    assert all(torch.isfinite(stage).all() for stage in stages.values())


@pytest.mark.parametrize(
    ("stages", "epochs", "expected"),
    [
        (3, 6, [1, 1, 2, 2, 3, 3]),
        (3, 3, [1, 2, 3]),
        (3, 7, [1, 1, 1, 2, 2, 3, 3]),
        (3, 2, [1, 2]),
    ],
)
def test_stages_share_the_epochs_and_the_last_goes_on(convnet, stages, epochs, expected):
    found = load_file(convnet.root / "stages" / "targets.safetensors")
    assert len(found) == stages
    for epoch, stage in enumerate(expected):
        assert torch.equal(stage_targets(convnet.root / "stages", epoch, epochs), found[f"stage-{stage}"])
    assert torch.equal(stage_targets(convnet.root / "stages", epochs + 40, epochs), found["stage-3"])


def experts(world, name="experts", count=2, epochs=6, reporter=None, sgd=None, **more):
    params = {"experts": SGD | (sgd or {}), "student": STUDENT, "epochs": epochs, "first": 0, "count": count, "seed": 4, "path": "staged"}
    world.run(name, train_experts, params | more, "dataset", "targets", "stages", reporter=reporter)
    found = Trajectories([world.root / name])
    paths = torch.stack([torch.stack([found.row(i, t) for t in range(epochs + 1)]) for i in range(count)])
    return paths, json.loads((world.root / name / "history.json").read_text())["loss"]


def by_hand(world, index, schedule):
    """Expert `index` by torch.optim.SGD, with the targets of stage `schedule[epoch]` in each epoch."""
    stages = load_file(world.root / "stages" / "targets.safetensors")
    dim = stages["stage-1"].shape[1]
    mean, std = mean_std(load_dataset(world.root / "dataset" / "dataset.safetensors").images)
    random, net = generator(4, "expert", index), ConvNet(*SHAPE, dim, 1, 4)
    torch.nn.utils.vector_to_parameters(build_student(StudentSpec(**STUDENT), SHAPE, dim).init(random), net.parameters())
    optimiser = torch.optim.SGD(net.parameters(), **{k: SGD[k] for k in ("lr", "momentum", "weight_decay")})
    thetas, losses = [torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone()], []
    for stage in schedule:
        total = 0.0
        for batch in torch.randperm(COUNT, generator=random).split(SGD["batch_size"]):
            loss = ((net(normalise(world.images[batch], mean, std)) - stages[f"stage-{stage}"][batch]) ** 2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(batch)
        thetas.append(torch.nn.utils.parameters_to_vector(net.parameters()).detach().clone())
        losses.append(total / COUNT)
    return torch.stack(thetas), losses


@pytest.mark.parametrize(
    ("more", "schedule"),
    [({}, [1, 1, 2, 2, 3, 3]), ({"stage_epochs": 3}, [1, 2, 3, 3, 3, 3])],
    ids=["over all epochs", "and then for the lag"],
)
def test_an_expert_follows_stage_after_stage(convnet, more, schedule):
    paths, losses = experts(convnet, f"hand-{len(more)}", **more)
    for index in range(2):
        thetas, expected = by_hand(convnet, index, schedule)
        assert torch.allclose(paths[index], thetas, rtol=1e-4, atol=1e-5)
        assert losses[index] == pytest.approx(expected, rel=1e-4)
    other, _ = by_hand(convnet, 0, [3] * 6)
    assert not torch.allclose(paths[0, 1], other[1], atol=1e-3)


@pytest.mark.parametrize("together", [1, 2])
def test_staged_experts_that_are_stopped_anywhere_resume_bit_for_bit(convnet, monkeypatch, together):
    monkeypatch.setattr(train, "in_flight", lambda *_: together)
    sgd = {"ema": 0.7}
    straight, losses = experts(convnet, f"straight-{together}", count=3, sgd=sgd)
    for calls in (0, 8, 5, 20):  # in the second and third epoch, whose stages are not the first
        left = iter(range(calls))
        reporter = Reporter(should_stop=lambda left=left: next(left, None) is None)
        with pytest.raises(Stopped):
            experts(convnet, f"resumed-{together}", count=3, sgd=sgd, reporter=reporter)
    resumed, again = experts(convnet, f"resumed-{together}", count=3, sgd=sgd)
    assert torch.equal(resumed, straight)
    assert again == losses


def test_a_second_expert_begins_with_the_first_stage_again(convnet):
    """Targets are changed in place, so an expert must not find those of the one before it."""
    both, _ = experts(convnet, "both", epochs=3)
    params = {"experts": SGD, "student": STUDENT, "epochs": 3, "first": 1, "count": 1, "seed": 4, "path": "staged"}
    convnet.run("second", train_experts, params, "dataset", "targets", "stages")
    alone = Trajectories([convnet.root / "second"])
    assert torch.equal(torch.stack([alone.row(0, t) for t in range(4)]), both[1])
