"""Students beside the ConvNet: their sizes, their first parameters, and exact second derivatives by automatic differentiation."""

import logging

import pytest
import torch
from torch import nn

from ddcore.matching.adjoint import Inner, Memory, pull_back, run_inner
from ddcore.matching.cores import Core, inner_loss
from ddcore.matching.explicit import core_of
from ddcore.networks.flat import build_student
from ddcore.networks.student_sizes import check_student, num_parameters
from ddcore.networks.students import groups_of
from ddcore.specs import StudentSpec
from ddcore.task import generator

# name, fields that make it small, images, length of its features
SMALL = [
    ("resnet10", {"width": 4}, (1, 8, 8), 32),
    ("resnet18", {"width": 4}, (3, 9, 8), 32),
    ("vgg11", {"width": 4}, (1, 32, 32), 32),
    ("vit_tiny", {"width": 12, "depth": 2}, (3, 8, 12), 12),
]
IDS = [case[0] for case in SMALL]
DIM = 3


@pytest.fixture(params=SMALL, ids=IDS)
def world(request):
    """A network in float64, a start with scales and shifts that are not all alike, images and targets."""
    name, fields, shape, _ = request.param
    make = generator(1, name)
    network = build_student(StudentSpec(name=name, **fields), shape, DIM)
    network.module.double()
    theta = network.init(make).double()
    theta = theta + 0.1 * torch.randn(theta.shape, generator=make, dtype=theta.dtype)
    images, targets = (torch.randn(5, *rest, generator=make, dtype=torch.float64) for rest in (shape, (DIM,)))
    return network, theta, images, targets, make


@pytest.mark.parametrize(("name", "fields", "shape", "features"), SMALL, ids=IDS)
def test_output_features_and_the_module_agree(name, fields, shape, features):
    network = build_student(StudentSpec(name=name, **fields), shape, DIM)
    theta, x = network.init(generator(0, "theta")), torch.randn(2, *shape, generator=generator(0, "images"))
    own = build_student(StudentSpec(name=name, **fields), shape, DIM).module
    nn.utils.vector_to_parameters(theta, own.parameters())
    assert torch.equal(network(theta, x), own(x))
    seen = network.features(theta, x)
    assert seen.shape == (2, features)
    last = own.head if name == "vit_tiny" else own.linear
    assert torch.equal(last(seen), network(theta, x))
    assert seen.std() > 0  # no group of the last norm is one number, which would be zero whatever the image


def test_the_published_sizes():
    """Parameters of the networks at their default width for CIFAR-10."""
    counts = {name: num_parameters(StudentSpec(name=name), (3, 32, 32), 10) for name in IDS}
    assert counts == {"resnet10": 4_903_242, "resnet18": 11_173_962, "vgg11": 9_231_114, "vit_tiny": 5_362_762}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *[(name, {}) for name in IDS],
        ("resnet18", {"width": 5}),
        ("resnet10", {"width": 24}),
        ("vgg11", {"width": 7}),
        ("vit_tiny", {"depth": 3, "width": 6}),
    ],
)
@pytest.mark.parametrize(("shape", "dim"), [((3, 32, 32), 10), ((1, 64, 36), 7)])
def test_parameters_are_counted_without_the_network(name, fields, shape, dim):
    spec = StudentSpec(name=name, **fields)
    with torch.device("meta"):
        network = build_student(spec, shape, dim)
    assert num_parameters(spec, shape, dim) == network.num_parameters == sum(network.layer_sizes)
    assert len(set(network.layer_names)) == len(network.layer_sizes)


@pytest.mark.parametrize(("width", "groups"), [(64, 32), (128, 32), (192, 32), (24, 8), (12, 4), (8, 4), (6, 2), (5, 1)])
def test_groups_divide_the_width_and_hold_two_channels_or_more(width, groups):
    assert groups_of(width) == groups


@pytest.mark.parametrize(
    ("name", "shape", "allowed"),
    [
        ("resnet10", (1, 7, 9), "convnet, or images of at least 8x8 pixels"),
        ("resnet18", (3, 30, 7), "convnet, or images of at least 8x8 pixels"),
        ("vgg11", (3, 31, 64), "convnet, or images of at least 32x32 pixels"),
        ("vit_tiny", (3, 32, 30), "convnet, or images with sides that 4 divides"),
    ],
)
def test_images_that_a_student_cannot_take_are_refused_in_words(name, shape, allowed):
    (problem,) = check_student(("student",), StudentSpec(name=name), shape)
    assert (problem.loc, problem.given, problem.allowed) == (("student", "name"), name, allowed)
    assert f"{shape[1]}x{shape[2]}" in problem.message


