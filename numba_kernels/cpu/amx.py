"""Matrix tiles of bfloat16 (Intel AMX): the operations attention needs, as LLVM intrinsics, and the right to use them.

A tile is up to 16 rows of 64 bytes. `state` is the address of a 64-byte configuration; `amx_emulated.py` has the same
operations over tiles kept in memory behind it, so that kernels written with them run, and are tested, anywhere.
"""

import ctypes
import functools
import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.layout import has_amx_bf16

STATE_BYTES = 64 + 8 * 1024  # configuration, then (emulated only) eight tiles

_I8, _I64, _VOID = ir.IntType(8), ir.IntType(64), ir.VoidType()
_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA = 158, 0x1023, 18


@functools.cache
def tiles_permitted() -> bool:
    """Whether this process may use tiles: asks Linux for their state, once, for all its threads."""
    if not has_amx_bf16() or platform.system() != "Linux":
        return False
    return bool(ctypes.CDLL(None).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def emit(builder: Any, name: str, *arguments: Any) -> None:
    """Call the LLVM intrinsic `name`; an int becomes an immediate tile number, an int64 value stays as it is."""
    values = [ir.Constant(_I8, a) if isinstance(a, int) else a for a in arguments]
    signature = ir.FunctionType(_VOID, [v.type for v in values])
    builder.call(cgutils.get_or_insert_function(builder.module, signature, f"llvm.x86.{name}"), values)


def _bytes_at(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _I8.as_pointer())


@intrinsic
def tile_configure(_context: Any, _state: types.Type) -> Any:
    """Take the shapes of the tiles from the 64 bytes at `state`; all tiles become zero."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        emit(b, "ldtilecfg", _bytes_at(b, a[0]))
        return c.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def tile_release(_context: Any) -> Any:
    """Give the tiles back: a thread that holds none is cheaper to switch."""

    def generate(c: Any, b: Any, _s: Any, _a: Any) -> Any:
        emit(b, "tilerelease")
        return c.get_dummy_value()

    return types.void(), generate


@intrinsic(prefer_literal=True)
def tile_zero(_context: Any, _state: types.Type, tile: types.Type) -> Any:
    """All of a tile becomes zero. Tile numbers are constants."""

    def generate(c: Any, b: Any, _s: Any, _a: Any) -> Any:
        emit(b, "tilezero", tile.literal_value)
        return c.get_dummy_value()

    return types.void(types.int64, tile), generate


@intrinsic(prefer_literal=True)
def tile_load(_context: Any, _state: types.Type, tile: types.Type, _address: types.Type, _stride: types.Type) -> Any:
    """Rows of a tile from memory, `stride` bytes apart."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        emit(b, "tileloadd64", tile.literal_value, _bytes_at(b, a[2]), a[3])
        return c.get_dummy_value()

    return types.void(types.int64, tile, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def tile_store(_context: Any, _state: types.Type, tile: types.Type, _address: types.Type, _stride: types.Type) -> Any:
    """Rows of a tile to memory, `stride` bytes apart."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        emit(b, "tilestored64", tile.literal_value, _bytes_at(b, a[2]), a[3])
        return c.get_dummy_value()

    return types.void(types.int64, tile, types.int64, types.int64), generate


@intrinsic(prefer_literal=True)
def tile_multiply(_context: Any, _state: types.Type, c_tile: types.Type, a_tile: types.Type, b_tile: types.Type) -> Any:
    """TDPBF16PS: c[m, n] += sum over k of a[m, 2k] * b[k, 2n] + a[m, 2k + 1] * b[k, 2n + 1], float32."""

    def generate(c: Any, b: Any, _s: Any, _a: Any) -> Any:
        emit(b, "tdpbf16ps", c_tile.literal_value, a_tile.literal_value, b_tile.literal_value)
        return c.get_dummy_value()

    return types.void(types.int64, c_tile, a_tile, b_tile), generate
