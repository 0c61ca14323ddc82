"""The outer loss against its definition."""

import torch

from ddcore.matching.losses import normalised_distance


def test_is_the_squared_distance_to_the_goal_in_units_of_the_way_there():
    start, goal = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([1.0, 2.0, 5.0])
    assert [float(normalised_distance(end, start, goal)[0]) for end in (start, goal, 2 * start - goal)] == [1.0, 0.0, 4.0]


def test_the_gradient_is_the_derivative_in_the_end_alone():
    end, start, goal = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()
    end.requires_grad_(True)
    loss, gradient = normalised_distance(end, start, goal)
    (expected,) = torch.autograd.grad(loss, end)
    assert torch.allclose(gradient, expected, rtol=1e-12)


def test_an_expert_that_did_not_move_gives_no_finite_number():
    still = torch.randn(5)
    loss, gradient = normalised_distance(still + 1, still, still)
    assert not torch.isfinite(loss)
    assert not torch.isfinite(gradient).any()
    assert torch.isnan(normalised_distance(still, still, still)[0])
