"""Capturing what is asked of the device once, and asking for it again at the cost of one launch."""

from collections.abc import Callable
from typing import Protocol

import torch

Replay = Callable[[], None]


class Graphs(Protocol):
    """Two implementations: a GPU's, and `simulated_graphs.py`."""

    def capture(self, run: Callable[[], None]) -> Replay:
        """Run `run` to warm up, capture what it asks of the device, and return what asks for it again.

        A replay runs no Python: it reads and writes the very tensors that `run` did, with the grids and numbers that it
        had. So `run` must take its inputs from tensors that stay, leave its results in such, and wait for nothing.
        Tensors that it makes share one pool with all graphs of this object: none may be used after the next replay.
        """


class CudaGraphs:
    """CUDA graphs of one device, replayed on torch's current stream."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, run: Callable[[], None]) -> Replay:
        """As in `Graphs`. Capture the largest step first: the smaller ones then find room in what it has allocated."""
        # On the stream of the capture: kernels are loaded, and cuBLAS chooses its own and allocates its workspace, all
        # of which a capture forbids or would bury in the pool.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            run()
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            run()
        return graph.replay
