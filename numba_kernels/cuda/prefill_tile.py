"""One warp's work on one tile of keys and values: scores, mask, softmax, weighted sum.

The online softmax of FlashAttention-2 (Dao, 2023, arXiv 2307.08691): a warp owns rows of the result, keeps their sums
in registers and goes through the keys. The rows are the 16 of the tensor core's m16n8k16, and what the first product
puts into a lane's registers is what the second one expects there.

Registers, of lane (g, j), g = lane / 4, j = lane % 4, in arrays of constant length: `s` [row_tiles, tile_tokens / 8, 4]
and `acc` [row_tiles, head_dim / 8, 4] float32, each four being rows (g, g, g + 8, g + 8) and columns (2j, 2j + 1, 2j,
2j + 1); `state` [2 (reference, sum), 2 row_tiles] for rows g, g + 8, g + 16, ... The sum is of this lane's columns
only, until the end. Scores are in base 2 once scaled.

A row's bits depend on its own keys alone, not on where in a tile of rows it stands or which others are there: tiles of
keys begin at multiples of `tile_tokens`, and one in which a row sees nothing multiplies what it has by exactly 1 and
adds exactly 0, because `LOWEST`, where the reference starts, is far above any `MASKED` score.
"""

from typing import Any

from numba_kernels.cuda.prefill_rows import make_query_of
from numba_kernels.cuda.prefill_shared import make_step
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.target import Target

MASKED = -1e30  # the score of what is not seen: finite, so that no difference of two is NaN
LOWEST = -1e20  # no score that means anything is as low
HEADROOM = 8.0  # in base 2: weights up to 256, far from what float16 cannot hold


def make_scores(variant: PrefillVariant, target: Target) -> Any:
    """scores(s, q_lane, k_lane): s = Q K^T; the lane's addresses of the warp's Q and of the tile's K."""
    ptx, int32, float32, uint32, cuda = target.ptx, target.int32, target.float32, target.uint32, target.cuda
    mma, step = getattr(ptx, f"mma_{variant.mma_element}"), make_step(variant.head_dim, target)
    chunks, row_tiles, pairs = variant.head_dim // 16, variant.work_shape.row_tiles, variant.tile_tokens // 16
    rows_16, num_scores, num_a = 16 * variant.head_dim * 2, row_tiles * pairs * 8, row_tiles * 4

    @target.device
    def scores(s, q_lane, k_lane):  # type: ignore[no-untyped-def]
        a = cuda.local.array(num_a, uint32)
        for i in range(num_scores):
            s[i] = float32(0.0)
        for c in range(chunks):
            for m in range(row_tiles):
                a0, a1, a2, a3 = ptx.ldmatrix_x4(int32(step(q_lane, c) + m * rows_16))
                a[m * 4] = a0
                a[m * 4 + 1] = a1
                a[m * 4 + 2] = a2
                a[m * 4 + 3] = a3
            for n in range(pairs):
                b0, b1, b2, b3 = ptx.ldmatrix_x4(int32(step(k_lane, c) + n * rows_16))
                for m in range(row_tiles):
                    i = (m * pairs + n) * 8
                    a0, a1, a2, a3 = a[m * 4], a[m * 4 + 1], a[m * 4 + 2], a[m * 4 + 3]
                    s[i], s[i + 1], s[i + 2], s[i + 3] = mma(a0, a1, a2, a3, b0, b1, s[i], s[i + 1], s[i + 2], s[i + 3])
                    s[i + 4], s[i + 5], s[i + 6], s[i + 7] = mma(
                        a0, a1, a2, a3, b2, b3, s[i + 4], s[i + 5], s[i + 6], s[i + 7]
                    )

    return scores


def make_mask(variant: PrefillVariant, target: Target) -> Any:
    """mask(s, row, token, context, window, reciprocal): `MASKED` where a row does not see the token.

    `row` is the lane's first, counted in the sequence, `token` the tile's first. A row's query stands at
    position context + query, and sees `window` tokens: itself and those before it.
    """
    cuda, int32, uint32, float32 = target.cuda, target.int32, target.uint32, target.float32
    _, query_of = make_query_of(target)
    row_tiles, columns = variant.work_shape.row_tiles, variant.tile_tokens // 8

    @target.device
    def mask(s, row, token, context, window, reciprocal):  # type: ignore[no-untyped-def]
        lane_token = int32(token + 2 * (cuda.threadIdx.x & 3))
        for m in range(row_tiles):
            for half in range(2):
                query = query_of(row + m * 16 + half * 8, reciprocal)
                back = int32(context + query - lane_token)  # from the row to the lane's first token
                for n in range(columns):
                    i = (m * columns + n) * 4 + half * 2
                    # As unsigned numbers, so that tokens ahead are further back than any window.
                    s[i] = s[i] if uint32(back - n * 8) < uint32(window) else float32(MASKED)
                    s[i + 1] = s[i + 1] if uint32(back - n * 8 - 1) < uint32(window) else float32(MASKED)

    return mask


