"""How much a training step is chance: gradients of several batches at one moment of a run, which goes on as if none had been taken."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from ddcore.observatory.noise import Scatter
from ddcore.ssl.objective import Objective


def gradient_noise(
    objective: Objective, batch: Callable[[int], tuple[list[Tensor], Tensor | None]], batches: int, epoch: float, amp: torch.autocast
) -> float | None:
    """sqrt(total variance) / |mean| of the loss's gradient in the backbone's parameters, over `batches` batches (see `Scatter`).

    batch: views and hidden patches of batch b, as the objective's loss reads them; epoch: as there. Of one batch's gradient: that of a
    larger batch scatters less. None if the gradients share no direction that so few could show; what is above about the root of
    `batches` is known roughly only.

    All is done on a copy of the objective, whose loose state (DINO's centre) is put back before each batch: networks, running
    statistics, centre and gradients of the run stay as they are. The cost is the copy and `batches` passes there and back.
    """
    mirror, scatter = copy.deepcopy(objective), Scatter()
    learned = [p for p in mirror.backbone.parameters() if p.requires_grad]
    for module in mirror.modules.values():
        module.train()
    for number in range(batches):
        for name, buffer in mirror.buffers.items():
            buffer.copy_(objective.buffers[name])
        views, hidden = batch(number)
        with amp:
            loss, _ = mirror.loss(views, epoch, hidden)
        found = torch.autograd.grad(loss, learned, allow_unused=True, materialize_grads=True)
        scatter.add(torch.cat([gradient.float().flatten() for gradient in found]))
    return scatter.ratio()
