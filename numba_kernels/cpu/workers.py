"""Runs a compiled function on several threads, given its address.

The parallel part is compiled once for all workers, and a worker without it compiles in half the time.
"""

import functools
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, prange, types
from numba.extending import intrinsic

from numba_kernels.cpu.jit import build_stamp, kernel

_I64 = ir.IntType(64)


def worker(function: Callable[[int], None]) -> Callable[[], int]:
    """Decorator: compile `function(address of its arguments)` at the first call (or load it from disk).

    What it gives, when called, is the address of the compiled function. Float operations are kept as written.
    """

    @functools.cache
    def compiled() -> Any:
        function.__qualname__ = f"{function.__name__}_{build_stamp()}"
        signature = types.void(types.int64)
        return cfunc(signature, cache=True, boundscheck=False, error_model="numpy")(function)

    return lambda: compiled().address


@intrinsic
def _call(_context: Any, _function: types.Type, _arguments: types.Type) -> Any:
    """Call the worker at an address."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        signature = ir.FunctionType(ir.VoidType(), [_I64])
        b.call(b.inttoptr(a[0], signature.as_pointer()), [a[1]])
        return c.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@kernel(parallel=True)
def run_workers(function, arguments, num_threads):  # type: ignore[no-untyped-def]
    """Call a worker `num_threads` times at once, each time with the address of the same arguments."""
    for _ in prange(num_threads):
        _call(function, arguments)


@kernel()
def run_worker(function, arguments):  # type: ignore[no-untyped-def]
    """Call a worker once, on this thread."""
    _call(function, arguments)
