"""Runs a kernel's own source on the CPU, one GPU thread per greenlet, to find what is wrong with it.

Lanes run one after another up to the next warp operation or barrier, in an order that `seed` shuffles, so that what
depends on an order that the GPU does not promise gives NaN or another result. Not modelled: speed, bank conflicts,
races between blocks, weak ordering of global memory.
"""

import contextvars
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from greenlet import getcurrent, greenlet

from numba_kernels.cuda.device_memory import POISON, AddressSpace, CheckedArray, Registers
from numba_kernels.cuda.ptx_twins import WARP_OPERATIONS, PtxTwins
from numba_kernels.cuda.target import Index3, Target

WARP = 32
_SHARED_WINDOW = 1024  # where shared memory begins: 0 is no valid address
_EXIT, _BARRIER, _WARP_BARRIER = "exit", "syncthreads", "syncwarp"


class LaunchFault(Exception):
    """Threads that had to run together did not."""


def _as_int32(value: Any) -> int:
    return ((int(value) + 2**31) & 0xFFFFFFFF) - 2**31


def _as_uint32(value: Any) -> int:
    return int(value) & 0xFFFFFFFF


_ELEMENTS: dict[Any, Any] = {np.float32: np.float32, _as_int32: np.int32, _as_uint32: np.uint32}
_POISON: dict[Any, Any] = {np.float32: np.uint32(POISON).view(np.float32), _as_int32: POISON, _as_uint32: POISON}


class _Thread(greenlet):
    """One GPU thread."""

    def __init__(self, run: Callable[[], None], index: int, block: "_Block") -> None:
        super().__init__(run)
        self.index, self.block, self.place = index, block, Index3(index, 0, 0)
        self.copies: list[list[tuple[int, tuple[int, ...]]]] = [[]]
        self.num_shared_arrays = 0
        self.waits_for = ""
        self.operands: tuple[Any, ...] = ()
        self.gr_context = contextvars.copy_context()  # numpy's error state is kept there


