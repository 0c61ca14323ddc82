"""DINO: the loss against a loop over the paper's equations, schedules, and the identities of the moving average."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from ddcore.specs import DinoSpec
from ddcore.ssl.dino import Dino, DinoHead, centred, dino_loss, ema_update, momentum_at, sinkhorn, teacher_temperature_at, update_center
from ddcore.ssl.koleo import koleo_loss
from ddcore.ssl.objective import Siamese
from ddcore.task import generator


def logits(views: int, batch: int = 5, width: int = 7, seed: int = 0) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, width, generator=draw, dtype=torch.float64) for _ in range(views)]


def softmax(values: list[float], temperature: float) -> list[float]:
    weights = [math.exp(value / temperature) for value in values]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("views", [2, 5])
def test_the_loss_is_the_papers(views: int) -> None:
    """Equation 3: for every teacher's view and every other of the student's, -sum_k P_t log P_s; algorithm 1 for the centring."""
    student, teacher, center = logits(views), logits(2, seed=1), logits(1, 1, seed=2)[0][0]
    pairs, entropies = [], []
    for t in range(2):
        for b in range(5):
            target = softmax([float(g - c) for g, c in zip(teacher[t][b], center, strict=True)], 0.5)
            entropies.append(-sum(p * math.log(p) for p in target))
            for s in range(views):
                if s != t:
                    output = softmax([float(g) for g in student[s][b]], 0.9)
                    pairs.append(-sum(p * math.log(q) for p, q in zip(target, output, strict=True)))
    loss, entropy = dino_loss(student, centred(teacher, center, 0.5), 0.9)
    assert float(loss) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert float(entropy) == pytest.approx(sum(entropies) / len(entropies), abs=1e-12)


def test_no_gradient_reaches_the_teacher() -> None:
    student, teacher = logits(2), logits(2, seed=1)
    for tensor in (*student, *teacher):
        tensor.requires_grad_()
    for targets in (centred(teacher, torch.zeros(7), 0.04), sinkhorn(teacher, 0.04)):
        dino_loss(student, targets, 0.1)[0].backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None for tensor in student)
    assert all(tensor.grad is None for tensor in teacher)


def test_the_center_is_a_moving_average_of_the_teachers_logits() -> None:
    center, teacher = torch.full((7,), 2.0, dtype=torch.float64), logits(2)
    expected = [0.9 * 2.0 + 0.1 * sum(float(teacher[v][b][k]) for v in range(2) for b in range(5)) / 10 for k in range(7)]
    update_center(center, teacher, 0.9)
    assert center.tolist() == pytest.approx(expected)


def test_sinkhorn_is_the_papers() -> None:
    """SwAV's algorithm 1 in loops: three times, each prototype to 1/K of the whole, then each image to 1/B of it."""
    teacher = logits(2)
    q = [[math.exp(float(value) / 0.3) for value in row] for view in teacher for row in view]
    images, prototypes = len(q), len(q[0])
    for _ in range(3):
        for k in range(prototypes):
            column = sum(row[k] for row in q)
            for row in q:
                row[k] /= column * prototypes
        for row in q:
            whole = sum(row)
            row[:] = [value / (whole * images) for value in row]
    expected = torch.tensor(q, dtype=torch.float64) * images
    torch.testing.assert_close(torch.cat(sinkhorn(teacher, 0.3)).exp(), expected, rtol=1e-10, atol=1e-12)


def test_sinkhorn_balances_prototypes_and_keeps_distributions() -> None:
    """Whatever the teacher prefers: here one prototype, by far, and at a temperature whose exponentials float32 cannot hold."""
    teacher = [(view + 3 * torch.eye(7, dtype=torch.float64)[2]).float() for view in logits(2, batch=64)]
    plain = torch.cat(centred(teacher, torch.zeros(7), 0.5)).exp()
    assert float(plain.sum(0)[2]) > 0.8 * 128
    balanced = torch.cat(sinkhorn(teacher, 0.5)).exp()
    torch.testing.assert_close(balanced.sum(1), torch.ones(128))
    assert float((balanced.sum(0) * 7 / 128 - 1).abs().max()) < 0.1
    many = torch.cat(sinkhorn(teacher, 0.5, iterations=200)).exp()
    torch.testing.assert_close(many.sum(0), torch.full((7,), 128 / 7), rtol=1e-4, atol=0)
    sharp = torch.cat(sinkhorn(teacher, 1e-3)).exp()
    torch.testing.assert_close(sharp.sum(1), torch.ones(128))


def test_prototypes_are_weight_normalised() -> None:
    """Logits are cosines, whatever the length of the prototypes."""
    head = DinoHead(6, 20, 8, 4)
    x = torch.randn(3, 6)
    before = head(x)
    with torch.no_grad():
        head.prototypes.mul_(torch.rand(20, 1) + 0.5)
    torch.testing.assert_close(head(x), before)
    assert float(before.detach().abs().max()) <= 1 + 1e-6


