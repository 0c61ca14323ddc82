"""A fixed sequence of CUDA work as one graph: the host starts it with one call instead of thousands of small ones."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor, cuda

log = logging.getLogger(__name__)

Work = Callable[..., tuple[Tensor, ...]]
Captured = tuple[Callable[[], object], tuple[Tensor, ...]]  # runs the work again, and where its results then are
Capture = Callable[[Callable[[], tuple[Tensor, ...]]], Captured]

WARM_UP = 2  # runs before a capture: libraries set themselves up and kernels are compiled, neither of which a graph can hold


class Replayed:
    """`work`, replayed: called with tensors on any device, it returns work's results on `device`.

    Once for each combination of shapes and dtypes, the work is captured on copies of its arguments; every later call fills those and
    replays. So work must be a function of its arguments, and of tensors that stay where they are in memory; it must not wait for the
    device, draw random numbers, or take memory on the host. Where capture fails, and on anything but CUDA, work is simply called; the
    first failure is noted, once.
    """

    def __init__(self, work: Work, device: torch.device, note: Callable[[str], None] = log.warning, capture: Capture | None = None) -> None:
        self._work, self._device, self._note = work, device, note
        self._capture = capture or (CudaCapture() if device.type == "cuda" else None)
        self._graphs: dict[tuple[object, ...], tuple[list[Tensor], Captured]] = {}

    def __call__(self, *given: Tensor) -> tuple[Tensor, ...]:
        """What work returns for these arguments, in memory of its own."""
        if self._capture is not None:
            key = tuple((t.shape, t.dtype) for t in given)
            if key not in self._graphs:
                self._add(key, self._capture, given)
            if key in self._graphs:
                arguments, (replay, results) = self._graphs[key]
                for argument, value in zip(arguments, given, strict=True):
                    argument.copy_(_ready(value, self._device), non_blocking=True)
                replay()
                return tuple(result.clone() for result in results)
        return self._work(*(_ready(value, self._device).to(self._device, non_blocking=True) for value in given))

    def _add(self, key: tuple[object, ...], capture: Capture, given: tuple[Tensor, ...]) -> None:
        arguments = [value.detach().to(self._device, copy=True) for value in given]
        try:
            self._graphs[key] = arguments, capture(lambda: self._work(*arguments))
        except RuntimeError as error:  # an operation that cannot be captured, or too little memory
            self._capture = None
            reason = str(error).partition("\n")[0]
            self._note(f"iterations are not replayed as a CUDA graph, and start slower: {reason}")


class CudaCapture:
    """Captures work as CUDA graphs that share memory for what is alive only inside; their replays must not overlap.

    The memory includes cuBLAS's workspace, of which torch keeps one for each stream that work was warmed up or captured on, and which
    it frees with any graph of that stream. So this stream is no one else's, and graphs of two captures may be replayed side by side.
    """

    def __init__(self) -> None:
        self._pool, self._stream = cuda.graph_pool_handle(), cuda.Stream()

    def __call__(self, work: Callable[[], tuple[Tensor, ...]]) -> Captured:
        now, graph = cuda.current_stream(), cuda.CUDAGraph()
        self._stream.wait_stream(now)
        try:
            with cuda.stream(self._stream):
                for _ in range(WARM_UP):
                    work()
        finally:
            now.wait_stream(self._stream)
        try:
            with cuda.graph(graph, pool=self._pool, stream=self._stream):
                results = work()
        finally:
            cuda.set_stream(now)  # torch leaves it switched where a capture cannot be ended
        return graph.replay, results


def _ready(value: Tensor, device: torch.device) -> Tensor:
    """Pinned, if it must go from the host to a CUDA device: only then does the copy not wait for what the device is doing."""
    return value.pin_memory() if device.type == "cuda" and value.device.type == "cpu" else value
