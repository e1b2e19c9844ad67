"""Attention with matrix tiles (Intel AMX) over the packed layout: sixteen rows against four tiles of K or V at a time.

Packed K and V are tiles as they lie in memory; only the softmax between the two products is vector code. Written once:
`_make_path` binds it to AMX's own instructions or to their emulation.
"""

from typing import Any, NamedTuple

import numpy as np

from numba_kernels.cpu import amx, amx_emulated
from numba_kernels.cpu.attention_unit import (
    FACTOR_OFFSET,
    GROUP,
    STEP,
    call_device,
    row_high,
    row_low,
    state_stride,
    work,
)
from numba_kernels.cpu.attention_vector import finish, load_q_bfloat16, merge, prepare_packed, weigh
from numba_kernels.cpu.jit import exact_device, i64_ptr, u32_ptr
from numba_kernels.cpu.simd import vfma, vload, vload_splat, vstore
from numba_kernels.cpu.workers import worker

TILE_ROWS = 16
# Tiles 0-3 are sums (rows x 16 float32). The others by what they hold: queries (rows x 32), keys (16 pairs x 16
# tokens), weights (rows x 16), values (8 pairs of tokens x 16 of head_dim).
_QUERIES, _KEYS, _WEIGHTS, _VALUES = 4, 5, 6, 7


class _Path(NamedTuple):
    load_q: Any
    tile: Any
    release: Any


