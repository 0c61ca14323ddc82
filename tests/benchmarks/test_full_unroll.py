import pytest
import torch

from benchmarks.exactness import SIZES, gradients, max_relative_error, relative_error, small_problem
from benchmarks.full_unroll import full_unroll
from ddcore.matching.adjoint import Memory
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.matching.cores import Backward, Core
from ddcore.matching.explicit import ExplicitConvNet

CPU = torch.device("cpu")


def test_the_adjoint_equals_the_full_unroll() -> None:
    assert max_relative_error(Core, CPU) < 1e-12
    assert max_relative_error(lambda network: ExplicitConvNet(network, EagerBlocks()), CPU) < 1e-12


def test_a_wrong_core_shows() -> None:
    class Wrong(Core):
        def pull_back(self, *args: object, **kwargs: object) -> Backward:
            found = super().pull_back(*args, **kwargs)  # type: ignore[arg-type]
            return Backward(found.slope, found.theta, found.x * (1 + 1e-6), found.y)

    assert max_relative_error(Wrong, CPU) > 1e-7


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_full_unroll_agrees_with_differences(momentum: float) -> None:
    network, problem = small_problem(SIZES[1], CPU, momentum, by_layer=True, augmented=True)
    answer = full_unroll(network.module, problem, with_start=True)
    for layer in range(len(problem.rate)):
        step = torch.zeros_like(problem.rate)
        step[layer] = 1e-6
        above, below = (
            full_unroll(network.module, type(problem)(**vars(problem) | {"rate": problem.rate + sign * step})).loss for sign in (1, -1)
        )
        assert float(answer.rate[layer]) == pytest.approx(float(above - below) / 2e-6, rel=1e-5)
    pixel = torch.zeros_like(problem.images)
    pixel[3, 0, 5, 4] = 1e-5
    above, below = (
        full_unroll(network.module, type(problem)(**vars(problem) | {"images": problem.images + sign * pixel})).loss for sign in (1, -1)
    )
    assert float(answer.images[3, 0, 5, 4]) == pytest.approx(float(above - below) / 2e-5, rel=1e-4, abs=1e-9)


def test_what_is_kept_does_not_matter_to_the_answer() -> None:
    network, problem = small_problem(SIZES[0], CPU, 0.9, by_layer=False, augmented=False)
    plain, cached = (gradients(Core(network), problem, memory) for memory in (Memory(), Memory(len(problem.batches))))
    assert all(relative_error(one, other) == 0.0 for one, other in zip(plain, cached, strict=True))
