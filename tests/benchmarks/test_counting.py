import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.allocations import peak_bytes
from benchmarks.full_unroll import Problem, full_unroll
from benchmarks.machine import Peaks
from benchmarks.roofline import Sizes, least_seconds, operations, passes_flops
from ddcore.networks.convnet import ConvNet
from ddcore.networks.flat import FlatNetwork

CPU = torch.device("cpu")


def counted(sizes: Sizes, steps: int) -> int:
    """Operations of the full unroll, as torch counts them."""
    network = FlatNetwork(ConvNet(sizes.channels, sizes.height, sizes.width, sizes.dims, sizes.depth, sizes.maps))
    start, goal = (network.init(torch.Generator().manual_seed(seed)) for seed in (0, 1))
    images, targets = torch.randn(sizes.batch, sizes.channels, sizes.height, sizes.width), torch.randn(sizes.batch, sizes.dims)
    problem = Problem(start, goal, images, targets, torch.tensor(0.01), [torch.arange(sizes.batch)] * steps)
    with FlopCounterMode(display=False) as counter:
        full_unroll(network.module, problem)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "sizes", [Sizes(4, 3, 16, 16, dims=10, depth=3, maps=8), Sizes(2, 1, 9, 14, dims=5, depth=1, maps=4), Sizes(3, 2, 8, 8, 6, 2, 8)]
)
def test_operations_are_those_that_torch_counts(sizes: Sizes) -> None:
    assert passes_flops(sizes) == counted(sizes, 3) - counted(sizes, 2)


def test_what_is_not_kept_is_counted_twice() -> None:
    sizes = Sizes(4, 3, 16, 16, dims=10, depth=2, maps=8)
    kept, again = operations(sizes), operations(sizes, kept=False)
    first, second, linear = 2.0 * 4 * 16 * 16 * 8 * 27, 2.0 * 4 * 8 * 8 * 8 * 72, 2.0 * 4 * 128 * 10
    assert passes_flops(sizes, kept=False) - passes_flops(sizes) == first + 2 * second + 2 * linear
    assert len(again) == len(kept) + 1 + 2 + 2 + 2 * 2  # forward and input of the layers, both ways of the blocks


def test_the_roofline_is_the_slower_of_arithmetic_and_memory() -> None:
    sizes = Sizes(4, 3, 16, 16, dims=10, depth=2, maps=8)
    flops, maps, parameters = (sum(getattr(one, name) for one in operations(sizes)) for name in ("flops", "maps", "parameters"))
    assert least_seconds(sizes, 3, Peaks(1e9, 1e30), 4, 4) == pytest.approx(3 * flops / 1e9)
    assert least_seconds(sizes, 3, Peaks(1e30, 1e9), 4, 4) == pytest.approx(3 * 4 * (maps + parameters) / 1e9)
    assert least_seconds(sizes, 3, Peaks(1e30, 1e9), 2, 4) == pytest.approx(3 * (2 * maps + 4 * parameters) / 1e9)
    assert least_seconds(sizes, 1, Peaks(1e9, 1e9), 4, 4) > max(flops, 4 * (maps + parameters)) / 1e9


def test_parameters_are_told_from_maps() -> None:
    sizes = Sizes(4, 3, 16, 16, dims=10, depth=1, maps=8)
    convolution, linear, others = 9 * 3 * 8, 8 * 8 * 8 * 10, 3 * 8 + 10
    # One each for forward and weight, and in the pull-back tangent 1, second input 2, second weight 1: six. Behind a layer also an
    # input pass, and a tangent of two terms: eight. Each of the two updates goes through three vectors of all parameters.
    wanted = 6 * convolution + 8 * linear + 2 * 3 * (convolution + linear + others)
    assert sum(one.parameters for one in operations(sizes)) == wanted


def test_bytes_are_counted_at_their_peak() -> None:
    def run() -> torch.Tensor:
        first = torch.empty(1000, dtype=torch.float64)
        second = first.neg()
        del first
        return second[:500].float()

    held = torch.zeros(1 << 20)
    assert peak_bytes(run, CPU) == 8000 + 8000
    assert peak_bytes(lambda: held.clone(), CPU) == held.nbytes
    assert peak_bytes(lambda: held.view(-1), CPU) == 0


def test_bytes_of_a_graph_count_until_it_is_gone() -> None:
    x = torch.zeros(1000, requires_grad=True)
    chain = peak_bytes(lambda: x.exp().exp().exp(), CPU)
    with torch.no_grad():
        assert peak_bytes(lambda: x.exp().exp().exp(), CPU) == 2 * 4000
    assert chain == 3 * 4000
