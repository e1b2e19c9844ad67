"""One warp's work on one tile of 16 tokens of one kv head, for 8 query heads.

S^T = K Q^T and O^T = V^T P^T: the tokens (then head_dim) are the 16 rows of the tensor core's instruction, the heads
its 8 columns, so that a group of 8 heads fills it. Lane (g, j), g = lane / 4, j = lane % 4, loads 16 bytes wherever it
can; which element of head_dim such a load puts where in a fragment does not matter as long as Q has them in the same
order. K goes straight from memory to registers, and so does V, whose pairs of tokens are put together by `prmt`.

Registers, in arrays of constant length: `k` [head_dim/32 chunks, 2 tokens (g, g + 8), 4 words]; `q` [chunks, 4 words];
`v` [head_dim/64 chunks, 4 tokens (2j, 2j + 1, 2j + 8, 2j + 9), 4 words], then for a head_dim that leaves 32 the same
with 2 words; `acc` [head_dim/16, 4] float32; `softmax` [8] float32: for heads 2j and 2j + 1 the maximum, the sum, the
factor of this tile, then (as bits in a uint32 array of their own) the weights.
"""

from typing import Any

from numba_kernels.cuda.target import Target

MASKED = -1e30  # the score of what is not seen: finite, so that no difference of two is NaN
MAX_0, MAX_1, SUM_0, SUM_1, FACTOR_0, FACTOR_1 = range(6)


def make_load_k(head_dim: int, target: Target) -> Any:
    """load_k(k, address, token_stride): `address` is the lane's first 16 bytes, those of token g."""
    ptx, chunks = target.ptx, head_dim // 32

    @target.device
    def load_k(k, address, token_stride):  # type: ignore[no-untyped-def]
        for c in range(chunks):
            for half in range(2):
                w0, w1, w2, w3 = ptx.ldg128(address + half * 8 * token_stride + c * 64)
                k[c * 8 + half * 4] = w0
                k[c * 8 + half * 4 + 1] = w1
                k[c * 8 + half * 4 + 2] = w2
                k[c * 8 + half * 4 + 3] = w3

    return load_k


def make_load_v(head_dim: int, target: Target) -> Any:
    """load_v(v, address, rest, token_stride): the lane's first bytes of token 2j, in the chunks of 64 and the rest."""
    ptx, chunks, has_rest = target.ptx, head_dim // 64, head_dim % 64 != 0

    @target.device
    def load_v(v, address, rest, token_stride):  # type: ignore[no-untyped-def]
        for c in range(chunks):
            for i in range(4):
                w0, w1, w2, w3 = ptx.ldg128(address + ((i >> 1) * 8 + (i & 1)) * token_stride + c * 128)
                v[c * 16 + i * 4] = w0
                v[c * 16 + i * 4 + 1] = w1
                v[c * 16 + i * 4 + 2] = w2
                v[c * 16 + i * 4 + 3] = w3
        if has_rest:
            for i in range(4):
                w0, w1 = ptx.ldg64(rest + ((i >> 1) * 8 + (i & 1)) * token_stride)
                v[chunks * 16 + i * 2] = w0
                v[chunks * 16 + i * 2 + 1] = w1

    return load_v


def make_blank_v(head_dim: int, target: Target) -> Any:
    """blank_v(v, token, begin, end): zero what is not of tokens begin .. end, `token` being the lane's first.

    The weight of such a token is 0, but its slot may hold NaN, and 0 x NaN is NaN.
    """
    uint32, chunks, has_rest = target.uint32, head_dim // 64, head_dim % 64 != 0

    @target.device
    def blank_v(v, token, begin, end):  # type: ignore[no-untyped-def]
        for i in range(4):
            position = token + (i >> 1) * 8 + (i & 1)
            if position < begin or position >= end:
                for c in range(chunks):
                    for w in range(4):
                        v[c * 16 + i * 4 + w] = uint32(0)
                if has_rest:
                    v[chunks * 16 + i * 2] = uint32(0)
                    v[chunks * 16 + i * 2 + 1] = uint32(0)

    return blank_v


