import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _small_and_harmless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peaks and exactness in no time, and the process left as it was."""
    monkeypatch.setattr("benchmarks.machine.CPU_SIDE", 64)
    monkeypatch.setattr("benchmarks.machine.CPU_COPY", 1 << 16)
    threads, precision, cudnn = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn
    flags = cudnn.allow_tf32, cudnn.benchmark
    deterministic, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32, cudnn.benchmark = flags


@pytest.fixture
def last_line(capsys: pytest.CaptureFixture[str]) -> Callable[[], dict[str, Any]]:
    """What was printed last, read as JSON."""
    return lambda: json.loads(capsys.readouterr().out.splitlines()[-1])
