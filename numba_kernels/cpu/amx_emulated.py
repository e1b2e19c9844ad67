"""The operations of `amx.py` without AMX: tiles in memory, arithmetic as Intel's manual writes it.

TDPBF16PS there (Software Developer's Manual, volume 2): the even and the odd products of a row and a column are summed
apart, each by fused multiply-adds in order of k; the two sums are added, then added to the destination. Every
subnormal operand or result counts as zero, rounding is to nearest even whatever the thread's mode.
"""

import numpy as np

from numba_kernels.cpu.jit import bits_f32, exact_device, f32_bits, f32_ptr, u16_ptr, u32_ptr
from numba_kernels.cpu.scalar import fma

_U8_COLSB, _U8_ROWS = 16, 48  # offsets in the configuration: bytes per row (uint16 each), rows (uint8 each)


@exact_device
def _tile(state, tile):  # type: ignore[no-untyped-def]
    return state + 64 + tile * 1024


@exact_device
def tile_rows(state, tile):  # type: ignore[no-untyped-def]
    """Rows of a tile."""
    return np.int64((u32_ptr(state + _U8_ROWS)[tile // 4] >> np.uint32(8 * (tile % 4))) & np.uint32(255))


@exact_device
def tile_words(state, tile):  # type: ignore[no-untyped-def]
    """32-bit words of a tile's row."""
    return np.int64(u16_ptr(state + _U8_COLSB)[tile]) // 4


@exact_device
def tile_configure(state):  # type: ignore[no-untyped-def]
    """All tiles become zero."""
    for tile in range(8):
        tile_zero(state, tile)


@exact_device
def tile_release():  # type: ignore[no-untyped-def]
    """Nothing to give back."""


@exact_device
def tile_zero(state, tile):  # type: ignore[no-untyped-def]
    """All of a tile becomes zero."""
    p = u32_ptr(_tile(state, tile))
    for i in range(256):
        p[i] = np.uint32(0)


@exact_device
def tile_load(state, tile, address, stride):  # type: ignore[no-untyped-def]
    """Rows of a tile from memory; what lies beyond its shape becomes zero."""
    tile_zero(state, tile)
    for row in range(tile_rows(state, tile)):
        source, target = u32_ptr(address + row * stride), u32_ptr(_tile(state, tile) + row * 64)
        for i in range(tile_words(state, tile)):
            target[i] = source[i]


@exact_device
def tile_store(state, tile, address, stride):  # type: ignore[no-untyped-def]
    """Rows of a tile to memory."""
    for row in range(tile_rows(state, tile)):
        source, target = u32_ptr(_tile(state, tile) + row * 64), u32_ptr(address + row * stride)
        for i in range(tile_words(state, tile)):
            target[i] = source[i]


@exact_device
def _flushed(x):  # type: ignore[no-untyped-def]
    """x, or zero of its sign if it is subnormal."""
    bits = f32_bits(x)
    return bits_f32(bits & np.uint32(0x80000000)) if bits & np.uint32(0x7F800000) == np.uint32(0) else x


@exact_device
def _half(word, odd):  # type: ignore[no-untyped-def]
    """One bfloat16 of a pair as float32, subnormal numbers as zero."""
    return _flushed(bits_f32(word & np.uint32(0xFFFF0000) if odd else word << np.uint32(16)))


@exact_device
def tile_multiply(state, c_tile, a_tile, b_tile):  # type: ignore[no-untyped-def]
    """TDPBF16PS."""
    for m in range(tile_rows(state, c_tile)):
        a, c = u32_ptr(_tile(state, a_tile) + m * 64), f32_ptr(_tile(state, c_tile) + m * 64)
        for n in range(tile_words(state, c_tile)):
            even, odd = np.float32(0.0), np.float32(0.0)
            for k in range(tile_words(state, a_tile)):
                b = u32_ptr(_tile(state, b_tile) + k * 64)[n]
                even = _flushed(fma(_half(a[k], False), _half(b, False), even))
                odd = _flushed(fma(_half(a[k], True), _half(b, True), odd))
            c[n] = _flushed(_flushed(c[n]) + _flushed(even + odd))
