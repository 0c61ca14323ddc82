"""The inner step's two derivatives, by automatic differentiation: right for any network."""

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.networks.flat import FlatNetwork


def inner_loss(network: FlatNetwork, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Squared error, mean over batch and dimensions: MKDT's loss (2410.02116, equation 4). Shapes as in `Core`."""
    return functional.mse_loss(network(theta, x), y)


class Core:
    """Derivatives of l(theta, x, y) = `inner_loss`; theta, b: [P]; x: [k, c, h, w], normalised; y: [k, d].

    What comes back carries no graph. Subclasses compute the same faster; `ddcore.matching.explicit.core_of` picks one.
    """

    def __init__(self, network: FlatNetwork) -> None:
        self.network = network

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and its gradient in theta, [P]."""
        theta = theta.detach().requires_grad_(True)
        loss = inner_loss(self.network, theta, x, y)
        (gradient,) = torch.autograd.grad(loss, theta)
        return loss.detach(), gradient

    def pull_back(self, theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of <grad_theta l, b> in theta (a Hessian-vector product), x and y: back-propagation through itself."""
        theta, x, y = (tensor.detach().requires_grad_(True) for tensor in (theta, x, y))
        loss = inner_loss(self.network, theta, x, y)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        d_theta, d_x, d_y = torch.autograd.grad(gradient, (theta, x, y), grad_outputs=b)
        return d_theta, d_x, d_y
