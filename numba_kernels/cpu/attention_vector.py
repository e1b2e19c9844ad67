"""Attention with 16-lane vectors: VDPBF16PS over the packed layout, fused multiply-adds over the standard one.

Up to six rows form a tile (`simd_tiles.py`), so that each vector of K or V that is loaded serves six rows.
"""

from typing import Any

import numpy as np

from numba_kernels.cpu.attention_unit import (
    FACTOR_OFFSET,
    GROUP,
    M_OFFSET,
    STEP,
    call_device,
    query_of,
    row_high,
    row_low,
    state_stride,
    work,
)
from numba_kernels.cpu.jit import exact_device, i64_ptr
from numba_kernels.cpu.simd import (
    vadd,
    vdiv,
    vexp2,
    vfma,
    vkeep,
    vload,
    vload_bf16,
    vload_splat,
    vlow_halves,
    vmax,
    vmax_all,
    vmul,
    vsplat,
    vstore,
    vstore_bf16,
    vstore_first,
    vsub,
    vsum_all,
)
from numba_kernels.cpu.simd_tiles import MAX_TILE_ROWS, score_tile, turn_tile, value_tile
from numba_kernels.cpu.workers import worker


@exact_device
def query_address(launch, rows, row):  # type: ignore[no-untyped-def]
    """Where a row's query begins."""
    token, head = query_of(launch, rows, row)
    return launch.q + token * launch.q_token_stride + head * launch.q_head_stride


@call_device
def load_q_bfloat16(launch, rows, scratch):  # type: ignore[no-untyped-def]
    """The unit's query rows as they are, one after the other."""
    for row in range(rows.num):
        source, target = query_address(launch, rows, row), scratch.q + row * launch.head_dim * 2
        for i in range(0, launch.head_dim * 2, 32):
            vstore_bf16(target + i, vload_bf16(source + i))


@call_device
def load_q_float32(launch, rows, scratch):  # type: ignore[no-untyped-def]
    """The unit's query rows as float32, one after the other."""
    for row in range(rows.num):
        source, target = query_address(launch, rows, row), scratch.q + row * launch.head_dim * 4
        for d in range(0, launch.head_dim, 16):
            vstore(target + d * 4, vload_bf16(source + d * 2) if launch.is_bfloat16 else vload(source + d * 4))


