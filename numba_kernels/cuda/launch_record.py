"""Calling cuLaunchKernel at the least cost: all that it takes is packed into a record, sent off by compiled code.

Numba's own launches type and convert every argument, tens of microseconds a tensor. Here arguments are numbers, packed
by `struct`; a compiled function reads the record and calls the driver through its address.
"""

import ctypes
import struct
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from numba_kernels.cpu.jit import i64_ptr
from numba_kernels.cuda.launcher import Arguments
from numba_kernels.cuda.target import Index3, Kernel

# Every argument has 8 bytes of its own, of which the driver reads as many as the kernel's parameter has.
_FORMATS = {"int64": "q", "int32": "i4x", "uint32": "I4x", "float32": "f4x"}
# cuLaunchKernel's address; function; grid's x, y, z; threads; bytes of shared memory; stream; where the pointers are
_NUM_FIELDS = 9


class LaunchRecord:
    """One kernel's launches. One thread at a time may use it; the driver has copied everything when `send` returns."""

    __slots__ = ("_address", "_function", "_kernel", "_launch_address", "_memory", "_pack", "_pointers", "_shared")

    def __init__(self, kernel: Kernel, function: int, launch_address: int) -> None:
        """`function`: the driver's handle of the kernel; `launch_address`: where cuLaunchKernel is."""
        num_arguments = len(kernel.argument_types)
        self._kernel, self._function, self._launch_address = kernel, function, launch_address
        self._shared = kernel.dynamic_shared_bytes
        self._memory = (ctypes.c_int64 * (_NUM_FIELDS + 2 * num_arguments))()
        self._address = ctypes.addressof(self._memory)
        arguments = self._address + 8 * _NUM_FIELDS
        self._pointers = arguments + 8 * num_arguments  # one to each argument
        self._memory[_NUM_FIELDS + num_arguments :] = [arguments + 8 * i for i in range(num_arguments)]
        formats = "".join(_FORMATS[name] for name in kernel.argument_types)
        self._pack = struct.Struct(f"={_NUM_FIELDS}q{formats}").pack_into

    def send(self, grid: Index3, num_threads: int, stream: int, args: Arguments) -> int:
        """Launch; returns the driver's code. Raises TypeError for arguments of another number or type."""
        try:
            self._pack(
                self._memory, 0, self._launch_address, self._function, *grid, num_threads, self._shared, stream,
                self._pointers, *args,
            )  # fmt: skip
        except struct.error as error:
            raise TypeError(f"{self._kernel.name} takes {self._kernel.argument_types}, not {args}: {error}") from None
        return int(_send(self._address))

    def send_again(self, count: int) -> int:
        """The last launch `count` times more, by compiled code alone: what the driver itself costs, for benchmarks."""
        return int(_send_often(self._address, count))


@intrinsic
def _call_driver(
    _context: Any, _launch: Any, _function: Any, _x: Any, _y: Any, _z: Any, _threads: Any, _shared: Any, _stream: Any,
    _pointers: Any,
) -> Any:  # fmt: skip
    """cuLaunchKernel with a record's fields, all int64."""

    def generate(_c: Any, builder: Any, _signature: Any, fields: Any) -> Any:
        i32, i64 = ir.IntType(32), ir.IntType(64)
        launch, function, *narrow, stream, pointers = fields
        x, y, z, threads, shared = (builder.trunc(field, i32) for field in narrow)
        one, no_extra = ir.Constant(i32, 1), ir.Constant(i64, 0)
        signature = ir.FunctionType(i32, [i64, *[i32] * 7, *[i64] * 3])
        driver = builder.inttoptr(launch, signature.as_pointer())
        return builder.call(driver, [function, x, y, z, threads, one, one, shared, stream, pointers, no_extra])

    return types.int32(*[types.int64] * _NUM_FIELDS), generate


@njit(cache=True)
def _send(record):  # type: ignore[no-untyped-def]
    f = i64_ptr(record)
    return _call_driver(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8])


@njit(cache=True)
def _send_often(record, count):  # type: ignore[no-untyped-def]
    f = i64_ptr(record)
    code = 0
    for _ in range(count):
        code |= _call_driver(f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8])
    return code
