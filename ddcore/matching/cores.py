"""The inner step's two derivatives, by automatic differentiation: right for any network."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.networks.flat import FlatNetwork


def inner_loss(network: FlatNetwork, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Squared error, mean over batch and dimensions: MKDT's loss (2410.02116, equation 4). Shapes as in `Core`."""
    return functional.mse_loss(network(theta, x), y)


@dataclass(frozen=True)
class Forward:
    """The loss [] and its gradient [P] at one point; kept: what `pull_back` would otherwise compute again, if asked for."""

    loss: Tensor
    gradient: Tensor
    kept: Any = None


@dataclass(frozen=True)
class Backward:
    """Derivatives of the slope S = <grad_theta l, direction>: S itself [], and its gradients in theta [P], x and y."""

    slope: Tensor
    theta: Tensor
    x: Tensor
    y: Tensor


class Core:
    """Derivatives of l(theta, x, y) = `inner_loss`; theta, direction: [P]; x: [k, c, h, w], normalised; y: [k, d].

    What comes back carries no graph. Subclasses compute the same faster; `ddcore.matching.explicit.core_of` picks one.
    """

    name = "generic"

    def __init__(self, network: FlatNetwork) -> None:
        self.network = network

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor, keep: bool = False) -> Forward:
        """Loss and gradient. With `keep`, a later `pull_back` from here is given `kept` and repeats nothing; it costs memory."""
        theta = theta.detach().requires_grad_(True)
        if keep:
            x, y = x.detach().requires_grad_(True), y.detach().requires_grad_(True)
        with torch.enable_grad():
            loss = inner_loss(self.network, theta, x, y)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=keep)
        return Forward(loss.detach(), gradient.detach(), (theta, x, y, gradient) if keep else None)

    def pull_back(self, theta: Tensor, x: Tensor, y: Tensor, direction: Tensor, kept: Any = None) -> Backward:
        """The gradient of the slope along `direction`: a Hessian-vector product and its siblings, by back-propagation twice.

        kept: of `gradient` at the same theta, x and y; used up.
        """
        if kept is None:
            kept = self.gradient(theta, x, y, keep=True).kept
        theta, x, y, gradient = kept
        found = torch.autograd.grad(gradient, (theta, x, y), grad_outputs=direction)
        return Backward(torch.dot(gradient.detach(), direction), *found)
