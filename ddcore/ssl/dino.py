"""DINO (2104.14294): a student matches the centred and sharpened output of its own exponential moving average."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from ddcore.specs import DinoSpec
from ddcore.ssl.identity import EmaIdentity
from ddcore.ssl.koleo import koleo_loss
from ddcore.ssl.masked import Masks, MaskToken, encode, masked_loss
from ddcore.ssl.objective import full_precision

MAX_NORM = 3.0  # the paper's gradient clipping
SINKHORN_ITERATIONS = 3  # SwAV's and DINOv2's


class DinoHead(nn.Module):
    """Three-layer MLP, l2 norm, then a weight-normalised linear layer whose rows (prototypes) have length one (appendix C).

    Input: features [b, d]; output: logits [b, out_dim].
    """

    def __init__(self, in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, bottleneck_dim)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(out_dim, bottleneck_dim))
        nn.init.normal_(self.prototypes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bottleneck = self.layers(x)
        with full_precision(bottleneck):
            return functional.linear(functional.normalize(bottleneck.float(), dim=1), functional.normalize(self.prototypes, dim=1))


def centred(teacher: Sequence[torch.Tensor], center: torch.Tensor, temperature: float) -> list[torch.Tensor]:
    """Log of the teacher's distributions: softmax((g_t - c) / tau_t), for logits [b, K] a view and the centre c [K] (algorithm 1)."""
    return [functional.log_softmax((logits.detach() - center) / temperature, dim=1) for logits in teacher]


def sinkhorn(teacher: Sequence[torch.Tensor], temperature: float, iterations: int = SINKHORN_ITERATIONS) -> list[torch.Tensor]:
    """Log of the teacher's distributions [b, K] a view, balanced over all views' images (SwAV, 2006.09882, equation 3 and appendix A).

    Q = diag(u) exp(g / tau_t) diag(v): in turns, all prototypes are given the same share of the batch, and every image a sum of one.
    Images come last, so their sums are exact; prototypes' sums tend to b / K. In logarithms, so that no temperature overflows.
    """
    log_q = torch.cat([logits.detach() for logits in teacher]) / temperature
    for _ in range(iterations):
        log_q = functional.log_softmax(functional.log_softmax(log_q, dim=0), dim=1)
    return list(log_q.split([len(logits) for logits in teacher]))


