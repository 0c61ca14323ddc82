"""What products are computed in, bfloat16 cores, and the check that lets one in."""

import dataclasses
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

from ddcore.errors import DdcoreError
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.matching.precision import AutocastCore, guarded, half_core, set_precision, true_float32
from ddcore.networks.flat import FlatNetwork, build_student
from ddcore.specs import StudentSpec
from ddcore.task import generator

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def switches():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def _leave_as_found():
    matmul, convolution = switches()
    yield
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


@pytest.mark.parametrize(
    ("choice", "device", "precision", "set_to"),
    [
        ("auto", CUDA, "tf32", ("high", True)),
        ("tf32", CUDA, "tf32", ("high", True)),
        ("float32", CUDA, "float32", ("highest", False)),
        ("bf16", CUDA, "bf16", ("high", True)),
        ("auto", CPU, "float32", None),
        ("float32", CPU, "float32", None),
        ("tf32", CPU, "float32", None),
        ("bf16", CPU, "bf16", None),
    ],
)
def test_a_choice_sets_the_switches_of_cuda_alone(choice, device, precision, set_to):
    before = ("highest", True) if set_to is None or set_to[1] is False else ("highest", False)
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
    assert set_precision(choice, device) == precision
    assert switches() == (set_to or before)
    if set_to is not None:
        # What cuBLAS and cuDNN read, and torch.compile too.
        assert (torch.backends.cuda.matmul.fp32_precision == "tf32") is (torch.backends.cudnn.conv.fp32_precision == "tf32") is set_to[1]


def test_true_float32_is_left_as_it_was_found_even_by_an_error():
    set_precision("tf32", CUDA)
    seen = []
    with pytest.raises(ZeroDivisionError), true_float32():
        seen.append(switches()) or 1 / 0
    assert seen == [("highest", False)]
    assert switches() == ("high", True)


def world(size=(8, 9)):
    make = generator(0, "precision")
    network = build_student(StudentSpec(depth=2, width=8), (3, *size), 10)
    theta = network.init(make)
    x, y = torch.randn(16, 3, *size, generator=make), torch.randn(16, 10, generator=make)
    return network, (theta, x, y, torch.randn(len(theta), generator=make))


def test_a_convnets_convolutions_run_in_bfloat16_and_pass_the_check(monkeypatch):
    network, at = world()
    exact, notes, seen = ExplicitConvNet(network, EagerBlocks()), [], set()
    half = half_core(exact)
    plain = functional.conv2d
    monkeypatch.setattr(
        functional, "conv2d", lambda h, weight, padding: seen.add((h.dtype, weight.dtype)) or plain(h, weight, padding=padding)
    )
    assert guarded(exact, half, *at, notes.append) is half
    assert seen == {(torch.float32,) * 2, (torch.bfloat16,) * 2}
    found = half.pull_back(*at)
    assert {t.dtype for t in (found.slope, found.theta, found.x, found.y)} == {torch.float32}
    back = exact.pull_back(*at)
    # The note has the cosines, to five digits.
    (text,) = notes
    for name, ours, theirs in (("d_theta", found.theta, back.theta), ("d_x", found.x, back.x), ("d_y", found.y, back.y)):
        cosine = functional.cosine_similarity(ours.double().flatten(), theirs.double().flatten(), dim=0)
        assert f"{name} {float(cosine):.5f}" in text
        assert 0.99 < cosine < 0.99999  # and it was not float32 after all
    assert re.search(r"gradient 0\.99\d{3}", text)


def test_what_the_pass_kept_is_used_in_bfloat16_too():
    network, (theta, x, y, direction) = world()
    half = half_core(ExplicitConvNet(network, EagerBlocks()))
    kept = half.gradient(theta, x, y, keep=True).kept
    assert all(maps.dtype == torch.bfloat16 for maps in (*kept.inputs[1:], *kept.p_u))
    again, found = half.pull_back(theta, x, y, direction), half.pull_back(theta, x, y, direction, kept)
    assert all(torch.equal(getattr(found, name), getattr(again, name)) for name in ("slope", "theta", "x", "y"))


def test_other_networks_run_under_autocast():
    make = generator(0, "other")
    network = FlatNetwork(nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.GELU(), nn.Flatten(), nn.Linear(8 * 36, 5)))
    theta, x = network.init(make), torch.randn(8, 3, 8, 8, generator=make)
    at = (theta, x, torch.randn(8, 5, generator=make), torch.randn(len(theta), generator=make))
    half = half_core(Core(network))
    assert isinstance(half, AutocastCore)
    assert guarded(Core(network), half, *at, lambda text: None) is half
    assert half.pull_back(*at).theta.dtype == torch.float32
    assert not torch.equal(half.pull_back(*at).theta, Core(network).pull_back(*at).theta)


class Spoilt(Core):
    """Wrong in one derivative, by the given function of it."""

    def __init__(self, network, name, spoil):
        super().__init__(network)
        self.which, self.spoil = name, spoil

    def gradient(self, theta, x, y, keep=False):
        found = super().gradient(theta, x, y, keep)
        return dataclasses.replace(found, gradient=self.spoil(found.gradient)) if self.which == "gradient" and not keep else found

    def pull_back(self, theta, x, y, direction, kept=None):
        found = super().pull_back(theta, x, y, direction, kept)
        part = self.which.removeprefix("d_")
        return dataclasses.replace(found, **{part: self.spoil(getattr(found, part))}) if self.which != "gradient" else found


def turned(v):
    """Away from v, to a cosine of 0.98 exactly."""
    other = torch.randn(v.shape, generator=generator(0, "turned"))
    other -= v * ((other * v).sum() / v.square().sum())
    return 0.98 * v / v.norm() + (1 - 0.98**2) ** 0.5 * other / other.norm()


@pytest.mark.parametrize("name", ["gradient", "d_theta", "d_x", "d_y"])
@pytest.mark.parametrize(("spoil", "number"), [(turned, "0.98000"), (torch.zeros_like, "nan"), (lambda v: v / 0.0, "nan")])
def test_a_coarse_core_is_refused_with_its_numbers(name, spoil, number):
    network, at = world()
    notes = []
    with pytest.raises(DdcoreError, match=f"cosine of {name} with its float32 value is {number}, 0.99 is needed") as refusal:
        guarded(Core(network), Spoilt(network, name, spoil), *at, notes.append)
    assert refusal.value.code == "invalid_spec"
    assert "float32" in refusal.value.hint
    assert f"{name} {number}" in notes[0]  # logged all the same
    assert notes[0].count("1.00000") == 3


def test_a_derivative_that_is_nothing_in_both_is_no_fault():
    """All units dead: no gradient in the images, which is right."""
    network, at = world()
    for name, part in network.split(at[0]).items():
        if name in ("blocks.1.bias", "blocks.5.bias"):
            part.fill_(-100.0)
    exact, notes = ExplicitConvNet(network, EagerBlocks()), []
    assert guarded(exact, exact, *at, notes.append) is exact
    assert "d_x 1.00000" in notes[0]