def make_scores(head_dim: int, element: str, target: Target) -> Any:
    """scores(k, q) -> products of tokens (g, g, g + 8, g + 8) with heads (2j, 2j + 1, 2j, 2j + 1)."""
    float32, chunks = target.float32, head_dim // 32
    mma = getattr(target.ptx, f"mma_{element}")

    @target.device
    def scores(k, q):  # type: ignore[no-untyped-def]
        s0 = float32(0.0)
        s1 = float32(0.0)
        s2 = float32(0.0)
        s3 = float32(0.0)
        for c in range(chunks):
            for half in range(2):
                a = c * 8 + half * 2
                b = c * 4 + half * 2
                s0, s1, s2, s3 = mma(k[a], k[a + 4], k[a + 1], k[a + 5], q[b], q[b + 1], s0, s1, s2, s3)
        return s0, s1, s2, s3

    return scores


def make_column_maximum(target: Target) -> Any:
    """column_maximum(x): the largest over the lanes of the same j."""
    ptx = target.ptx

    @target.device
    def column_maximum(x):  # type: ignore[no-untyped-def]
        x = ptx.fmax(x, ptx.shfl_xor_f32(x, 4))
        x = ptx.fmax(x, ptx.shfl_xor_f32(x, 8))
        return ptx.fmax(x, ptx.shfl_xor_f32(x, 16))

    return column_maximum


def make_softmax_step(element: str, target: Target) -> Any:
    """softmax_step(s0, s1, s2, s3, state) -> the weights as two words of P^T; `state` takes the tile in.

    Scores are in base 2. At least one token of the tile is seen, so the maximum is a real one from here on.
    """
    ptx = target.ptx
    column_maximum = make_column_maximum(target)
    pack = getattr(ptx, f"pack_{element}")

    @target.device
    def softmax_step(s0, s1, s2, s3, state):  # type: ignore[no-untyped-def]
        max_0 = ptx.fmax(state[MAX_0], column_maximum(ptx.fmax(s0, s2)))
        max_1 = ptx.fmax(state[MAX_1], column_maximum(ptx.fmax(s1, s3)))
        state[FACTOR_0] = ptx.ex2(state[MAX_0] - max_0)
        state[FACTOR_1] = ptx.ex2(state[MAX_1] - max_1)
        state[MAX_0] = max_0
        state[MAX_1] = max_1
        p0 = ptx.ex2(s0 - max_0)
        p1 = ptx.ex2(s1 - max_1)
        p2 = ptx.ex2(s2 - max_0)
        p3 = ptx.ex2(s3 - max_1)
        state[SUM_0] = state[SUM_0] * state[FACTOR_0] + (p0 + p2)
        state[SUM_1] = state[SUM_1] * state[FACTOR_1] + (p1 + p3)
        return ptx.movmatrix_trans(pack(p0, p1)), ptx.movmatrix_trans(pack(p2, p3))

    return softmax_step


def make_accumulate(head_dim: int, element: str, target: Target) -> Any:
    """accumulate(acc, v, p0, p1, state): acc = acc x factor + V^T P^T.

    acc[4u .. 4u + 3] belong to (dim, head): (d, 2j), (d, 2j + 1), (d + 1, 2j), (d + 1, 2j + 1), where d is
    `decode_merge.output_dim(u)`.
    """
    ptx = target.ptx
    mma = getattr(ptx, f"mma_{element}")
    units, whole = head_dim // 16, head_dim // 64 * 4

    @target.device
    def accumulate(acc, v, p0, p1, state):  # type: ignore[no-untyped-def]
        factor_0 = state[FACTOR_0]
        factor_1 = state[FACTOR_1]
        for u in range(units):
            # Words of tokens 2j, 2j + 1, 2j + 8, 2j + 9 lie 4 apart in whole chunks, 2 apart in the rest.
            apart = 4 if u < whole else 2
            a = u // 4 * 16 + u % 4
            a0 = ptx.prmt(v[a], v[a + apart], 0x5410)
            a1 = ptx.prmt(v[a], v[a + apart], 0x7632)
            a2 = ptx.prmt(v[a + 2 * apart], v[a + 3 * apart], 0x5410)
            a3 = ptx.prmt(v[a + 2 * apart], v[a + 3 * apart], 0x7632)
            o = u * 4
            c0 = acc[o] * factor_0
            c1 = acc[o + 1] * factor_1
            c2 = acc[o + 2] * factor_0
            c3 = acc[o + 3] * factor_1
            c0, c1, c2, c3 = mma(a0, a1, a2, a3, p0, p1, c0, c1, c2, c3)
            acc[o] = c0
            acc[o + 1] = c1
            acc[o + 2] = c2
            acc[o + 3] = c3

    return accumulate
