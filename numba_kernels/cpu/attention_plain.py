"""The path without vector intrinsics: loops that LLVM vectorises for whatever processor it compiles for.

K of a step is turned round once ([head_dim, 64] float32), so that scores, weights and sums are all loops over
neighbouring elements. Reads the standard layout, float32 or bfloat16.
"""

import numpy as np

from numba_kernels.cpu.attention_unit import (
    FACTOR_OFFSET,
    GROUP,
    L_OFFSET,
    M_OFFSET,
    STATE_TAIL,
    STEP,
    call_device,
    query_of,
    row_high,
    row_low,
    state_stride,
    work,
)
from numba_kernels.cpu.jit import bits_f32, exact_device, f32_bits, f32_ptr, i64_ptr, u16_ptr
from numba_kernels.cpu.scalar import fma, load, store
from numba_kernels.cpu.workers import worker


@call_device
def load_q(launch, rows, scratch):  # type: ignore[no-untyped-def]
    """The unit's query rows as float32, one after the other."""
    p = f32_ptr(scratch.q)
    for row in range(rows.num):
        token, head = query_of(launch, rows, row)
        source = launch.q + token * launch.q_token_stride + head * launch.q_head_stride
        copy_as_f32(launch, source, p, row * launch.head_dim, launch.head_dim)


@exact_device
def copy_as_f32(launch, source, target, at, num):  # type: ignore[no-untyped-def]
    """target[at + i] = element i at address `source`, in the launch's element type."""
    if launch.is_bfloat16:
        p16 = u16_ptr(source)
        for i in range(num):
            target[at + i] = load(p16, i)
    else:
        p32 = f32_ptr(source)
        for i in range(num):
            target[at + i] = p32[i]