def dino_loss(
    student: Sequence[torch.Tensor], log_targets: Sequence[torch.Tensor], student_temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Equation 3, and the mean entropy of the teacher's distributions.

    student: logits [b, K] a view; log_targets: logs of the teacher's distributions P_t [b, K], of the student's first views. The loss
    is the mean over pairs of different views (t, s) and images of H(P_t, softmax(g_s / tau_s)). Loss minus entropy is the mean KL
    divergence.
    """
    log_student = [functional.log_softmax(logits / student_temperature, dim=1) for logits in student]
    total = log_student[0].new_zeros(())
    for t, log_target in enumerate(log_targets):
        target = log_target.exp()
        for s, log_probability in enumerate(log_student):
            if s != t:
                total = total - (target * log_probability).sum(1).mean()
    entropy = torch.stack([-(log_target.exp() * log_target).sum(1).mean() for log_target in log_targets]).mean()
    return total / (len(log_targets) * (len(log_student) - 1)), entropy


def update_center(center: torch.Tensor, teacher: Sequence[torch.Tensor], momentum: float) -> None:
    """Equation 4, in place: c = m c + (1 - m) mean of the teacher's logits over views and images."""
    center.mul_(momentum).add_(torch.cat(list(teacher)).mean(0), alpha=1 - momentum)


def momentum_at(step: int, total: int, start: float) -> float:
    """The teacher's momentum: a cosine from `start` at step 0 to 1 at step `total`."""
    return 1 - (1 - start) * (math.cos(math.pi * step / total) + 1) / 2


def teacher_temperature_at(epoch: float, spec: DinoSpec) -> float:
    """A linear warm-up over the first `warmup_teacher_epochs`, then constant."""
    if epoch >= spec.warmup_teacher_epochs:
        return spec.teacher_temperature
    part = epoch / spec.warmup_teacher_epochs
    return spec.warmup_teacher_temperature + part * (spec.teacher_temperature - spec.warmup_teacher_temperature)


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Every parameter of the teacher becomes m * teacher + (1 - m) * student. Running statistics are the teacher's own."""
    for average, current in zip(teacher.parameters(), student.parameters(), strict=True):
        average.mul_(momentum).add_(current, alpha=1 - momentum)


class Dino:
    """Student and teacher, each a backbone with a head. The teacher starts as the student's copy and sees global views only.

    random: draws the directions along which `EmaIdentity` watches the moving average.
    """

    max_norm: float | None = MAX_NORM

    def __init__(self, spec: DinoSpec, backbone: nn.Module, feature_dim: int, random: torch.Generator) -> None:
        head = DinoHead(feature_dim, spec.out_dim, spec.hidden_dim, spec.bottleneck_dim)
        self.modules: dict[str, nn.Module] = {"backbone": backbone, "head": head}
        self.modules["teacher_backbone"] = copy.deepcopy(backbone).requires_grad_(False)
        self.modules["teacher_head"] = copy.deepcopy(head).requires_grad_(False)
        if spec.masked_patches:
            self.modules["mask"] = MaskToken(feature_dim)
        centers = ("center", "patch_center") if spec.masked_patches else ("center",)
        device = next(backbone.parameters()).device
        self.buffers = {name: torch.zeros(spec.out_dim, device=device) for name in centers if spec.centering == "ema"}
        self._spec = spec
        # One for each: the head's prototypes are long, and would hide what happens to the backbone.
        self._identities = [EmaIdentity(self.modules[f"teacher_{name}"], self.modules[name], random) for name in ("backbone", "head")]

    @property
    def backbone(self) -> nn.Module:
        return self.modules["backbone"]

    @property
    def result(self) -> nn.Module:
        return self.modules["teacher_backbone"]

    def learning(self) -> list[nn.Module]:
        return [module for name, module in self.modules.items() if not name.startswith("teacher_")]

    def loss(
        self, views: list[torch.Tensor], epoch: float, hidden: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Global views go through the student in one batch, local ones in another, as in the paper's multi-crop.

        To equation 3 are added `koleo` times the sum of the regulariser over the two global views, each by itself, as in DINOv2, and
        `masked_patches` times iBOT's loss of the `hidden` patches (see `ddcore.ssl.masked`), through the same head. The student then
        sees the global views without these patches in all three, the teacher sees them whole.
        """
        globals_, masks = torch.cat(views[:2]), None if hidden is None else Masks.of(hidden, views[0].device)
        features, patches = self._encode("backbone", globals_, masks)
        student = list(self.modules["head"](features).chunk(2))
        if len(views) > 2:
            student += self.modules["head"](self.modules["backbone"](torch.cat(views[2:]))).chunk(len(views) - 2)
        with torch.no_grad():
            seen, whole = self._encode("teacher_backbone", globals_, masks)
            teacher = self.modules["teacher_head"](seen).chunk(2)
        loss, entropy = dino_loss(student, self._targets(teacher, epoch, "center"), self._spec.student_temperature)
        figures = {"entropy": entropy, "kl": loss.detach() - entropy}
        if self._spec.koleo:
            spread = torch.stack([koleo_loss(view) for view in features.chunk(2)]).sum()
            loss = loss + self._spec.koleo * spread
            figures["koleo"] = spread.detach()
        if masks is not None:
            with torch.no_grad():
                (log_targets,) = self._targets([self.modules["teacher_head"](whole[masks.places])], epoch, "patch_center")
            masked = masked_loss(self.modules["head"](patches[masks.places]), log_targets, masks, self._spec.student_temperature)
            loss = loss + self._spec.masked_patches * masked
            figures["masked_loss"] = masked.detach()
        return loss, figures

    def _encode(self, name: str, images: torch.Tensor, masks: Masks | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [b, d], and with masks those of all patches [b * n, d], of which the teacher's are hidden from it in no case."""
        if masks is None:
            features: torch.Tensor = self.modules[name](images)
            return features, features.new_empty(0)
        own = (masks.hidden, self.modules["mask"].get_parameter("token")) if name == "backbone" else ()
        features, patches = encode(self.modules[name], images, *own)
        return features, patches.flatten(0, 1)

    def _targets(self, teacher: Sequence[torch.Tensor], epoch: float, center: str) -> list[torch.Tensor]:
        temperature = teacher_temperature_at(epoch, self._spec)
        if self._spec.centering == "sinkhorn":
            return sinkhorn(teacher, temperature)
        targets = centred(teacher, self.buffers[center], temperature)
        update_center(self.buffers[center], teacher, self._spec.center_momentum)
        return targets

    def before_update(self, epoch: int) -> None:
        """Prototypes stand still during the first epochs (appendix C)."""
        if epoch < self._spec.freeze_last_layer_epochs:
            self.modules["head"].get_parameter("prototypes").grad = None

    def after_update(self, step: int, total: int, logged: bool) -> dict[str, float | torch.Tensor]:
        """Move the teacher; the identity costs a few passes over the parameters, and only at logged steps."""
        momentum = momentum_at(step, total, self._spec.momentum)
        before = [identity.before() for identity in self._identities] if logged else []
        ema_update(self.modules["teacher_backbone"], self.modules["backbone"], momentum)
        ema_update(self.modules["teacher_head"], self.modules["head"], momentum)
        if not logged:
            return {}
        residuals = [identity.residual(past, momentum) for identity, past in zip(self._identities, before, strict=True)]
        return {"ema_momentum": momentum, "ema_residual": torch.stack(residuals).max()}
