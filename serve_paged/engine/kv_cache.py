"""The KV cache's memory: one tensor on the device, one on the host, a block being one row of either."""

import logging
from collections import deque
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_kernels import UNSCALED, Kernels
from serve_paged.core.schedule_output import SchedulerOutput
from serve_paged.engine.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class BlockShape:
    """The shape of one block: [num_layers, 2, num_kv_heads, block_size, head_dim]."""

    num_layers: int
    num_kv_heads: int
    block_size: int
    head_dim: int

    def num_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one block, K and V of all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.block_size * self.head_dim * dtype.itemsize

    def num_blocks_in(self, gib: float, dtype: torch.dtype) -> int:
        """How many blocks fit into that many GiB."""
        return int(gib * GIB) // self.num_bytes(dtype)


@dataclass(frozen=True, slots=True)
class SwapTime:
    """What moving blocks between device and host took."""

    num_blocks: int
    seconds: float


class KVCache:
    """Blocks on the device and on the host, and the row copies that a scheduler's output asks for.

    Both tensors are zero-filled: a NaN in an unused slot would poison attention's output.
    """

    def __init__(
        self, shape: BlockShape, dtype: torch.dtype, kernels: Kernels, *, num_blocks: int, num_host_blocks: int
    ) -> None:
        row = (shape.num_layers, 2, shape.num_kv_heads, shape.block_size, shape.head_dim)
        self._kernels = kernels
        self.layout = kernels.preferred_layout(dtype, shape.head_dim)
        self.block_size = shape.block_size
        self.scales = UNSCALED  # no checkpoint that is loaded brings others
        on_gpu = kernels.device.type == "cuda"  # whose copies need pages that stay where they are
        self.blocks = torch.zeros((num_blocks, *row), dtype=dtype, device=kernels.device)
        self.host_blocks = torch.zeros((num_host_blocks, *row), dtype=dtype, pin_memory=on_gpu)
        self._swaps: deque[tuple[int, Stopwatch]] = deque()  # blocks moved, and how long it takes

    @property
    def block_bytes(self) -> int:
        """Bytes of one block."""
        return self.blocks[0].numel() * self.blocks.element_size()

    @property
    def format(self) -> str:
        """What the bytes of a block mean: blocks of equal format can be exchanged."""
        shape = "x".join(map(str, self.blocks.shape[1:]))
        return f"{self.layout} {str(self.blocks.dtype).removeprefix('torch.')} {shape}"

    def read_device(self, block: int) -> Tensor:
        """A copy on the CPU of one block's bytes, uint8 [block_bytes]."""
        return self.blocks[block].reshape(-1).view(torch.uint8).to("cpu", copy=True)

    def read_host(self, slot: int) -> Tensor:
        """The same of a block in the host tier."""
        return self.host_blocks[slot].reshape(-1).view(torch.uint8).clone()

    def write_host(self, slot: int, row: NDArray[np.uint8]) -> None:
        """Set a block of the host tier, which nothing on its way to the device may be reading."""
        self.host_blocks[slot].view(-1).view(torch.uint8).copy_(torch.from_numpy(row.copy()))

    def synchronize(self) -> None:
        """Wait for every copy that was asked for."""
        self._kernels.synchronize()

    def move_blocks(self, output: SchedulerOutput) -> SwapTime:
        """Swap out, swap in, then copy on write: the order that the scheduler counts on (core/schedule_output.py).

        On a GPU nothing here waits for it. Returns what the swaps took that are known to be over: on the CPU this
        step's, on a GPU those of earlier steps.
        """
        if output.swap_out or output.swap_in:
            stopwatch = Stopwatch(self.blocks.device)
            if output.swap_out:
                self._kernels.swap_blocks(self.blocks, self.host_blocks, _pairs(output.swap_out))
            if output.swap_in:
                self._kernels.swap_blocks(self.host_blocks, self.blocks, _pairs(output.swap_in))
            stopwatch.stop()
            self._swaps.append((len(output.swap_out) + len(output.swap_in), stopwatch))
        if output.copies:
            self._kernels.copy_blocks(self.blocks, _pairs(output.copies))
        num_blocks, seconds = 0, 0.0
        while self._swaps and self._swaps[0][1].is_over():
            num_moved, stopwatch = self._swaps.popleft()
            num_blocks, seconds = num_blocks + num_moved, seconds + stopwatch.seconds()
        return SwapTime(num_blocks, seconds)


def _pairs(pairs: list[tuple[int, int]]) -> Tensor:
    return torch.tensor(pairs, dtype=torch.int64)  # [num_pairs, 2]
