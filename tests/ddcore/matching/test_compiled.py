"""The blocks that torch.compile makes, through inductor on the CPU: one shape, one dtype, since compiling takes seconds."""

import pytest
import torch
from torch._dynamo.utils import counters

from ddcore.matching.blocks.compiled import compiled_blocks
from ddcore.matching.blocks.eager import EagerBlocks
from ddcore.task import generator

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made():
    blocks = compiled_blocks(CPU)
    assert blocks is not None  # there is a compiler wherever the tests run
    return blocks


def run(blocks, maps, vectors):
    u, u_dot, p_h, q_h = maps
    scale, shift, scale_dot, shift_dot = vectors
    h, saved = blocks.forward(u, scale, shift)
    backward = blocks.backward(saved, scale, shift, p_h)
    h_dot, dotted = blocks.tangent(saved, scale, shift, u_dot, scale_dot, shift_dot)
    return [h, *backward, h_dot, *blocks.second(saved, dotted, scale, shift, scale_dot, p_h, q_h)]


@torch.no_grad()
def test_all_derivatives_equal_the_eager_blocks(made):
    make = generator(0, "compiled")
    b, c, h, w = 2, 5, 7, 6  # pooling drops the last row
    maps = [torch.randn(b, c, *size, generator=make, dtype=torch.float64) for size in ((h, w), (h, w), (h // 2, w // 2), (h // 2, w // 2))]
    maps = [(m + 1.5).contiguous(memory_format=torch.channels_last) for m in maps]
    vectors = [torch.randn(c, generator=make, dtype=torch.float64) for _ in range(4)]
    vectors[1][0] = -100.0  # one channel is dead
    given = [t.clone() for t in (*maps, *vectors)]
    graphs = counters["stats"]["unique_graphs"]
    found, expected = run(made, maps, vectors), run(EagerBlocks(), maps, vectors)
    assert counters["stats"]["unique_graphs"] == graphs + 4  # each function as a whole
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1e-12 * theirs.norm()
        assert ours.ndim == 1 or ours.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(t, was) for t, was in zip((*maps, *vectors), given, strict=True))


@pytest.mark.parametrize("error", [RuntimeError("no C++ compiler\nand more"), OSError("no C++ compiler")])
def test_without_a_compiler_there_is_none_and_one_line(monkeypatch, caplog, error):
    def broken(function, **options):
        def refuse(*arguments):
            raise error

        return refuse

    monkeypatch.setattr(torch, "compile", broken)
    compiled_blocks.cache_clear()
    try:
        assert compiled_blocks(CPU) is None
        assert compiled_blocks(CPU) is None
    finally:
        compiled_blocks.cache_clear()
    assert [record.getMessage().count("(no C++ compiler)") for record in caplog.records] == [1]
