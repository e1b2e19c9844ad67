"""What stands between the operations and a device: memory, copies and kernel launches, in the order they are given.

Two implementations: `gpu_launcher.py`, and `simulated_launcher.py`, whose device is the CPU's memory.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from numba_kernels.cuda.target import Index3, Kernel
from numba_kernels.kernels import Download

Arguments = tuple[int | float, ...]


@dataclass(frozen=True, slots=True)
class DeviceProperties:
    """What the choice of kernels and grids depends on."""

    num_sms: int
    compute_capability: tuple[int, int]
    shared_bytes_per_block: int = 227 * 1024  # of shared memory, at most; by default an H100's


class Event(Protocol):
    """A point in the stream that the host can wait for."""

    def record(self) -> None:
        """It is here: behind all that was asked for so far."""

    def synchronize(self) -> None:
        """Wait until the device is there; at once if it was never recorded."""


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

    def upload(self, host: Tensor, memory: Tensor) -> None:
        """Copy host memory from `staging` to the device's `memory`, same shape and dtype, without waiting.

        The host must not write it again before it has waited for an event behind this copy. It may let go of it: memory
        that nobody refers to is used anew only when the copy is done.
        """

    def download(self, memory: Tensor) -> Download:
        """Copy to the host what `memory` holds at this point of the stream, without waiting for it."""

    def event(self) -> Event:
        """A new one."""

    def copy_rows(self, source: Tensor, destination: Tensor, pairs: list[tuple[int, int]]) -> None:
        """Copy rows source[i] -> destination[j] for (i, j) in `pairs`, between the device and pinned host memory.

        Both tensors contiguous, rows of equal size. Neither may be touched by the host before `synchronize`.
        """

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Memory on the device that nobody has written yet; NaN on the simulated one."""

    def staging(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] on the host, in memory that the device copies from by itself (pinned). Not written yet."""

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Load kernels now, which a first launch would do: inside a graph's capture that is too late."""

    def synchronize(self) -> None:
        """Wait until all that was asked for is done."""