@dataclass(slots=True)
class _Block:
    index: Index3
    shared: AddressSpace = field(default_factory=AddressSpace)
    arrays: list[CheckedArray] = field(default_factory=list)
    next_address: int = _SHARED_WINDOW
    dynamic_bytes: int = 0
    dynamic: CheckedArray | None = None

    def shared_array(self, position: int, length: int, dtype: Any) -> CheckedArray:
        """All threads of a block make the same arrays in the same order: the n-th is one array."""
        if position == len(self.arrays):
            self.arrays.append(self._allocate(length, dtype))
        return self.arrays[position]

    def dynamic_array(self, dtype: Any) -> CheckedArray:
        """What the launch asked for, whoever names it."""
        if self.dynamic is None:
            self.dynamic = self._allocate(self.dynamic_bytes // 4, dtype)
        return self.dynamic

    def _allocate(self, length: int, dtype: Any) -> CheckedArray:
        array = CheckedArray(length, dtype, self.next_address)
        self.shared.add(self.next_address, array.view)
        self.next_address += -(-4 * length // 128) * 128
        return array


def _running() -> Any:
    return getcurrent()


def _together(operation: str, operands: tuple[Any, ...]) -> Any:
    """Stop the running lane until its whole warp is here; returns this lane's result."""
    return getcurrent().parent.switch((operation, operands))


class _SharedArrays:
    def array(self, shape: int, dtype: Any, _alignment: int = 4) -> CheckedArray:
        """Shape 0 names the launch's dynamic shared memory."""
        thread = _running()
        if shape == 0:
            dynamic: CheckedArray = thread.block.dynamic_array(_ELEMENTS[dtype])
            return dynamic
        thread.num_shared_arrays += 1
        array: CheckedArray = thread.block.shared_array(thread.num_shared_arrays - 1, shape, _ELEMENTS[dtype])
        return array


class _LocalArrays:
    def array(self, shape: int, dtype: Any) -> Registers:
        return Registers(shape, dtype, _POISON[dtype])


class _Cuda:
    """The names of `numba.cuda` that kernels use."""

    shared, local = _SharedArrays(), _LocalArrays()

    def __init__(self, grid: Index3, block: Index3) -> None:
        self.gridDim, self.blockDim = grid, block

    @property
    def threadIdx(self) -> Index3:
        place: Index3 = _running().place
        return place

    @property
    def blockIdx(self) -> Index3:
        index: Index3 = _running().block.index
        return index

    def syncthreads(self) -> None:
        _together(_BARRIER, ())

    def syncwarp(self) -> None:
        _together(_WARP_BARRIER, ())


@dataclass(slots=True)
class Simulator:
    """Launches kernels over the arrays in `arrays` (numpy, contiguous), the only memory that they can reach.

    Arrays that are not writeable fault when written. `seed` chooses the order in which lanes run. An asynchronous copy
    arrives when it is waited for, or with `early_copies` at once: both are as late or early as a GPU may be.
    """

    arrays: list[Any]
    seed: int = 0
    early_copies: bool = False

    def launch(
        self,
        make_kernel: Callable[[Target], Callable[..., None]],
        grid: Index3,
        num_threads: int,
        *args: Any,
        dynamic_shared_bytes: int = 0,
    ) -> None:
        """Run `make_kernel(target)` over a grid of one-dimensional blocks. Raises `MemoryFault`, `LaunchFault`."""
        memory = AddressSpace()
        for array in (array for array in self.arrays if array.size):
            if not array.flags.c_contiguous:
                raise ValueError(f"an array of strides {array.strides} is not contiguous: pass what it is a view of")
            memory.add(array.ctypes.data, memoryview(array.reshape(-1)).cast("B"))
        cuda = _Cuda(grid, Index3(num_threads))
        kernel = make_kernel(_simulated_target(cuda, memory, self.early_copies))
        order = np.random.default_rng(self.seed)
        blocks = [Index3(x, y, z) for z in range(grid.z) for y in range(grid.y) for x in range(grid.x)]
        with np.errstate(all="ignore"):
            for index in order.permutation(len(blocks)):
                block = _Block(blocks[index], dynamic_bytes=dynamic_shared_bytes)
                _run_block(lambda: kernel(*args), block, num_threads, order)


def _simulated_target(cuda: _Cuda, memory: AddressSpace, early_copies: bool) -> Target:
    """The names of a kernel that is to be simulated."""
    return Target(
        cuda=cuda,
        ptx=PtxTwins(memory, lambda: _running().block.shared, _together, lambda: _running().copies, early_copies),
        device=lambda function: function,
        int32=_as_int32,
        int64=int,
        uint32=_as_uint32,
        float32=np.float32,
    )


def _run_block(run: Callable[[], None], block: _Block, num_threads: int, order: np.random.Generator) -> None:
    """One warp after another runs as far as the barrier: a warp that need not wait for the others does not."""
    threads = [_Thread(run, i, block) for i in range(num_threads)]
    warps = [threads[begin : begin + WARP] for begin in range(0, num_threads, WARP)]
    at_barrier = True
    while at_barrier:
        for i in order.permutation(len(warps)):
            _run_warp(warps[i], order)
        at_barrier = _complete_barrier(threads)


def _run_warp(lanes: list[_Thread], order: np.random.Generator) -> None:
    """From one barrier to the next, or to the end."""
    results: list[Any] = []
    ready = [lane for lane in lanes if not lane.dead]
    while ready:
        for i in order.permutation(len(ready)):
            thread = ready[i]
            stopped = thread.switch(results[i]) if results else thread.switch()
            thread.waits_for, thread.operands = (_EXIT, ()) if thread.dead else stopped
        ready, results = _complete_warp_operation(lanes)


def _complete_warp_operation(lanes: list[_Thread]) -> tuple[list[_Thread], list[Any]]:
    """The lanes that can go on, with their results: a warp's all, or none at a block's barrier or the end."""
    operations = {lane.waits_for for lane in lanes}
    if operations <= {_EXIT, _BARRIER}:
        return [], []
    if len(operations) > 1:
        raise LaunchFault(f"the lanes of a warp are at different operations: {sorted(operations)}")
    (operation,) = operations
    if operation == _WARP_BARRIER:
        return lanes, []
    if len(lanes) != WARP:
        raise LaunchFault(f"{operation} by {len(lanes)} lanes")
    return lanes, WARP_OPERATIONS[operation]([lane.operands for lane in lanes])


def _complete_barrier(threads: list[_Thread]) -> bool:
    """Whether all threads are at the block's barrier, rather than at their end."""
    num_waiting = sum(not thread.dead for thread in threads)
    if num_waiting not in (0, len(threads)):
        raise LaunchFault(f"{num_waiting} of {len(threads)} threads are at a barrier, the others have ended")
    return num_waiting > 0
