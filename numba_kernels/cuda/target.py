"""What a kernel's source is written against: the names it uses, bound either to the compiler or to the simulator.

A kernel is made by a factory `make_xxx(variant, target)`. Everything that the function uses and that differs between a
GPU and the simulator comes from `target`, so one source runs in both, and importing a kernel's module needs neither
numba-cuda nor a GPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Target:
    """The names of one target. Addresses in global memory are int64, those in shared memory int32."""

    cuda: Any  # threadIdx, blockIdx, gridDim, shared.array, local.array, syncthreads, as in `numba.cuda`
    ptx: Any  # the operations of `ptx.py`
    device: Callable[[Callable[..., Any]], Any]  # makes a function callable from kernels; always inlined
    int32: Any
    int64: Any
    uint32: Any
    float32: Any


class Index3(NamedTuple):
    """A place in a grid, or a grid's extents."""

    x: int
    y: int = 1
    z: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """A kernel's source with what the compiler has to be told. Factories give the same object for the same variant."""

    make: Callable[[Target], Callable[..., None]]
    argument_types: tuple[str, ...]  # names of Target's types
    num_threads: int  # the most threads of a block
    min_blocks_per_sm: int = 1  # caps the registers
    dynamic_shared_bytes: int = 0  # of `cuda.shared.array(0, ...)`; above 48 KB a launcher has to ask the driver for it
    name: str = ""  # in the catalogue (`catalog.py`), and of its prebuilt file; "" for kernels outside it
    min_compute_capability: tuple[int, int] = (8, 0)  # the oldest GPU that has its instructions: PTX is made for it
    instructions: tuple[str, ...] = ()  # what its machine code has to hold, such as "HMMA", "LDG.128"
    wide: bool = False  # reads and writes global memory 16 bytes at a time, but for some indices

    @property
    def entry(self) -> str:
        """The compiled function's symbol."""
        return self.name.replace("-", "_") or "kernel"

    @property
    def max_registers(self) -> int:
        """What a thread may use: an SM has 65536, given out 8 at a time."""
        return min(255, 65536 // (self.num_threads * self.min_blocks_per_sm) // 8 * 8)
