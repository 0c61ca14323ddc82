"""The inner step's two derivatives behind one interface: by automatic differentiation for any network, by hand for ConvNets."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ddcore.matching.explicit import ExplicitConvNet
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork


class Core(Protocol):
    """l(theta, x, y) is the mean over batch and dimensions of (f(theta, x) - y)^2: MKDT's loss (2410.02116, equation 4).

    theta, b: [P]; x: [k, c, h, w], normalised; y: [k, d].
    """

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a scalar, and its gradient in theta, [P]; neither carries a graph."""

    def pull_back(self, theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients of <grad_theta l, b> in theta (a Hessian-vector product), x and y."""


def inner_loss(network: FlatNetwork, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The loss with its graph, for `AutogradCore` and for tests."""
    return functional.mse_loss(network(theta, x), y)


class AutogradCore:
    """Back-propagation, and back-propagation through it: right for every network whose second derivatives torch knows."""

    def __init__(self, network: FlatNetwork) -> None:
        self.network = network

    def gradient(self, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        theta = theta.detach().requires_grad_(True)
        loss = inner_loss(self.network, theta, x, y)
        (gradient,) = torch.autograd.grad(loss, theta)
        return loss.detach(), gradient

    def pull_back(self, theta: Tensor, x: Tensor, y: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        theta, x, y = (tensor.detach().requires_grad_(True) for tensor in (theta, x, y))
        loss = inner_loss(self.network, theta, x, y)
        (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        d_theta, d_x, d_y = torch.autograd.grad(gradient, (theta, x, y), grad_outputs=b)
        return d_theta, d_x, d_y


def core_of(network: FlatNetwork) -> Core:
    """The fastest exact core for `network`."""
    module = network.module
    plain = type(module) is ConvNet and module.linear is not None  # a subclass may compute something else
    return ExplicitConvNet(network) if plain else AutogradCore(network)