@exact_device
def write_configuration(state, num_rows, head_dim):  # type: ignore[no-untyped-def]
    """LDTILECFG's 64 bytes: palette 1; bytes per row of the tiles, uint16 [8] at 16; their rows, uint8 [8] at 48."""
    p = u32_ptr(state)
    for i in range(16):
        p[i] = np.uint32(0)
    p[0] = np.uint32(1)
    pairs = min(np.int64(16), head_dim // 2)  # head_dim 16 fills half a tile
    p[4], p[5] = np.uint32(0x00400040), np.uint32(0x00400040)
    p[6], p[7] = np.uint32(0x00400000 + pairs * 4), np.uint32(0x00400020)
    p[12] = np.uint32(num_rows * 0x01010101)
    p[13] = np.uint32(num_rows + pairs * 0x100 + num_rows * 0x10000 + 0x08000000)


def _make_path(tiles: Any) -> _Path:
    """`tiles`: module `amx` or `amx_emulated`."""
    tile_configure, tile_zero = tiles.tile_configure, tiles.tile_zero
    tile_load, tile_store, tile_multiply = tiles.tile_load, tiles.tile_store, tiles.tile_multiply

    @call_device
    def load_q(launch, rows, scratch):  # type: ignore[no-untyped-def]
        """The unit's queries, and tiles as high as its rows."""
        load_q_bfloat16(launch, rows, scratch)
        write_configuration(scratch.spare, min(np.int64(TILE_ROWS), rows.num), launch.head_dim)
        tile_configure(scratch.spare)

    @exact_device
    def clear(state):  # type: ignore[no-untyped-def]
        tile_zero(state, 0)
        tile_zero(state, 1)
        tile_zero(state, 2)
        tile_zero(state, 3)

    @call_device
    def score(launch, q, scratch):  # type: ignore[no-untyped-def]
        """Scores of 16 rows with the step's 64 tokens."""
        state, groups = scratch.spare, i64_ptr(scratch.k_groups)
        clear(state)
        for d in range(0, launch.head_dim, 32):
            tile_load(state, _QUERIES, q + d * 2, launch.head_dim * 2)
            tile_load(state, _KEYS, groups[0] + d * 32, 64)
            tile_multiply(state, 0, _QUERIES, _KEYS)
            tile_load(state, _KEYS, groups[1] + d * 32, 64)
            tile_multiply(state, 1, _QUERIES, _KEYS)
            tile_load(state, _KEYS, groups[2] + d * 32, 64)
            tile_multiply(state, 2, _QUERIES, _KEYS)
            tile_load(state, _KEYS, groups[3] + d * 32, 64)
            tile_multiply(state, 3, _QUERIES, _KEYS)
        store(state, scratch.scores, np.int64(4))

    @exact_device
    def store(state, target, num_vectors):  # type: ignore[no-untyped-def]
        tile_store(state, 0, target, STEP * 4)
        if num_vectors > 1:
            tile_store(state, 1, target + 64, STEP * 4)
        if num_vectors > 2:
            tile_store(state, 2, target + 128, STEP * 4)
        if num_vectors > 3:
            tile_store(state, 3, target + 192, STEP * 4)

    @call_device
    def weigh_values(launch, step, d, num_vectors, scratch):  # type: ignore[no-untyped-def]
        """Weights of 16 rows times up to 64 of head_dim; the sums take the place of the scores."""
        state, groups, stride = scratch.spare, i64_ptr(scratch.v_groups), launch.head_dim * 4
        clear(state)
        for g in range(step.group_begin, step.group_end):
            v = groups[g] + d * 4
            tile_load(state, _WEIGHTS, scratch.weights + g * GROUP * 2, STEP * 2)
            tile_load(state, _VALUES, v, stride)
            tile_multiply(state, 0, _WEIGHTS, _VALUES)
            if num_vectors > 1:
                tile_load(state, _VALUES, v + 64, stride)
                tile_multiply(state, 1, _WEIGHTS, _VALUES)
            if num_vectors > 2:
                tile_load(state, _VALUES, v + 128, stride)
                tile_multiply(state, 2, _WEIGHTS, _VALUES)
            if num_vectors > 3:
                tile_load(state, _VALUES, v + 192, stride)
                tile_multiply(state, 3, _WEIGHTS, _VALUES)
        store(state, scratch.scores, num_vectors)

    @call_device
    def tile(launch, scale_log2, rows, step, state, scratch):  # type: ignore[no-untyped-def]
        """All rows of the unit over one step, sixteen at a time."""
        stride, tail = state_stride(launch), (launch.head_dim + FACTOR_OFFSET) * 4
        for first in range(0, rows.num, TILE_ROWS):
            n = min(np.int64(TILE_ROWS), rows.num - first)
            end = row_high(launch, rows, first + n - 1)
            if end <= step.token or row_low(launch, rows, first) >= step.token + STEP:
                continue
            score(launch, scratch.q + first * launch.head_dim * 2, scratch)
            out = state + first * stride
            for r in range(n):
                scores, weights = scratch.scores + r * STEP * 4, scratch.weights + r * STEP * 2
                weigh(launch, scale_log2, rows, step, first + r, out + r * stride, scores, weights, 1)
            for d in range(0, launch.head_dim, 64):
                num_vectors = min(np.int64(4), (launch.head_dim - d) // 16)
                weigh_values(launch, step, d, num_vectors, scratch)
                for r in range(n):
                    factor, target, sums = (
                        vload_splat(out + r * stride + tail),
                        out + r * stride + d * 4,
                        scratch.scores,
                    )
                    for i in range(0, num_vectors * 64, 64):
                        x = vfma(vload(target + i), factor, vload(sums + r * STEP * 4 + i))
                        vstore(target + i, x)

    return _Path(load_q, tile, tiles.tile_release)


_load_q_amx, _tile_amx, _release_amx = _make_path(amx)
_load_q_emulated, _tile_emulated, _release_emulated = _make_path(amx_emulated)


@exact_device
def _work_amx(launch):  # type: ignore[no-untyped-def]
    work(_load_q_amx, prepare_packed, _tile_amx, merge, finish, launch)
    _release_amx()


@exact_device
def _work_emulated(launch):  # type: ignore[no-untyped-def]
    work(_load_q_emulated, prepare_packed, _tile_emulated, merge, finish, launch)
    _release_emulated()


@worker
def attend_amx(launch: int) -> None:
    """Units of the launch until none is left. Only where `amx.tiles_permitted()`."""
    _work_amx(launch)


@worker
def attend_amx_emulated(launch: int) -> None:
    """The same without AMX: slow, for tests."""
    _work_emulated(launch)
