"""Masked patches: which are hidden, what the loss is, and what a hidden or a seen patch can change."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ddcore.data.images import Images
from ddcore.errors import Stopped
from ddcore.events import Reporter
from ddcore.networks.backbones import build_backbone
from ddcore.specs import BackboneSpec, DinoSpec
from ddcore.ssl.dino import Dino, centred, dino_loss, sinkhorn
from ddcore.ssl.masked import Masks, draw_hidden, encode, masked_loss
from ddcore.ssl.teacher import load_teacher
from ddcore.ssl.train import train_teacher
from ddcore.task import Task, generator

MakeTask = Callable[..., Task]

VIT = BackboneSpec(name="vit_tiny_patch4")
SPEC = DinoSpec(
    backbone=VIT, out_dim=12, hidden_dim=16, bottleneck_dim=8, masked_patches=0.7, student_temperature=0.3, teacher_temperature=0.2
)
TEACHER: dict[str, Any] = {
    **SPEC.model_dump(mode="json"),
    "batch_size": 16,
    "warmup_epochs": 0,
    "momentum": 0.9,
    "masked_patches": 1.0,
    "snapshots": 2,
}


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    torch.manual_seed(0)
    model = build_backbone(VIT, 3, (16, 16), any_size=True)
    with torch.no_grad():
        model.get_parameter("pos_embed").normal_()
    return model


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 images of 16x16: waves of several directions and lengths, so that a patch tells of its neighbours."""
    draw = torch.Generator().manual_seed(0)
    grid = torch.arange(16.0)
    turn, length = torch.rand(2, 32, 1, 1, generator=draw) * torch.tensor([2 * math.pi, 0.7]).view(2, 1, 1, 1) + 0.2
    waves = torch.sin(length * (grid.view(1, 16, 1) * turn.cos() + grid.view(1, 1, 16) * turn.sin()))
    folder: Path = tmp_path_factory.mktemp("pictures")
    images = ((waves + 1) * 127.5).round().to(torch.uint8).unsqueeze(1)
    Images(images, torch.arange(32) % 4, tuple("abcd")).save(folder / "dataset.safetensors")
    return folder


def test_half_of_the_views_hide_a_share_of_their_patches_anywhere() -> None:
    counts, places = [], torch.zeros(64)
    for seed in range(50):
        hidden = draw_hidden((0.1, 0.5), 8, 32, 32, generator(seed))
        assert (hidden.shape, hidden.dtype) == ((16, 64), torch.bool)
        own = hidden.sum(1)
        assert int((own > 0).sum()) == 8
        counts += own[own > 0].tolist()
        places += hidden.float().sum(0)
    assert (min(counts), max(counts)) == (6, 32)
    assert sum(counts) / len(counts) == pytest.approx(0.3 * 64, rel=0.05)
    assert float(places.std(correction=0) / places.mean()) < 0.2  # no place is preferred
    assert torch.equal(draw_hidden((0.1, 0.5), 8, 32, 32, generator(3)), draw_hidden((0.1, 0.5), 8, 32, 32, generator(3)))
    assert draw_hidden((0.01, 0.01), 2, 8, 8, generator(0)).sum().item() == 2  # one of four, at least