@call_device
def prepare_packed(launch, rows, step, scratch):  # type: ignore[no-untyped-def]
    """Read K and V where they lie, but V's last group from a copy that has zeros (not NaN) where no row sees."""
    seen = rows.high - step.token - (step.group_end - 1) * GROUP
    if seen >= GROUP:
        return
    groups = i64_ptr(scratch.v_groups)
    source, pair_bytes = groups[step.group_end - 1], launch.head_dim * 4
    groups[step.group_end - 1] = scratch.v
    for pair in range(GROUP // 2):
        for i in range(pair * pair_bytes, (pair + 1) * pair_bytes, 64):
            if 2 * pair + 1 < seen:
                vstore(scratch.v + i, vload(source + i))
            elif 2 * pair < seen:
                vstore(scratch.v + i, vlow_halves(vload(source + i)))
            else:
                vstore(scratch.v + i, vsplat(np.float32(0.0)))


@call_device
def prepare_standard(launch, rows, step, scratch):  # type: ignore[no-untyped-def]
    """K turned round to [4 groups, head_dim, 16] float32; V in place if float32, else converted; zeros as above."""
    k_groups, v_groups = i64_ptr(scratch.k_groups), i64_ptr(scratch.v_groups)
    row_bytes = launch.head_dim * (4 - 2 * launch.is_bfloat16)
    for g in range(STEP // GROUP):
        if step.group_begin <= g < step.group_end:
            target = scratch.k + g * launch.head_dim * 64
            for d in range(0, launch.head_dim, 16):
                if launch.is_bfloat16:
                    turn_tile(1, k_groups[g] + d * 2, row_bytes, target + d * 64)
                else:
                    turn_tile(0, k_groups[g] + d * 4, row_bytes, target + d * 64)
            seen = rows.high - step.token - g * GROUP
            if launch.is_bfloat16 or seen < GROUP:
                target = scratch.v + g * launch.head_dim * 64
                copy_values(launch, v_groups[g], target, min(np.int64(GROUP), seen))
                v_groups[g] = target
    for g in range(STEP // GROUP):
        neighbour = min(max(g, step.group_begin), step.group_end - 1)
        k_groups[g] = scratch.k + neighbour * launch.head_dim * 64


@exact_device
def copy_values(launch, source, target, seen):  # type: ignore[no-untyped-def]
    """One group of V as float32, the first `seen` tokens; zeros behind them."""
    for t in range(GROUP):
        for d in range(0, launch.head_dim, 16):
            at = t * launch.head_dim + d
            if t >= seen:
                vstore(target + at * 4, vsplat(np.float32(0.0)))
            elif launch.is_bfloat16:
                vstore(target + at * 4, vload_bf16(source + at * 2))
            else:
                vstore(target + at * 4, vload(source + at * 4))


@call_device
def weigh(launch, scale_log2, rows, step, row, state, scores, weights, is_bfloat16):  # type: ignore[no-untyped-def]
    """Turn one row's 64 scores into weights 2**(score * scale - m); m, l and the factor on earlier sums follow."""
    low, high = row_low(launch, rows, row) - step.token, row_high(launch, rows, row) - step.token
    x0, x1, x2, x3 = vload(scores), vload(scores + 64), vload(scores + 128), vload(scores + 192)
    if low > 0 or high < STEP:
        x0, x1 = vkeep(x0, low, high), vkeep(x1, low - 16, high - 16)
        x2, x3 = vkeep(x2, low - 32, high - 32), vkeep(x3, low - 48, high - 48)
    tail = state + launch.head_dim * 4
    scale, before = vsplat(scale_log2), vload_splat(tail + M_OFFSET * 4)
    greatest = vmax_all(vmax(vmax(x0, x1), vmax(x2, x3)))
    m = vmax(vmul(greatest, scale), before)
    factor, minus_m = vexp2(vsub(before, m)), vsub(vsplat(np.float32(0.0)), m)
    x0, x1 = vexp2(vfma(x0, scale, minus_m)), vexp2(vfma(x1, scale, minus_m))
    x2, x3 = vexp2(vfma(x2, scale, minus_m)), vexp2(vfma(x3, scale, minus_m))
    if is_bfloat16:
        vstore_bf16(weights, x0)
        vstore_bf16(weights + 32, x1)
        vstore_bf16(weights + 64, x2)
        vstore_bf16(weights + 96, x3)
    else:
        vstore(weights, x0)
        vstore(weights + 64, x1)
        vstore(weights + 128, x2)
        vstore(weights + 192, x3)
    vstore(tail, vfma(vload(tail), factor, vadd(vadd(vadd(x0, x1), x2), x3)))
    vstore_first(tail + M_OFFSET * 4, m)
    vstore_first(tail + FACTOR_OFFSET * 4, factor)


def _make_tile(is_bfloat16: bool) -> Any:
    """The `tile` of a path: rows in registers six at a time, bfloat16 pairs or float32."""
    bf16 = int(is_bfloat16)
    size = 2 if is_bfloat16 else 4  # bytes of an element of q and of the weights
    run = 0 if is_bfloat16 else 16  # float32: elements of head_dim that are summed before they join the score

    @exact_device
    def score_rows(n, out, q, q_stride, groups, count):  # type: ignore[no-untyped-def]
        if n == 1:
            score_tile(1, bf16, out, STEP * 4, q, q_stride, groups, count)
        elif n == 2:
            score_tile(2, bf16, out, STEP * 4, q, q_stride, groups, count)
        elif n == 3:
            score_tile(3, bf16, out, STEP * 4, q, q_stride, groups, count)
        elif n == 4:
            score_tile(4, bf16, out, STEP * 4, q, q_stride, groups, count)
        elif n == 5:
            score_tile(5, bf16, out, STEP * 4, q, q_stride, groups, count)
        else:
            score_tile(6, bf16, out, STEP * 4, q, q_stride, groups, count)

    @exact_device
    def value_rows(n, out, stride, factors, x, groups, where, step):  # type: ignore[no-untyped-def]
        if n == 1:
            value_tile(1, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)
        elif n == 2:
            value_tile(2, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)
        elif n == 3:
            value_tile(3, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)
        elif n == 4:
            value_tile(4, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)
        elif n == 5:
            value_tile(5, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)
        else:
            value_tile(6, 4, bf16, out, stride, factors, x, STEP * size, groups, where, step)

    @exact_device
    def score(launch, n, q, scratch):  # type: ignore[no-untyped-def]
        """Scores of n rows of q with the step's 64 tokens."""
        stride = launch.head_dim * size
        if bf16:
            score_rows(n, scratch.scores, q, stride, scratch.k_groups, launch.head_dim // 2)
            return
        for i in range(n * STEP // 16):
            vstore(scratch.scores + i * 64, vsplat(np.float32(0.0)))
        groups, at = i64_ptr(scratch.k_groups), i64_ptr(scratch.spare)
        for d in range(0, launch.head_dim, run):
            for g in range(STEP // GROUP):
                at[g] = groups[g] + d * 64
            score_rows(n, scratch.scores, q + d * 4, stride, scratch.spare, run)

    @call_device
    def tile(launch, scale_log2, rows, step, state, scratch):  # type: ignore[no-untyped-def]
        """All rows of the unit over one step, in tiles of nearly equal height."""
        stride = state_stride(launch)
        row, num_tiles = np.int64(0), (rows.num + MAX_TILE_ROWS - 1) // MAX_TILE_ROWS
        while row < rows.num:
            n = (rows.num - row + num_tiles - 1) // num_tiles
            num_tiles -= 1
            first, row = row, row + n
            if row_high(launch, rows, row - 1) <= step.token or row_low(launch, rows, first) >= step.token + STEP:
                continue
            score(launch, n, scratch.q + first * launch.head_dim * size, scratch)
            out = state + first * stride
            for r in range(n):
                scores, weights = scratch.scores + r * STEP * 4, scratch.weights + r * STEP * size
                weigh(launch, scale_log2, rows, step, first + r, out + r * stride, scores, weights, bf16)
            factors = out + (launch.head_dim + FACTOR_OFFSET) * 4
            whole = launch.head_dim // 64 * 64
            for d in range(0, whole, 64):
                where = (d * 4, step.group_begin, step.group_end)
                value_rows(
                    n, out + d * 4, stride, factors, scratch.weights, scratch.v_groups, where, launch.head_dim * 4
                )
            for d in range(whole, launch.head_dim, 16):
                where = (d * 4, step.group_begin, step.group_end)
                for r in range(n):
                    at, x = out + r * stride + d * 4, scratch.weights + r * STEP * size
                    factor = factors + r * stride
                    value_tile(1, 1, bf16, at, stride, factor, x, 0, scratch.v_groups, where, launch.head_dim * 4)

    return tile


tile_bfloat16 = _make_tile(True)
tile_float32 = _make_tile(False)


@call_device
def merge(launch, rows, target, source):  # type: ignore[no-untyped-def]
    """Fold the next partition's state into that of the partitions before it."""
    stride, tail = state_stride(launch), launch.head_dim * 4
    for row in range(rows.num):
        a, b = target + row * stride, source + row * stride
        ma, mb = vload_splat(a + tail + M_OFFSET * 4), vload_splat(b + tail + M_OFFSET * 4)
        m = vmax(ma, mb)
        fa, fb = vexp2(vsub(ma, m)), vexp2(vsub(mb, m))
        for i in range(0, tail + 64, 64):  # the sums and l
            vstore(a + i, vfma(vload(b + i), fb, vmul(vload(a + i), fa)))
        vstore_first(a + tail + M_OFFSET * 4, m)


@call_device
def finish(launch, rows, state):  # type: ignore[no-untyped-def]
    """out = sums / l, rounded to the output's type. Adding zero makes -0 and +0 alike."""
    stride = state_stride(launch)
    for row in range(rows.num):
        p = state + row * stride
        total = vsum_all(vload(p + launch.head_dim * 4))
        token, head = query_of(launch, rows, row)
        target = launch.out + token * launch.out_token_stride + head * launch.out_head_stride
        for d in range(0, launch.head_dim, 16):
            x = vadd(vdiv(vload(p + d * 4), total), vsplat(np.float32(0.0)))
            if launch.is_bfloat16:
                vstore_bf16(target + d * 2, x)
            else:
                vstore(target + d * 4, x)


@exact_device
def _work_bfloat16(launch):  # type: ignore[no-untyped-def]
    work(load_q_bfloat16, prepare_packed, tile_bfloat16, merge, finish, launch)


@exact_device
def _work_float32(launch):  # type: ignore[no-untyped-def]
    work(load_q_float32, prepare_standard, tile_float32, merge, finish, launch)


@worker
def attend_vector_bfloat16(launch: int) -> None:
    """Units of the launch until none is left: packed bfloat16."""
    _work_bfloat16(launch)


@worker
def attend_vector_float32(launch: int) -> None:
    """Units of the launch until none is left: the standard layout."""
    _work_float32(launch)
