"""The C++ blocks against the eager ones; compiled once, into a cache of this module's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from ddcore.matching.blocks import native
from ddcore.matching.blocks.convolution import TorchConvolutions
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.blocks.native import native_blocks
from ddcore.matching.cores import Core
from ddcore.matching.explicit import ExplicitConvNet
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork
from ddcore.task import generator

NAMES = ("h", "h_dot", "p_u", "dl/dg", "dl/ds", "q_u", "dS/dg", "dS/ds")

# images, channels, height, width: all widths of vector and of group of channels, sides odd and even, one of each
SHAPES = [(1, 1, 2, 2), (3, 5, 9, 14), (2, 130, 8, 8), (2, 16, 3, 5), (1, 63, 4, 7), (20, 8, 8, 8), (3, 33, 16, 16), (2, 128, 32, 32)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def blocks(cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(cache))
        found = native_blocks.__wrapped__()
    assert found is not None
    assert len(list((cache / "potstill").iterdir())) == 1
    return found


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def world(shape, dtype=torch.float64):
    """u and u_dot, P_h and Q_h, and scale, shift, scale_dot, shift_dot, channels last."""
    b, c, h, w = shape
    make = generator(0, "native", *shape)

    def draw(*size):
        return torch.randn(size, generator=make, dtype=torch.float64).to(dtype)

    maps, pooled = ([draw(*size).contiguous(memory_format=torch.channels_last) for _ in "12"] for size in (shape, (b, c, h // 2, w // 2)))
    return maps, pooled, [draw(c) for _ in range(4)]


def distance(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_derivative_is_right(blocks, shape, dtype, near):
    given = world(shape, dtype)
    before = [[t.clone() for t in group] for group in given]
    found = native._run(blocks, *given)
    for group, was in zip(given, before, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(group, was, strict=True))  # nothing that was given is written to
    right = native._run(EagerBlocks(), *[[t.double() for t in group] for group in given])
    for name, ours, theirs in zip(NAMES, found, right, strict=True):
        assert (ours.dtype, ours.shape) == (dtype, theirs.shape), name
        assert ours.ndim == 1 or ours.is_contiguous(memory_format=torch.channels_last), name
        assert distance(ours, theirs) < near, name


def test_any_layout_is_taken(blocks):
    given = world((3, 6, 6, 4))
    right = native._run(blocks, *given)
    maps, pooled, rows = given
    others = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in maps], [t.contiguous() for t in pooled], rows
    assert all(torch.equal(a, b) for a, b in zip(native._run(blocks, *others), right, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit(blocks, threads, dtype):
    given = world((6, 100, 16, 16), dtype)
    weights = [torch.randn(100, 3, 3, 3, generator=generator(number), dtype=torch.float64).to(dtype) for number in (1, 2)]
    runs = []
    for number in (1, 2, 2, 3):
        threads(number)
        runs.append([*native._run(blocks, *given), blocks.image_gradient(*given[0], *weights)])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_dead_units_pass_nothing(blocks):
    maps, pooled, (scale, shift, scale_dot, shift_dot) = world((2, 20, 6, 6), torch.float32)
    shift[:10] = -100.0
    for name, found in zip(NAMES, native._run(blocks, maps, pooled, [scale, shift, scale_dot, shift_dot]), strict=True):
        dead, living = (found[:10], found[10:]) if found.ndim == 1 else (found[:, :10], found[:, 10:])
        assert torch.equal(dead, torch.zeros_like(dead)), name
        assert (living != 0).any(), name


def test_a_flat_image_is_no_division_by_zero(blocks):
    maps, pooled, rows = world((2, 5, 4, 4))
    maps[0][0] = 3.0
    for ours, theirs in zip(native._run(blocks, maps, pooled, rows), native._run(EagerBlocks(), maps, pooled, rows), strict=True):
        assert distance(ours, theirs) < 1e-10


def test_a_mean_far_from_zero_does_not_drown_the_variance(blocks):
    maps, pooled, rows = world((2, 20, 16, 16), torch.float32)
    maps[0] += 1000.0
    right = native._run(EagerBlocks(), *[[t.double() for t in group] for group in (maps, pooled, rows)])
    for name, ours, theirs in zip(NAMES, native._run(blocks, maps, pooled, rows), right, strict=True):
        assert distance(ours, theirs) < 2e-3, name  # the mean itself is right to 6e-5 only


@pytest.mark.parametrize("images", [1, 2, 3, 4])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("shape", [(2, 8, 8, 8), (3, 130, 5, 7), (1, 1, 2, 2), (2, 128, 32, 32)], ids=str)
def test_the_gradient_in_the_images_is_right(blocks, shape, images, dtype, near):
    (q_u, p_u), _, _ = world(shape, dtype)
    make = generator(1)
    weight, weight_dot = (torch.randn(shape[1], images, 3, 3, generator=make, dtype=torch.float64).to(dtype) for _ in "12")
    right = TorchConvolutions().image_gradient(*(t.double() for t in (q_u, p_u, weight, weight_dot)))
    found = blocks.image_gradient(q_u, p_u, weight, weight_dot)
    assert found.dtype == dtype
    assert found.is_contiguous()
    assert distance(found, right) < near


# images, c_in, c_out, height, width: channels of every width of vector, one image, one pixel, one row
SMALL = [
    (20, 8, 8, 8, 8), (20, 3, 8, 8, 8), (3, 1, 8, 16, 16), (1, 2, 1, 1, 1), (2, 40, 33, 1, 7),
    (5, 17, 40, 5, 3), (1, 33, 21, 4, 1), (130, 5, 7, 2, 2),
]  # fmt: skip


def small_world(shape, dtype=torch.float64):
    """p_u, h and a weight, channels last."""
    b, c_in, c_out, h, w = shape
    make = generator(2, "small", *shape)
    sizes = (b, c_out, h, w), (b, c_in, h, w), (c_out, c_in, 3, 3)
    drawn = [torch.randn(size, generator=make, dtype=torch.float64) for size in sizes]
    return [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in drawn]


@pytest.fixture
def own_convolutions(blocks, monkeypatch):
    """The blocks, with PyTorch's convolutions taken away."""
    monkeypatch.setattr(TorchConvolutions, "convolve", None)
    monkeypatch.setattr(TorchConvolutions, "convolve_back", None)
    return blocks


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_small_convolutions_are_right(own_convolutions, shape, dtype, near):
    p_u, h, weight = given = small_world(shape, dtype)
    before = [t.clone() for t in given]
    u = own_convolutions.convolve(h, weight)
    d_h, d_weight = own_convolutions.convolve_back(p_u, h, weight)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    wide_p_u, wide_h, wide_weight = (t.double() for t in given)
    right_u = functional.conv2d(wide_h, wide_weight, padding=1)
    right_d_h = torch.nn.grad.conv2d_input(h.shape, wide_weight, wide_p_u, padding=1)
    right_d_weight = torch.nn.grad.conv2d_weight(wide_h, weight.shape, wide_p_u, padding=1)
    for found, right in ((u, right_u), (d_h, right_d_h), (d_weight, right_d_weight)):
        assert (found.dtype, found.shape) == (dtype, right.shape)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert distance(found, right) < near
    assert torch.equal(own_convolutions.convolve_back(p_u, h, weight, for_input=False)[1], d_weight)
    assert torch.equal(own_convolutions.convolve_back(p_u, h, weight, for_weight=False)[0], d_h)
    others = [t.transpose(0, 1).contiguous().transpose(0, 1) for t in given]
    assert torch.equal(own_convolutions.convolve(*others[1:]), u)
    assert all(torch.equal(a, b) for a, b in zip(own_convolutions.convolve_back(*others), (d_h, d_weight), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_threads_change_no_bit_of_a_small_convolution(own_convolutions, threads, dtype):
    p_u, h, weight = small_world((20, 8, 16, 8, 8), dtype)
    runs = []
    for number in (1, 2, 3):
        threads(number)
        runs.append([own_convolutions.convolve(h, weight), *own_convolutions.convolve_back(p_u, h, weight)])
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


@pytest.mark.parametrize(
    ("shape", "calls"), [((20, 8, 8, 8, 8), 0), ((64, 16, 16, 16, 16), 2), ((1, 3, 65, 2, 2), 2), ((2, 3, 8, 0, 4), 2)], ids=str
)
def test_large_convolutions_go_to_pytorch(blocks, monkeypatch, shape, calls):
    seen = []
    for name in ("convolve", "convolve_back"):
        monkeypatch.setattr(TorchConvolutions, name, lambda *given, name=name: seen.append(name))
    p_u, h, weight = small_world(shape, torch.float32)
    blocks.convolve(h, weight)
    blocks.convolve_back(p_u, h, weight, True, False)
    assert seen == ["convolve", "convolve_back"][:calls]


def test_a_small_convolution_of_what_does_not_fit_is_refused(blocks):
    p_u, h, weight = small_world((2, 3, 5, 4, 4))
    with pytest.raises(ValueError, match=r"wants \(5, 3, 3, 3\)"):
        blocks.convolve(h, weight[:, :2])
    with pytest.raises(ValueError, match=r"wants \(5, 3, 3, 3\), not torch\.float32"):
        blocks.convolve(h, weight.float())
    with pytest.raises(ValueError, match=r"wants \(2, 5, 4, 4\)"):
        blocks.convolve_back(p_u[:, :, :3], h, weight)
    with pytest.raises(TypeError, match=r"not torch\.bfloat16"):
        blocks.convolve(h.bfloat16(), weight.bfloat16())


def test_what_cpp_would_misread_is_refused(blocks):
    (u, u_dot), (p_h, _), (scale, shift, scale_dot, shift_dot) = world((2, 5, 4, 4))
    _, saved = blocks.forward(u, scale, shift)
    with pytest.raises(TypeError, match=r"float32 and float64 on the CPU, not torch\.bfloat16"):
        blocks.forward(u.bfloat16(), scale.bfloat16(), shift.bfloat16())
    with pytest.raises(ValueError, match=r"wants \(5,\), not torch\.float32"):
        blocks.forward(u, scale.float(), shift)
    with pytest.raises(ValueError, match=r"not torch\.float64 \(4,\)"):
        blocks.backward(saved, scale, shift[:4], p_h)
    with pytest.raises(ValueError, match=r"wants \(2, 5, 2, 2\)"):
        blocks.backward(saved, scale, shift, u)
    with pytest.raises(ValueError, match="lie densely"):
        blocks.tangent(saved, scale, shift, u_dot, scale_dot, shift_dot.repeat_interleave(2)[::2])
    with pytest.raises(ValueError, match=r"wants \(5, 1, 3, 3\)"):
        blocks.image_gradient(u, u_dot, torch.zeros(5, 1, 3, 3).double(), torch.zeros(4, 1, 3, 3).double())


def test_a_network_on_native_blocks_is_exact(blocks):
    for shape, depth, width in (((3, 8, 8), 3, 7), ((1, 7, 11), 2, 20)):
        make = generator(depth, "native network")
        network = FlatNetwork(ConvNet(*shape, 3, depth, width))
        network.module.double()
        theta = network.init(make).double()
        x, y = (torch.randn(4, *rest, generator=make, dtype=torch.float64) for rest in (shape, (3,)))
        direction = torch.randn(len(theta), generator=make, dtype=torch.float64)
        ours, theirs = ExplicitConvNet(network, blocks), Core(network)
        assert distance(ours.gradient(theta, x, y).gradient, theirs.gradient(theta, x, y).gradient) < 1e-12
        found, right = ours.pull_back(theta, x, y, direction), theirs.pull_back(theta, x, y, direction)
        assert all(distance(getattr(found, name), getattr(right, name)) < 1e-12 for name in ("slope", "theta", "x", "y"))


IN_A_NEW_PROCESS = """
import os
import sys
from pathlib import Path
import torch
from ddcore.matching.blocks.native import _run, native_blocks

def running():
    return len(os.listdir("/proc/self/task"))

before = running()
blocks = native_blocks()
assert blocks is native_blocks() is not None
assert running() == before, "a thread was left running"
make = torch.Generator().manual_seed(0)
draw = lambda *size: torch.randn(size, generator=make)
given = [draw(8, 64, 16, 16) for _ in "12"], [draw(8, 64, 8, 8) for _ in "12"], [draw(64) for _ in "1234"]
torch.set_num_threads(1)
alone = _run(blocks, *given)
assert running() == before, "a thread was left running"
child = os.fork()
before = running()  # a child has one thread, whatever libraries started in its parent
torch.set_num_threads(2)
same = all(map(torch.equal, _run(blocks, *given), alone))
assert running() > before, "no second thread helped"
if not child:
    os._exit(0 if same else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert same
mapped = {line.split()[5] for line in open("/proc/self/maps") if any(name in line for name in ("libgomp", "libomp", "libiomp"))}
assert len(mapped) == 1, mapped
"""


def test_a_new_process_loads_it_runs_one_openmp_and_forks(blocks, cache, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("PYTHONPATH", str(Path(native.__file__).parents[3]))
    done = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list((cache / "potstill").iterdir())) == 1


class Wrong(EagerBlocks):
    """A library whose numbers are off."""

    def forward(self, u, scale, shift):
        h, saved = super().forward(u, scale, shift)
        return h + 1e-6, saved


@pytest.mark.parametrize("trouble", ["no compiler", "no compilation", "no OpenMP", "two OpenMPs", "wrong numbers"])
def test_without_them_one_line_says_why(blocks, cache, monkeypatch, caplog, tmp_path, trouble):
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    if trouble == "no compiler":
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CXX", raising=False)
        why = "there is no C++ compiler on this machine"
    elif trouble == "no compilation":
        (tmp_path / "bad.cpp").write_text("#error too hard")
        monkeypatch.setattr(native, "SOURCE", tmp_path / "bad.cpp")
        why = "#error too hard"
    elif "OpenMP" in trouble:
        monkeypatch.setattr(native, "_mapped", lambda: [Path(f"/lib{n}/libgomp.so.1") for n in range(2 * (trouble == "two OpenMPs"))])
        why = f"of the OpenMP runtimes loaded, {2 * (trouble == 'two OpenMPs')} may be PyTorch's"
    else:
        monkeypatch.setattr(native, "EagerBlocks", Wrong)
        why = "does not compute the block"
    assert native_blocks.__wrapped__() is None
    (line,) = caplog.messages
    assert "PyTorch's own operations are" in line
    assert why in line
