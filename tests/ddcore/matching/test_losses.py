"""The outer losses against their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddcore.matching.losses import FLOOR, SMALL_LAYER, cosine_distance, joined_layers, layer_distance, normalised_distance


def points(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind()


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


SIZES = [20, 5, 25]


def layers_by_hand(end, start, goal):
    """The mean over layers, written with a slice for each."""
    total, share = 0.0, (start - goal).square().mean()
    for part in (slice(0, 20), slice(20, 25), slice(25, 50)):
        moved = (start[part] - goal[part]).square().sum()
        floor = FLOOR * len(goal[part]) * share
        total = total + (end[part] - goal[part]).square().sum() / (moved if moved > floor else floor) / 3
    return total


def test_every_layer_counts_the_same_however_far_it_moved():
    start, goal = points(2, 50)
    start[20:25] = goal[20:25] + 0.1 * (start[20:25] - goal[20:25])
    assert [float(layer_distance(end, start, goal, SIZES)[0]) for end in (goal, start, 2 * start - goal)] == pytest.approx([0, 1, 4])
    end = goal.clone()
    end[20:25] = start[20:25]  # one of three layers is back where it began
    assert float(layer_distance(end, start, goal, SIZES)[0]) == pytest.approx(1 / 3)


@pytest.mark.parametrize("still", [False, True], ids=["all moved", "one hardly moved"])
def test_the_layers_distance_and_its_gradient_are_those_of_its_definition(still):
    end, start, goal = points(3, 50)
    if still:
        start[20:25] = goal[20:25] + 1e-4
    end.requires_grad_(True)
    expected = layers_by_hand(end, start, goal)
    loss, gradient = layer_distance(end.detach(), start, goal, SIZES)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(expected, end)[0], rtol=1e-12)


def test_a_layer_that_stood_still_is_not_divided_by_zero():
    end, start, goal = points(3, 50)
    start[20:25] = goal[20:25]
    loss, gradient = layer_distance(end, start, goal, SIZES)
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient).all()
    assert float(gradient[20:25].norm()) > 0


def test_one_layer_of_all_parameters_is_the_whole_distance():
    end, start, goal = points(3, 50)
    for ours, theirs in zip(layer_distance(end, start, goal, [50]), normalised_distance(end, start, goal), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "joined"),
    [
        ([1000, 8, 1000, 8, 500], [1008, 1008, 500]),  # norms go with the convolution before them
        ([3, 3, 1000, 500], [1006, 500]),  # what comes first goes with what comes after
        ([100], [100]),
        ([1000, 1, 1, 1], [1003]),
        ([10, 990], [10, 990]),  # a hundredth is not less than a hundredth
    ],
)
def test_layers_of_a_handful_of_numbers_are_joined_to_a_neighbour(sizes, joined):
    assert joined_layers(sizes) == joined


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=30))
def test_joined_layers_hold_all_parameters_in_their_order_and_none_is_small(sizes):
    joined = joined_layers(sizes)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    assert {sum(joined[: i + 1]) for i in range(len(joined))} <= set(ends)
    assert sum(joined) == ends[-1]
    assert min(joined) >= SMALL_LAYER * sum(sizes)


def test_the_cosine_distance_is_zero_along_one_across_and_two_against():
    along = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    across = torch.tensor([0.0, 0.0, 2.0], dtype=torch.float64)
    assert [float(cosine_distance(v, along)[0]) for v in (5 * along, across, -0.1 * along)] == pytest.approx([0.0, 1.0, 2.0], abs=1e-12)
    assert float(cosine_distance(5 * along, along)[1].norm()) == pytest.approx(0.0, abs=1e-15)


def test_the_cosines_gradient_is_its_derivative_in_the_first_vector():
    vector, along = points(2, 50)
    vector.requires_grad_(True)
    expected = 1 - torch.nn.functional.cosine_similarity(vector, along, dim=0)
    loss, gradient = cosine_distance(vector.detach(), along)
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-12)
    assert torch.allclose(gradient, torch.autograd.grad(expected, vector)[0], rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zero", ["vector", "along", "both"])
def test_a_zero_vector_has_no_direction_and_no_gradient(zero, dtype):
    nothing, some = torch.zeros(5, dtype=dtype), torch.ones(5, dtype=dtype)
    loss, gradient = cosine_distance(*{"vector": (nothing, some), "along": (some, nothing), "both": (nothing, nothing)}[zero])
    assert float(loss) == 1.0
    assert torch.equal(gradient, nothing)
