"""The one way a CPU kernel is compiled, and raw-address access for kernels that take `tensor.data_ptr()`.

A call with eight `data_ptr()` integers costs about 1 µs from Python; eight tensors seen through `.numpy()` cost 5 µs.

How to write a kernel:
- `@kernel()` or `@kernel(parallel=True)` on what Python calls. Arguments are int64 addresses, ints and floats.
- `@device` on what kernels call: always inlined, so an argument that is constant in the caller is constant here.
- Specialise by closing over plain ints, floats, bools and strings (`head_dim`, `is_bf16`) inside a `functools.cache`
  factory. Closing over another compiled function or an intrinsic is refused: Numba keys its disk cache by a closure's
  pickled values, and those hold an identity that is new in each process, so the cache would never be hit. Name such
  functions as globals and choose between them with `if is_bf16:`; the dead branch is pruned.
- Inside `prange(n)` never write `p[i] = x` through a raw pointer with the loop's own index: Numba sees an array that
  nobody reads afterwards and drops the store without a word. Store in a `@device` function, or through an intrinsic.
- `numba.get_num_threads()` inside a kernel makes it uncacheable; `get_thread_id()` does not. Pass the number in.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.cpu.threading import load_tbb

# Sums may be reordered (else no reduction vectorises), multiply-adds fused, reciprocals used. `nnan` and `ninf` are
# left out: masks use -inf, and a NaN must come out as a NaN, not as a number.
FASTMATH = frozenset({"reassoc", "contract", "nsz", "arcp", "afn"})


@functools.cache
def build_stamp() -> str:
    """Fingerprint of this folder's sources and of the processor: what compiled code depends on.

    Numba checks only the file that defines a cached kernel, not the helpers it inlines, and two processes saving
    different variants into one cache index can mix them up. With the stamp in the file's name neither can happen.
    """
    digest = hashlib.blake2b(digest_size=6)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(llvmlite.binding.get_host_cpu_name().encode())
    digest.update(llvmlite.binding.get_host_cpu_features().flatten().encode())
    return digest.hexdigest()


def kernel(*, parallel: bool = False, exact: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """Decorator: an entry point called from Python, without the GIL, cached on disk, `prange` live if `parallel`.

    `exact` keeps every float operation as written (attention's bitwise invariances need it): no `FASTMATH`.
    Compiled (or loaded) at its first call. Raises `TypeError` if the function closes over anything but plain values.
    """

    def compile_(function: Callable[..., Any]) -> Any:
        values = [cell.cell_contents for cell in function.__closure__ or ()]
        for value in values:
            if not isinstance(value, int | float | str | bool):
                raise TypeError(f"{function.__qualname__} closes over {value!r}: its disk cache would never be hit")
        # Numba's cache tells neither closures in one index file apart safely (see `build_stamp`) nor options.
        variant = hashlib.blake2b(repr((values, parallel, exact)).encode(), digest_size=4).hexdigest()
        function.__qualname__ = f"{function.__name__}_{variant}_{build_stamp()}"
        if parallel:
            load_tbb()
        options: dict[str, Any] = {"nogil": True, "cache": True, "boundscheck": False, "error_model": "numpy"}
        return njit(parallel=parallel, fastmath=False if exact else set(FASTMATH), **options)(function)

    return compile_


def device(function: Callable[..., Any]) -> Any:
    """Decorator: a helper that kernels call; always inlined. Its code is saved as part of theirs."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", fastmath=set(FASTMATH), forceinline=True)(function)


def exact_device(function: Callable[..., Any]) -> Any:
    """Decorator: `device` without `FASTMATH`."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)


def _pointer_to(element: types.Type) -> Any:
    def typer(_context: Any, _address: types.Type) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_data_type(element).as_pointer())

        return types.CPointer(element)(types.int64), generate

    return intrinsic(typer)


# int64 address -> typed pointer: `p[i]` loads and stores element i, unchecked.
f32_ptr = _pointer_to(types.float32)
u16_ptr = _pointer_to(types.uint16)
u32_ptr = _pointer_to(types.uint32)
i32_ptr = _pointer_to(types.int32)
i64_ptr = _pointer_to(types.int64)


def _pointer_by_dtype(bfloat: types.Type, float_: types.Type) -> Any:
    def typer(_context: Any, _address: types.Type, is_bfloat: types.Type) -> Any:
        element = bfloat if is_bfloat.literal_value else float_

        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_data_type(element).as_pointer())

        return types.CPointer(element)(types.int64, is_bfloat), generate

    return intrinsic(prefer_literal=True)(typer)


# (int64 address, constant `is_bfloat`) -> pointer to the tensor's elements, to their bits, or to pairs of them.
float_ptr = _pointer_by_dtype(types.uint16, types.float32)  # bfloat16 has no type here: its bits stand for it
word_ptr = _pointer_by_dtype(types.uint16, types.uint32)
pair_ptr = _pointer_by_dtype(types.uint32, types.uint64)


@intrinsic(prefer_literal=True)
def stack_bytes(_context: Any, num_bytes: types.Type) -> Any:
    """int64 address of a constant number of bytes on the stack, 64-byte aligned, one place per spot in the source."""

    def generate(_c: Any, builder: Any, _signature: Any, _arguments: Any) -> Any:
        place = cgutils.alloca_once(builder, ir.ArrayType(ir.IntType(8), num_bytes.literal_value))
        place.align = 64
        return builder.ptrtoint(place, ir.IntType(64))

    return types.int64(num_bytes), generate


@intrinsic
def f32_bits(_context: Any, _value: types.Type) -> Any:
    """The bits of a float32 as uint32."""
    return types.uint32(types.float32), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.IntType(32))


@intrinsic
def bits_f32(_context: Any, _bits: types.Type) -> Any:
    """The float32 that has these bits (uint32)."""
    return types.float32(types.uint32), lambda _c, builder, _s, args: builder.bitcast(args[0], ir.FloatType())
