"""The Triton kernels under Triton's interpreter, on the CPU, and as far as a machine without a GPU can compile them."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddcore.matching.blocks import triton as access

CPU = torch.device("cpu")
CASES = ("even", "odd", "one channel", "several programs", "several tiles", "dead", "flat")
# Relative to float64; in bfloat16, maps are rounded to three digits on the way out.
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2}


def script(name, *arguments, interpret="1"):
    environment = os.environ | {"TRITON_INTERPRET": interpret, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name(name)), *arguments]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, capture_output=True, text=True, env=environment | {"PYTHONPATH": str(root)}, timeout=200)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def errors():
    return script("interpreted_triton.py")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_all_derivatives_equal_the_eager_blocks(errors, case, dtype):
    """h; P_u, dl/dg, dl/ds; h_dot; Q_u, dS/dg, dS/ds."""
    found = errors[f"{case} {dtype}"]
    assert len(found) == 8
    assert max(found) < TOLERANCES[dtype], found


def test_an_explicit_step_on_the_kernels_is_exact(errors):
    assert max(errors["network"]) < 1e-12
    assert 1e-4 < max(errors["network in bfloat16"]) < 0.15  # a cosine of 0.99; the kernels read and write bfloat16 maps


def test_the_adjoint_on_the_kernels_equals_the_full_unroll(errors):
    assert len(errors["adjoint"]) == 5
    assert max(errors["adjoint"]) < 1e-12, errors["adjoint"]


def test_a_wrong_constant_in_the_kernels_shows():
    """It is the kernels that the other tests run, and a small mistake in them is far above the tolerance."""
    found = script("interpreted_triton.py", "0.001")
    assert sum(error > 1e-6 for error in found) == 6, found  # dl/ds and dS/ds know only which units are alive


def test_every_kernel_compiles_for_a_gpu():
    """To machine code for an H100 or H200, which needs none; nothing may spill out of the registers."""
    found = script("compiled_triton.py", interpret="0")
    assert len(found) == 12
    for name, (size, stack) in found.items():
        assert size > 1000, name
        assert stack == 0, name


@pytest.fixture
def _fresh():
    access.triton_blocks.cache_clear()
    yield
    access.triton_blocks.cache_clear()


@pytest.mark.usefixtures("_fresh")
def test_without_triton_there_is_none_and_one_line(monkeypatch, caplog):
    def refuse(name):
        raise ImportError("no module named triton")

    monkeypatch.setattr(importlib, "import_module", refuse)
    assert access.triton_blocks(CPU) is None
    assert access.triton_blocks(CPU) is None
    assert [record.getMessage().count("no module named triton") for record in caplog.records] == [1]


@pytest.mark.usefixtures("_fresh")
def test_where_kernels_cannot_start_there_is_none_and_one_line(caplog):
    """Triton can be imported, but drives no device here."""
    assert access.triton_blocks(CPU) is None
    assert access.triton_blocks(CPU) is None
    assert len([record for record in caplog.records if record.name == access.log.name]) == 1


def test_kernels_that_work_are_found_and_wrong_ones_are_not(errors):
    assert errors["found"] == ["triton", None]
