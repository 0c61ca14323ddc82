"""Views of the inner steps: what each operation does, that they are replayed, and that gradients pass through them exactly."""

import pytest
import torch
from torch.nn import functional

from ddcore.data.differentiable import Views, draw_view, nothing, show
from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner
from ddcore.matching.cores import inner_loss
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

OPERATIONS = ("flip", "shift", "scale", "brightness", "saturation", "contrast", "cutout")
CPU = torch.device("cpu")


def images_of(count=2, shape=(3, 8, 12)):
    return torch.randn(count, *shape, generator=generator(0, "images"), dtype=torch.float64)


def seen(name, draws=60, x=None):
    """Distinct views of one operation, of the same images."""
    x, random = images_of() if x is None else x, generator(1, name)
    return x, [show(x, {part: one.double() for part, one in draw_view((name,), 8, 12, random).items()}) for _ in range(draws)]


def test_flip_mirrors_left_to_right_half_of_the_time():
    x, views = seen("flip")
    mirrored = [torch.equal(view, x.flip(3)) for view in views]
    assert all(torch.equal(view, x) for view, turned in zip(views, mirrored, strict=True) if not turned)
    assert 15 < sum(mirrored) < 45


def test_shift_moves_by_whole_pixels_and_leaves_zeros():
    x, views = seen("shift", 200)
    moves = {}
    for down in (-1, 0, 1):
        for right in (-2, -1, 0, 1, 2):
            padded = functional.pad(x, (2, 2, 1, 1))
            moves[down, right] = padded[:, :, 1 - down : 9 - down, 2 - right : 14 - right]
    found = [next((move for move, moved in moves.items() if torch.equal(view, moved)), None) for view in views]
    assert set(found) == set(moves)


def test_scale_is_bilinear_about_the_middle_with_zeros_outside():
    x, views = seen("scale", 30)
    random = generator(1, "scale")
    factors = []
    for view in views:
        torch.randint(1, (), generator=random)
        down, across = (1 / 1.2 + torch.rand(2, generator=random).double() * (1.2 - 1 / 1.2)).tolist()
        theta = torch.tensor([[across, 0, 0], [0, down, 0]], dtype=x.dtype).expand(len(x), 2, 3)
        grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
        assert torch.allclose(view, functional.grid_sample(x, grid, padding_mode="zeros", align_corners=False), atol=1e-5)
        factors += [down, across]
    assert min(factors) < 0.9 < 1.1 < max(factors)


def test_colours_move_about_their_means_and_no_further_than_said():
    x, brighter = seen("brightness")
    added = torch.stack([view - x for view in brighter]).flatten(1)
    assert (added.std(1) < 1e-12).all()
    assert -0.5 <= added.min() < -0.3 < 0.3 < added.max() <= 0.5
    for name, centre, low, high in (("saturation", x.mean(1, keepdim=True), 0, 2), ("contrast", x.mean((1, 2, 3), keepdim=True), 0.5, 1.5)):
        factors = torch.stack([((view - centre) / (x - centre)).flatten() for view in seen(name)[1]])
        assert torch.allclose(factors, factors[:, :1].expand_as(factors), rtol=1e-6), name
        assert low <= factors.min() < low + 0.2 < high - 0.2 < factors.max() <= high, name


def test_saturation_leaves_grey_images_as_they_are():
    grey, views = seen("saturation", 5, images_of(shape=(1, 8, 12)))
    assert all(torch.allclose(view, grey, atol=1e-15) for view in views)


def test_cutout_hides_a_rectangle_of_half_a_side_that_the_edge_may_cut():
    x, views = seen("cutout", 200)
    sizes = set()
    for view in views:
        hidden = (view == 0)[0, 0]
        rows, columns = hidden.any(1), hidden.any(0)
        assert torch.equal(hidden, torch.outer(rows, columns))
        assert torch.equal(view, torch.where(hidden, 0.0, x))
        assert len(torch.diff(rows.nonzero()[:, 0]).unique()) <= 1  # one stretch
        sizes.add((int(rows.sum()), int(columns.sum())))
    assert max(sizes) == (4, 6)
    assert min(sizes)[0] == 2


@pytest.mark.parametrize("names", [(name,) for name in OPERATIONS] + [OPERATIONS])
def test_a_view_that_changes_nothing_changes_no_bit(names):
    x = images_of().float()
    assert torch.equal(show(x, nothing(names, 8, 12)), x)


def test_the_views_of_a_run_are_replayed_and_every_operation_comes_up():
    x, views = images_of().float(), Views(OPERATIONS, 40, images_of().float())
    views.draw(generator(3))
    first = [views(x, step) for step in range(40)]
    assert all(torch.equal(views(x, step), first[step]) for step in reversed(range(40)))
    views.draw(generator(4))
    assert not all(torch.equal(views(x, step), first[step]) for step in range(40))
    views.draw(generator(3))
    assert all(torch.equal(views(x, step), first[step]) for step in range(40))
    fewer = Views(OPERATIONS, 3, x)
    fewer.draw(generator(3))
    assert all(torch.equal(fewer(x, step), first[step]) for step in range(3))
    assert len({tuple(view.flatten()[:50].tolist()) for view in first}) > 25  # a flip that does not turn is the image itself


@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_pass_through_each_operation(name):
    views = Views((name,), 3, images_of())
    views.draw(generator(2, name))
    x = images_of(2, (2, 8, 12)).requires_grad_(True)
    for step in range(3):
        assert torch.autograd.gradcheck(views, (x, step), atol=1e-8)


@pytest.mark.parametrize("names", [(name,) for name in OPERATIONS] + [OPERATIONS], ids=lambda names: "-".join(names)[:12])
def test_the_adjoint_through_views_equals_the_full_unroll(names):
    make, steps = generator(5, *names), 4
    network = build_student(StudentSpec(depth=1, width=4), (3, 6, 8), 3)
    network.module.double()
    start, goal = (network.init(make).double() for _ in range(2))
    images, targets = (torch.randn(6, *rest, generator=make, dtype=torch.float64, requires_grad=True) for rest in ((3, 6, 8), (3,)))
    rate = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    batches = [torch.randperm(6, generator=make)[:4] for _ in range(steps)]
    views = Views(names, steps, images)
    views.draw(make)
    theta, velocity = start.clone().requires_grad_(True), torch.zeros_like(start)
    for step, batch in enumerate(batches):
        loss = inner_loss(network, theta, views(images[batch], step), targets[batch])
        velocity = 0.9 * velocity + torch.autograd.grad(loss, theta, create_graph=True)[0]
        theta = theta - rate * velocity
    expected = torch.autograd.grad((theta * goal).sum(), (images, targets, rate))
    inner = Inner(core_of(network, CPU), images.detach(), targets.detach(), rate.detach(), batches, 0.9, views)
    found = pull_back(run_inner(inner, start, Memory(thetas="sparse")), goal)
    for got, want in zip((found.images, found.targets, found.rate), expected, strict=True):
        assert (got - want).norm() < 1e-10 * want.norm()
