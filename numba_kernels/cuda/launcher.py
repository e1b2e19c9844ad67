"""What stands between the operations and a device: memory, copies and kernel launches, in the order they are given.

Two implementations: `gpu_launcher.py`, and `simulated_launcher.py`, whose device is the CPU's memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from numba_kernels.cuda.target import Index3, Kernel

Arguments = tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What the choice of kernels and grids depends on."""

    num_sms: int
    compute_capability: tuple[int, int]


class Launcher(Protocol):
    """One device's stream of work: what is asked for runs later, in order. One thread at a time may use it."""

    @property
    def device(self) -> torch.device:
        """Where the tensors live: cuda:n, or cpu for the simulated device."""

    @property
    def properties(self) -> DeviceProperties:
        """Of that device."""

    def launch(
        self, kernel: Kernel, grid: Index3, num_threads: int, args: Arguments, touching: tuple[Tensor, ...]
    ) -> None:
        """Run a kernel over a grid of one-dimensional blocks.

        `args`: addresses and numbers in the order of `kernel.argument_types`. `touching`: the tensors whose storage
        the kernel may reach; a simulated kernel can reach nothing else. An empty grid launches nothing.
        """

    def copy_rows(self, source: Tensor, destination: Tensor, pairs: list[tuple[int, int]]) -> None:
        """Copy rows source[i] -> destination[j] for (i, j) in `pairs`, between the device and pinned host memory.

        Both tensors contiguous, rows of equal size. Neither may be touched by the host before `synchronize`.
        """

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory on the device that nobody has written yet; NaN on the simulated one."""

    def staging(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the host, zero, from which copies to the device need not wait (pinned)."""

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Load kernels now, which a first launch would do: inside a graph's capture that is too late."""

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
