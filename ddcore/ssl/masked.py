"""iBOT's masked patches (2111.07832, as in DINOv2, 2304.07193, section 4): the student says what the teacher sees where it may not look."""

from dataclasses import dataclass
from typing import Self

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from ddcore.networks.names import PATCH
from ddcore.transfer import send

MASKED_VIEWS = 0.5  # of the global views have hidden patches, as in both papers


def draw_hidden(ratio: tuple[float, float], images: int, height: int, width: int, random: torch.Generator) -> Tensor:
    """Which patches of the two global views of `images` images the student does not see: bool [2 * images, patches], on the CPU.

    Of half of the views, drawn for each batch: a share of the patches uniform in `ratio`, one at least, anywhere (iBOT's choice
    for training with local crops; blocks of patches are the other).
    """
    views, patches = 2 * images, (height // PATCH) * (width // PATCH)
    low, high = ratio
    share = low + (high - low) * torch.rand(views, generator=random)
    count = (share * patches).round().clamp(min=1)
    count[torch.randperm(views, generator=random)[round(MASKED_VIEWS * views) :]] = 0
    rank = torch.rand(views, patches, generator=random).argsort(1).argsort(1)
    return rank < count[:, None]


@dataclass(frozen=True)
class Masks:
    """hidden: bool [v, n], patches of each view that the student does not see; places: int64 [m], where these are among all v * n;
    weights: float32 [m], one by the number hidden in the same view."""

    hidden: Tensor
    places: Tensor
    weights: Tensor

    @classmethod
    def of(cls, hidden: Tensor, device: torch.device) -> Self:
        """From `hidden` on the CPU: places are found there, so that nothing waits for the device."""
        weights = (1 / hidden.sum(1).clamp(min=1)).unsqueeze(1).expand_as(hidden)[hidden]
        return cls(*(send(tensor, device) for tensor in (hidden, hidden.flatten().nonzero().squeeze(1), weights)))


class MaskToken(nn.Module):
    """What the student's blocks get in place of a hidden patch's embedding: learned, [width]. The teacher has none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(width))


def encode(vit: nn.Module, images: Tensor, hidden: Tensor | None = None, token: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Features [b, d] of images [b, c, h, w], as `vit` itself gives them, and those of the patches [b, n, d], row by row.

    Where `hidden` [b, n], a patch's embedding is `token` [d] before positions are added: nothing of its pixels is seen.
    """
    if not isinstance(vit, VisionTransformer):
        raise TypeError(f"a {type(vit).__name__} has no patches to hide")

    def hide(module: nn.Module, inputs: tuple[Tensor], embedded: Tensor) -> Tensor:
        return (
            embedded
            if hidden is None or token is None
            else torch.where(hidden.view(*embedded.shape[:-1], 1), token.to(embedded.dtype), embedded)
        )

    handle = vit.patch_embed.register_forward_hook(hide)
    try:
        found: Tensor = vit.forward_features(images)
    finally:
        handle.remove()
    return vit.forward_head(found), found[:, vit.num_prefix_tokens :]


def masked_loss(student: Tensor, log_targets: Tensor, masks: Masks, student_temperature: float) -> Tensor:
    """iBOT's equation 3: cross-entropy of the teacher's distribution of each hidden patch and the student's, from the same view.

    student: logits [m, K] of the hidden patches alone; log_targets: logs of the teacher's distributions [m, K]. Mean over a view's
    hidden patches, then over all views, of which those that hide nothing count as zero.
    """
    log_student = functional.log_softmax(student / student_temperature, dim=1)
    each = -(log_targets.exp() * log_student).sum(1)
    return (each * masks.weights).sum() / len(masks.hidden)