def test_the_loss_is_the_papers() -> None:
    """In loops: for each view the mean over its hidden patches of -sum_k P_t log P_s; then the mean over all views."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 4, 5, 6, generator=draw, dtype=torch.float64)
    hidden = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1], [0, 0, 0, 0, 1]], dtype=torch.bool)
    views = []
    for v in range(4):
        patches = []
        for n in range(5):
            if hidden[v, n]:
                target = [math.exp(float(g) / 0.5) for g in teacher[v, n]]
                output = [math.exp(float(g) / 0.9) for g in student[v, n]]
                patches.append(-sum(p / sum(target) * math.log(q / sum(output)) for p, q in zip(target, output, strict=True)))
        views.append(sum(patches) / len(patches) if patches else 0.0)
    masks = Masks.of(hidden, torch.device("cpu"))
    chosen = [logits.flatten(0, 1)[masks.places] for logits in (student, teacher)]
    (log_targets,) = centred([chosen[1]], torch.zeros(6, dtype=torch.float64), 0.5)
    assert float(masked_loss(chosen[0], log_targets, masks, 0.9)) == pytest.approx(sum(views) / 4, abs=1e-7)


def test_a_hidden_patch_is_not_seen_and_no_other_is_lost(vit: nn.Module) -> None:
    images, token = torch.rand(2, 3, 16, 16), torch.randn(192)
    plain, patches = encode(vit, images)
    torch.testing.assert_close(plain, vit(images))
    assert patches.shape == (2, 16, 192)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, 6] = True  # the second row's third patch
    features, found = encode(vit, images, hidden, token)
    torch.testing.assert_close(features[1], plain[1])
    assert not torch.allclose(features[0], plain[0])
    changed = images.clone()
    changed[0, :, 4:8, 8:12] = torch.rand(3, 4, 4)
    for before, after in zip((features, found), encode(vit, changed, hidden, token), strict=True):
        assert torch.equal(before, after)
    changed[0, :, 4:8, 4:8] = 0.0  # its neighbour
    assert not torch.allclose(encode(vit, changed, hidden, token)[0][0], features[0])
    assert not torch.allclose(encode(vit, images, hidden, token + 1)[0][0], features[0])
    assert not vit.get_submodule("patch_embed")._forward_hooks


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_seen_patches_are_in_no_term_and_the_teacher_sees_all(vit: nn.Module, centering: Any) -> None:
    """The whole loss from its parts: logits of hidden patches alone, the teacher's of whole images."""
    spec = SPEC.model_copy(update={"centering": centering})
    dino = Dino(spec, vit, 192, generator(0))
    with torch.no_grad():
        dino.modules["mask"].get_parameter("token").normal_(generator=generator(1))
    views = [torch.rand(3, 3, 16, 16, generator=generator(v)) for v in range(2)] + [torch.rand(3, 3, 8, 8, generator=generator(7))]
    hidden = draw_hidden((0.1, 0.5), 3, 16, 16, generator(0))
    module = dino.modules
    with torch.no_grad():
        features, patches = encode(module["backbone"], torch.cat(views[:2]), hidden, module["mask"].get_parameter("token"))
        local = module["backbone"](views[2])
        seen, whole = encode(module["teacher_backbone"], torch.cat(views[:2]))
        student = [*module["head"](features).chunk(2), module["head"](local)]
        teacher, outputs = list(module["teacher_head"](seen).chunk(2)), module["teacher_head"](whole[hidden])
        balanced = centering == "sinkhorn"
        targets = sinkhorn(teacher, 0.2) if balanced else centred(teacher, torch.zeros(12), 0.2)
        (log_targets,) = sinkhorn([outputs], 0.2) if balanced else centred([outputs], torch.zeros(12), 0.2)
        each = iter(-(log_targets.exp() * (module["head"](patches[hidden]) / 0.3).log_softmax(1)).sum(1))
        expected = sum(sum(next(each) for _ in range(n)) / n for n in hidden.sum(1).tolist() if n) / 6
    loss, figures = dino.loss(views, 0.0, hidden)
    torch.testing.assert_close(figures["masked_loss"], expected)
    torch.testing.assert_close(loss.detach(), dino_loss(student, targets, 0.3)[0] + 0.7 * expected)
    if not balanced:
        torch.testing.assert_close(dino.buffers["patch_center"], 0.1 * outputs.mean(0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(module["mask"].get_parameter("token").grad.norm()) > 0
    assert module["mask"] in dino.learning()
    assert all(p.grad is None for name in ("teacher_backbone", "teacher_head") for p in module[name].parameters())


def test_the_masked_loss_falls_and_all_else_holds(make_task: MakeTask, pictures: Path) -> None:
    """Against a teacher that hardly moves; the kept encoder is an ordinary one, and its average an average."""
    still = {"crop_scale": [1.0, 1.0], "flip": False, "jitter": 0.0, "grayscale": 0.0}
    slow = {
        **TEACHER,
        "epochs": 9,
        "lr": 1e-3,
        "momentum": 0.9999,
        "center_momentum": 0.9999,
        "teacher_temperature": 0.04,
        "augment": still,
    }
    task = make_task("a", {"teacher": slow, "seed": 0}, dataset=pictures)
    summary = train_teacher(task)
    losses = [value for _, value in json.loads((task.out / "history.json").read_text())["masked_loss"]]
    assert len(losses) == 18
    assert sum(losses[-4:]) < 0.85 * sum(losses[:4]), losses
    assert summary["ema_residual"] < 1e-5
    module, manifest = load_teacher(task.out)
    assert (manifest.feature_dim, module(torch.rand(2, 1, 16, 16)).shape) == (192, (2, 192))


def test_a_stopped_run_hides_the_same_patches(make_task: MakeTask, pictures: Path) -> None:
    params = {"teacher": {**TEACHER, "epochs": 1, "batch_size": 8}, "seed": 0}
    whole = make_task("whole", params, dataset=pictures)
    train_teacher(whole)
    polls = iter([False] * 3)
    with pytest.raises(Stopped):
        train_teacher(make_task("stopped", params, Reporter(should_stop=lambda: next(polls, True)), dataset=pictures))
    resumed = make_task("stopped", params, dataset=pictures)
    train_teacher(resumed)
    for name in ("teacher.safetensors", "trajectory.safetensors", "history.json"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes()