@call_device
def prepare(launch, rows, step, scratch):  # type: ignore[no-untyped-def]
    """K of the step turned round, V of the step, both float32; zeros where no row sees (there may be NaN)."""
    kt, vt, line = f32_ptr(scratch.k), f32_ptr(scratch.v), f32_ptr(scratch.spare)
    k_groups, v_groups = i64_ptr(scratch.k_groups), i64_ptr(scratch.v_groups)
    token_bytes = launch.head_dim * (4 - 2 * launch.is_bfloat16)
    for t in range(STEP):
        seen = rows.low <= step.token + t < rows.high
        if seen:
            at = (t % GROUP) * token_bytes
            copy_as_f32(launch, k_groups[t // GROUP] + at, line, 0, launch.head_dim)
            copy_as_f32(launch, v_groups[t // GROUP] + at, vt, t * launch.head_dim, launch.head_dim)
        for d in range(launch.head_dim):
            kt[d * STEP + t] = line[d] if seen else np.float32(0.0)
            if not seen:
                vt[t * launch.head_dim + d] = np.float32(0.0)


@exact_device
def exp2(x):  # type: ignore[no-untyped-def]
    """2**x for x <= 0, relative error below 1e-7: exactly 1 at 0, exactly 0 below -126; NaN gives NaN."""
    shifted = x + np.float32(12582912.0)  # 1.5 * 2**23: the low bits of the sum are round(x)
    r = x - (shifted - np.float32(12582912.0))
    p = fma(np.float32(1.535336188e-4), r, np.float32(1.339887440e-3))
    p = fma(p, r, np.float32(9.618437357e-3))
    p = fma(p, r, np.float32(5.550332471e-2))
    p = fma(p, r, np.float32(2.402264791e-1))
    p = fma(p, r, np.float32(6.931472028e-1))
    p = fma(p, r, np.float32(1.0))
    y = bits_f32(f32_bits(p) + (f32_bits(shifted) << np.uint32(23)))
    return np.float32(0.0) if x < np.float32(-126.0) else y


@call_device
def tile(launch, scale_log2, rows, step, state, scratch):  # type: ignore[no-untyped-def]
    """All rows of the unit over one step."""
    width = launch.head_dim + STATE_TAIL
    q, scores, sums = f32_ptr(scratch.q), f32_ptr(scratch.scores), f32_ptr(scratch.spare)
    for row in range(rows.num):
        low, high = row_low(launch, rows, row), row_high(launch, rows, row)
        if high <= step.token or low >= step.token + STEP:
            continue
        score(q, row * launch.head_dim, f32_ptr(scratch.k), scores, sums, launch.head_dim)
        for t in range(STEP):
            seen = low <= step.token + t < high
            scores[t] = scores[t] * scale_log2 if seen else np.float32(-np.inf)
        row_state = f32_ptr(state + row * width * 4)
        weigh(row_state, launch.head_dim, scores)
        accumulate(row_state, launch.head_dim, scores, f32_ptr(scratch.v), sums)


@exact_device
def score(q, at, kt, scores, sums, head_dim):  # type: ignore[no-untyped-def]
    """scores[t] = sum over d of q[at + d] * kt[d, t]; 16 products are summed at a time, which halves the rounding."""
    for t in range(STEP):
        scores[t] = np.float32(0.0)
    for chunk in range(0, head_dim, 16):
        for t in range(STEP):
            sums[t] = np.float32(0.0)
        for d in range(chunk, chunk + 16):
            x = q[at + d]
            for t in range(STEP):
                sums[t] = fma(x, kt[d * STEP + t], sums[t])
        for t in range(STEP):
            scores[t] += sums[t]


@exact_device
def weigh(state, head_dim, scores):  # type: ignore[no-untyped-def]
    """Scores become weights 2**(score - m); m, l and the factor on the earlier sums follow."""
    before = state[head_dim + M_OFFSET]
    m = before
    for t in range(STEP):
        m = scores[t] if scores[t] > m else m
    factor = exp2(before - m)
    for t in range(STEP):
        scores[t] = exp2(scores[t] - m)
    for i in range(GROUP):
        at = head_dim + L_OFFSET + i
        lane = ((scores[i] + scores[i + 16]) + scores[i + 32]) + scores[i + 48]
        state[at] = fma(state[at], factor, lane)
    state[head_dim + M_OFFSET], state[head_dim + FACTOR_OFFSET] = m, factor


@exact_device
def accumulate(state, head_dim, weights, v, sums):  # type: ignore[no-untyped-def]
    """state[d] = factor * state[d] + sum over t of weights[t] * v[t, d]."""
    factor = state[head_dim + FACTOR_OFFSET]
    for d in range(head_dim):
        sums[d] = np.float32(0.0)
    for t in range(STEP):
        x = weights[t]
        for d in range(head_dim):
            sums[d] = fma(x, v[t * head_dim + d], sums[d])
    for d in range(head_dim):
        state[d] = fma(state[d], factor, sums[d])


@call_device
def merge(launch, rows, target, source):  # type: ignore[no-untyped-def]
    """Fold the next partition's state into that of the partitions before it."""
    stride, head_dim = state_stride(launch), launch.head_dim
    for row in range(rows.num):
        a, b = f32_ptr(target + row * stride), f32_ptr(source + row * stride)
        ma, mb = a[head_dim + M_OFFSET], b[head_dim + M_OFFSET]
        m = ma if ma > mb else mb
        fa, fb = exp2(ma - m), exp2(mb - m)
        for i in range(head_dim + GROUP):  # the sums and l
            a[i] = fma(b[i], fb, a[i] * fa)
        a[head_dim + M_OFFSET] = m


@call_device
def finish(launch, rows, state):  # type: ignore[no-untyped-def]
    """out = sums / l, rounded to the output's type. Adding zero makes -0 and +0 alike."""
    stride, head_dim = state_stride(launch), launch.head_dim
    for row in range(rows.num):
        p = f32_ptr(state + row * stride)
        total = np.float32(0.0)
        for i in range(GROUP):
            total += p[head_dim + L_OFFSET + i]
        token, head = query_of(launch, rows, row)
        target = launch.out + token * launch.out_token_stride + head * launch.out_head_stride
        if launch.is_bfloat16:
            p16 = u16_ptr(target)
            for d in range(head_dim):
                store(p16, d, p[d] / total + np.float32(0.0))
        else:
            p32 = f32_ptr(target)
            for d in range(head_dim):
                p32[d] = p[d] / total + np.float32(0.0)


@exact_device
def _work(launch):  # type: ignore[no-untyped-def]
    # Not in the worker itself: Numba saves no function to disk that passes functions as arguments.
    work(load_q, prepare, tile, merge, finish, launch)


@worker
def attend_plain(launch: int) -> None:
    """Units of the launch until none is left."""
    _work(launch)