def test_logits_and_losses_keep_full_precision_under_autocast() -> None:
    head, x = DinoHead(6, 20, 8, 4), torch.randn(3, 6)
    seen = []

    def compare(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        seen.append((first @ second.T).dtype)
        return first.sum()

    siamese = Siamese(nn.Linear(6, 6), nn.Linear(6, 4), compare)
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.functional.linear(x, x).dtype == torch.bfloat16
        assert head(x).dtype == torch.float32
        siamese.loss([x, x], 0.0)
    assert seen == [torch.float32]


def test_schedules() -> None:
    assert momentum_at(0, 100, 0.99) == pytest.approx(0.99)
    assert momentum_at(50, 100, 0.99) == pytest.approx(0.995)
    assert momentum_at(100, 100, 0.99) == 1.0
    spec = DinoSpec(warmup_teacher_temperature=0.02, teacher_temperature=0.06, warmup_teacher_epochs=10)
    assert [teacher_temperature_at(epoch, spec) for epoch in (0, 5, 10, 50)] == pytest.approx([0.02, 0.04, 0.06, 0.06])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_the_teacher_is_the_moving_average_of_the_student(dtype: torch.dtype, tolerance: float) -> None:
    """Step by step, in closed form, and as the recurrence of the gap g_t = m_t (g_{t-1} + delta_t)."""
    total, draw = 60, torch.Generator().manual_seed(0)
    student = nn.Linear(20, 10).to(dtype)
    teacher = nn.Linear(20, 10).to(dtype)
    teacher.load_state_dict(student.state_dict())

    def flat(module: nn.Module) -> torch.Tensor:
        return torch.cat([p.detach().flatten() for p in module.parameters()]).clone()

    students, teachers, momenta = [flat(student)], [flat(teacher)], []
    for step in range(total):
        with torch.no_grad():
            for p in student.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=draw, dtype=dtype))
        momenta.append(momentum_at(step, total, 0.9))
        ema_update(teacher, student, momenta[-1])
        students.append(flat(student))
        teachers.append(flat(teacher))

    def close(a: torch.Tensor, b: torch.Tensor) -> None:
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)

    for t in range(1, total + 1):
        m = momenta[t - 1]
        close(teachers[t], m * teachers[t - 1] + (1 - m) * students[t])
        gap, delta = students[t - 1] - teachers[t - 1], students[t] - students[t - 1]
        close(students[t] - teachers[t], m * (gap + delta))
    closed = math.prod(momenta) * teachers[0]
    for t in range(1, total + 1):
        closed = closed + (1 - momenta[t - 1]) * math.prod(momenta[t:]) * students[t]
    close(teachers[total], closed)


def test_the_last_layer_stands_still_while_frozen() -> None:
    spec = DinoSpec(out_dim=6, hidden_dim=8, bottleneck_dim=4, freeze_last_layer_epochs=2)
    dino = Dino(spec, nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 5, generator(0))
    views = [torch.randn(4, 3, 2, 2) for _ in range(4)]
    for epoch, frozen in ((0, True), (1, True), (2, False)):
        loss, figures = dino.loss(views, epoch)
        loss.backward()  # type: ignore[no-untyped-call]
        dino.before_update(epoch)
        head = dino.modules["head"]
        assert (head.get_parameter("prototypes").grad is None) is frozen
        assert head.get_parameter("layers.0.weight").grad is not None
        torch.testing.assert_close(figures["kl"] + figures["entropy"], loss.detach())
    assert all(p.grad is None for name in ("teacher_backbone", "teacher_head") for p in dino.modules[name].parameters())


@pytest.mark.parametrize("centering", ["ema", "sinkhorn"])
def test_local_views_are_seen_by_the_student_only(centering: Any) -> None:
    spec = DinoSpec(out_dim=6, hidden_dim=8, bottleneck_dim=4, student_temperature=0.3, teacher_temperature=0.04, centering=centering)
    dino = Dino(spec, nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 5, generator(0))
    views = [torch.randn(4, 3, 2, 2) for _ in range(5)]

    def outputs(prefix: str, seen: list[torch.Tensor]) -> list[torch.Tensor]:
        return [dino.modules[f"{prefix}head"](dino.modules[f"{prefix}backbone"](view)) for view in seen]

    targets = outputs("teacher_", views[:2])
    log_targets = sinkhorn(targets, 0.04) if centering == "sinkhorn" else centred(targets, torch.zeros(6), 0.04)
    expected, _ = dino_loss(outputs("", views), log_targets, 0.3)
    torch.testing.assert_close(dino.loss(views, 0)[0], expected)


def test_koleo_is_added_for_each_global_view() -> None:
    spec = DinoSpec(out_dim=6, hidden_dim=8, bottleneck_dim=4)
    views = [torch.randn(4, 3, 2, 2, generator=generator(seed)) for seed in range(3)]
    dino = Dino(spec, nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), 5, generator(0))
    plain, figures = dino.loss(views, 0)
    assert "koleo" not in figures
    regularised = Dino(spec.model_copy(update={"koleo": 0.1}), dino.backbone, 5, generator(0))
    for name, module in regularised.modules.items():
        module.load_state_dict(dino.modules[name].state_dict())
    loss, figures = regularised.loss(views, 0)
    spread = koleo_loss(dino.backbone(views[0])) + koleo_loss(dino.backbone(views[1]))
    torch.testing.assert_close(loss, plain + 0.1 * spread)
    torch.testing.assert_close(figures["koleo"], spread.detach())
    torch.testing.assert_close(figures["kl"] + figures["entropy"], plain.detach())