def make_row_operations(target: Target) -> tuple[Any, Any]:
    """row_maximum(x), row_sum(x): over the four lanes that share a row."""
    ptx = target.ptx

    @target.device
    def row_maximum(x):  # type: ignore[no-untyped-def]
        x = ptx.fmax(x, ptx.shfl_xor_f32(x, 1))
        return ptx.fmax(x, ptx.shfl_xor_f32(x, 2))

    @target.device
    def row_sum(x):  # type: ignore[no-untyped-def]
        x = x + ptx.shfl_xor_f32(x, 1)
        return x + ptx.shfl_xor_f32(x, 2)

    return row_maximum, row_sum


def make_raise_maximum(variant: PrefillVariant, target: Target) -> Any:
    """raise_maximum(s, acc, state, scale): a reference for the exponentials that no score is far above.

    A row's reference is a maximum that it has seen, and stays while the scores are at most `HEADROOM` above it, as in
    FlashAttention-4: weights may then be up to 2^HEADROOM, and `acc` and the sums need not be scaled, which would cost
    as much as the exponentials. If a row is scaled depends on the row; if the warp can leave it out, on all of its
    rows, but those that stay are multiplied by exactly 1.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    row_maximum, _ = make_row_operations(target)
    columns, units = variant.tile_tokens // 8, variant.head_dim // 8
    num_rows = 2 * variant.work_shape.row_tiles

    @target.device
    def raise_maximum(s, acc, state, scale):  # type: ignore[no-untyped-def]
        factors = cuda.local.array(num_rows, float32)
        raised = int32(0)
        for r in range(num_rows):
            first = (r >> 1) * columns * 4 + (r & 1) * 2
            largest = ptx.fmax(s[first], s[first + 1])
            for n in range(1, columns):
                largest = ptx.fmax(largest, ptx.fmax(s[first + n * 4], s[first + n * 4 + 1]))
            largest = row_maximum(largest) * scale
            is_far_above = largest > state[r] + float32(HEADROOM)
            reference = largest if is_far_above else state[r]
            raised = int32(1) if is_far_above else raised
            factors[r] = ptx.ex2(state[r] - reference)
            state[r] = reference
        if ptx.vote_any(raised) != 0:
            for r in range(num_rows):
                state[num_rows + r] *= factors[r]
                first = (r >> 1) * units * 4 + (r & 1) * 2
                for n in range(units):
                    acc[first + n * 4] *= factors[r]
                    acc[first + n * 4 + 1] *= factors[r]

    return raise_maximum


def make_accumulate(variant: PrefillVariant, target: Target) -> Any:
    """accumulate(acc, s, state, v_lane, scale): acc += P V; `v_lane` is the lane's address of the tile's V.

    The weights are made when they are needed, so that the registers of their scores become free one after another, and
    exponentials of the next 16 tokens may overlap with products of these.
    """
    ptx, int32, uint32, cuda = target.ptx, target.int32, target.uint32, target.cuda
    mma, pack = getattr(ptx, f"mma_{variant.mma_element}"), getattr(ptx, f"pack_{variant.mma_element}")
    step = make_step(variant.head_dim, target)
    chunks, row_tiles, pairs = variant.head_dim // 16, variant.work_shape.row_tiles, variant.tile_tokens // 16
    rows_16, num_p, num_rows = 16 * variant.head_dim * 2, row_tiles * 4, 2 * row_tiles

    @target.device
    def accumulate(acc, s, state, v_lane, scale):  # type: ignore[no-untyped-def]
        p = cuda.local.array(num_p, uint32)
        for n in range(pairs):
            for m in range(row_tiles):
                for w in range(4):
                    i = (m * pairs + n) * 8 + w * 2
                    r = m * 2 + (w & 1)
                    weight_0 = ptx.ex2(s[i] * scale - state[r])
                    weight_1 = ptx.ex2(s[i + 1] * scale - state[r])
                    state[num_rows + r] += weight_0 + weight_1
                    p[m * 4 + w] = pack(weight_0, weight_1)
            for c in range(chunks):
                b0, b1, b2, b3 = ptx.ldmatrix_x4_trans(int32(step(v_lane, c) + n * rows_16))
                for m in range(row_tiles):
                    i = (m * chunks + c) * 8
                    p0, p1, p2, p3 = p[m * 4], p[m * 4 + 1], p[m * 4 + 2], p[m * 4 + 3]
                    acc[i], acc[i + 1], acc[i + 2], acc[i + 3] = mma(
                        p0, p1, p2, p3, b0, b1, acc[i], acc[i + 1], acc[i + 2], acc[i + 3]
                    )
                    acc[i + 4], acc[i + 5], acc[i + 6], acc[i + 7] = mma(
                        p0, p1, p2, p3, b2, b3, acc[i + 4], acc[i + 5], acc[i + 6], acc[i + 7]
                    )

    return accumulate