@pytest.mark.parametrize(
    ("name", "shape"), [("resnet10", (1, 8, 8)), ("resnet18", (3, 9, 17)), ("vgg11", (3, 33, 40)), ("vit_tiny", (1, 4, 8))]
)
def test_images_at_the_edge_are_taken(name, shape):
    assert check_student(("student",), StudentSpec(name=name), shape) == []
    network = build_student(StudentSpec(name=name, width=6), shape, 2)
    assert torch.isfinite(network(network.init(generator(0)), torch.randn(1, *shape))).all()


@pytest.mark.parametrize(("name", "fields", "shape", "features"), SMALL, ids=IDS)
def test_first_parameters_come_from_the_generator_alone(name, fields, shape, features):
    torch.manual_seed(1)
    one = build_student(StudentSpec(name=name, **fields), shape, DIM).init(generator(5))
    torch.manual_seed(2)
    network = build_student(StudentSpec(name=name, **fields), shape, DIM)
    assert torch.equal(one, network.init(generator(5)))
    assert not torch.equal(one, network.init(generator(6)))


def test_a_vit_begins_as_timms_does():
    """Every tensor has the deviation that timm's own draw has."""
    torch.manual_seed(0)
    network = build_student(StudentSpec(name="vit_tiny", depth=1), (3, 32, 32), 100)
    theirs = dict(network.module.named_parameters())
    for name, ours in network.split(network.init(generator(0))).items():
        mean, std = float(theirs[name].detach().mean()), float(theirs[name].detach().std())
        assert float(ours.std()) == pytest.approx(std, rel=0.2), name
        assert float(ours.mean()) == pytest.approx(mean, abs=5 * std / len(ours.flatten()) ** 0.5 + 1e-12), name


def test_the_slopes_gradient_is_exact_and_the_generic_core_says_that_it_is_used(world, caplog):
    """Against central differences of the gradient itself: in theta the Hessian-vector product, in x and y its siblings."""
    network, theta, x, y, make = world
    with caplog.at_level(logging.INFO):
        core = core_of(network, torch.device("cpu"))
    assert type(core) is Core
    assert f"{type(network.module).__name__} is not a plain ConvNet" in caplog.text
    b, dx, dy = (torch.randn(t.shape, generator=make, dtype=t.dtype) for t in (theta, x, y))
    found, h = core.pull_back(theta, x, y, b), 1e-6
    assert torch.allclose(found.slope, core.gradient(theta, x, y).gradient @ b, rtol=1e-12)
    ahead, behind = (core.gradient(theta + s * h * b, x, y).gradient for s in (1, -1))
    assert (found.theta - (ahead - behind) / (2 * h)).norm() < 1e-6 * found.theta.norm()
    for direction, (moved_x, moved_y), gradient in ((dx, (dx, 0 * y), found.x), (dy, (0 * x, dy), found.y)):
        ahead, behind = (core.gradient(theta, x + s * h * moved_x, y + s * h * moved_y).gradient @ b for s in (1, -1))
        assert float((gradient * direction).sum()) == pytest.approx(float((ahead - behind) / (2 * h)), rel=1e-5, abs=1e-7)


def test_the_adjoint_with_layers_rates_equals_the_full_unroll(world):
    network, start, images, targets, make = world
    images, targets, start = (t.requires_grad_(True) for t in (images, targets, start))
    rate = (0.01 + 0.04 * torch.rand(len(network.layer_sizes), generator=make, dtype=torch.float64)).requires_grad_(True)
    batches = [torch.randperm(5, generator=make)[:3] for _ in range(3)]
    goal = torch.randn(start.shape, generator=make, dtype=torch.float64)
    theta, velocity = start, torch.zeros_like(start)
    for batch in batches:
        (gradient,) = torch.autograd.grad(inner_loss(network, theta, images[batch], targets[batch]), theta, create_graph=True)
        velocity = 0.5 * velocity + gradient
        theta = theta - network.spread(rate) * velocity
    expected = torch.autograd.grad((theta * goal).sum(), (images, targets, rate, start))
    plain = [t.detach() for t in (images, targets, rate)]
    run = run_inner(Inner(Core(network), *plain, batches, 0.5), start.detach(), Memory(cached=1))
    found = pull_back(run, goal)
    for got, want in zip((found.images, found.targets, found.rate, found.start), expected, strict=True):
        assert (got - want).norm() < 1e-10 * want.norm()
