from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _small_and_harmless(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Peaks and exactness in no time, and the process left as it was."""
    monkeypatch.setattr("benchmarks.machine.CPU_SIDE", 64)
    monkeypatch.setattr("benchmarks.machine.CPU_COPY", 1 << 16)
    threads, precision, cudnn = torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.backends.cudnn
    flags = cudnn.allow_tf32, cudnn.benchmark
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(precision)
    cudnn.allow_tf32, cudnn.benchmark = flags
