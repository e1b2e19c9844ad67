"""One warp's work on one tile of 16 tokens of one kv head, for 8 query heads.

S^T = K Q^T and O^T = V^T P^T: the tokens (then head_dim) are the 16 rows of the tensor core's instruction, the heads
its 8 columns, so that a group of 8 heads fills it. Lane (g, j), g = lane / 4, j = lane % 4, loads 16 bytes wherever it
can; which element of head_dim such a load puts where in a fragment does not matter as long as Q has them in the same
order. K goes straight from memory to registers, and so does V, whose pairs of tokens are put together by `prmt`.

A cache of 8-bit numbers is the same but for how words become fragments: a word is then four elements, not two.

Registers, in arrays of constant length: `k` [2 tokens (g, g + 8), words of a lane's share]; `q` [head_dim / 8] words of
pairs in the order of K's elements; `v` [4 tokens (2j, 2j + 1, 2j + 8, 2j + 9), words of a lane's share]; `acc`
[head_dim / 16 units of two elements, 4] float32; `state` [6] float32: for heads 2j and 2j + 1 the maximum, the sum and
the factor of this tile.
"""

from typing import Any

from numba_kernels.cuda.decode_variant import DecodeVariant, RowShares
from numba_kernels.cuda.target import Target

MASKED = -1e30  # the score of what is not seen: finite, so that no difference of two is NaN
MAX_0, MAX_1, SUM_0, SUM_1, FACTOR_0, FACTOR_1 = range(6)


def make_load_share(shares: RowShares, target: Target) -> Any:
    """load_share(words, first, address, lane): into words[first ...] what the lane has of a row.

    `address`: the lane's first 16 bytes in a row of whole pieces, which is row + lane * 16.
    """
    ptx, uint32, num_whole, num_rest = target.ptx, target.uint32, shares.num_whole, shares.num_rest
    whole_bytes, rest_bytes, in_words = shares.lanes * 16, shares.rest_bytes, shares.rest_bytes // 4
    rest_stride, eight = shares.lanes * shares.rest_bytes, shares.rest_bytes == 8

    @target.device
    def load_share(words, first, address, lane):  # type: ignore[no-untyped-def]
        for p in range(num_whole):
            w0, w1, w2, w3 = ptx.ldg128(address + p * whole_bytes)
            words[first + p * 4] = w0
            words[first + p * 4 + 1] = w1
            words[first + p * 4 + 2] = w2
            words[first + p * 4 + 3] = w3
        rest = address - lane * (16 - rest_bytes) + num_whole * whole_bytes
        for p in range(num_rest):
            at = first + num_whole * 4 + p * in_words
            if eight:
                w0, w1 = ptx.ldg64(rest + p * rest_stride)
                words[at] = w0
                words[at + 1] = w1
            else:
                words[at] = uint32(ptx.ldg_i32(rest + p * rest_stride))

    return load_share


def make_load_k(variant: DecodeVariant, target: Target) -> Any:
    """load_k(k, address, token_stride): `address` is the lane's first 16 bytes, those of token g."""
    cuda, int64, words = target.cuda, target.int64, variant.k_shares.words
    load_share = make_load_share(variant.k_shares, target)

    @target.device
    def load_k(k, address, token_stride):  # type: ignore[no-untyped-def]
        for half in range(2):
            load_share(k, half * words, address + half * 8 * token_stride, int64(cuda.threadIdx.x & 3))

    return load_k


def make_load_v(variant: DecodeVariant, target: Target) -> Any:
    """load_v(v, address, token_stride): `address` is the lane's first 16 bytes, those of token 2j."""
    cuda, int64, words = target.cuda, target.int64, variant.v_shares.words
    load_share = make_load_share(variant.v_shares, target)

    @target.device
    def load_v(v, address, token_stride):  # type: ignore[no-untyped-def]
        for i in range(4):
            token = address + ((i >> 1) * 8 + (i & 1)) * token_stride
            load_share(v, i * words, token, int64((cuda.threadIdx.x >> 2) & 7))

    return load_v


def make_blank_v(variant: DecodeVariant, target: Target) -> Any:
    """blank_v(v, token, begin, end): zero what is not of tokens begin .. end, `token` being the lane's first.

    The weight of such a token is 0, but its slot may hold NaN, and 0 x NaN is NaN.
    """
    uint32, words = target.uint32, variant.v_shares.words

    @target.device
    def blank_v(v, token, begin, end):  # type: ignore[no-untyped-def]
        for i in range(4):
            position = token + (i >> 1) * 8 + (i & 1)
            if position < begin or position >= end:
                for w in range(words):
                    v[i * words + w] = uint32(0)

    return blank_v


def make_k_pairs(variant: DecodeVariant, target: Target) -> Any:
    """k_pairs(k, half, i) -> elements 4i .. 4i + 3 of the lane's share of token g or g + 8, as two pairs."""
    ptx, words, is_quantised = target.ptx, variant.k_shares.words, variant.is_quantised

    @target.device
    def k_pairs(k, half, i):  # type: ignore[no-untyped-def]
        if is_quantised:
            low, high = ptx.unpack_e4m3(k[half * words + i])
        else:
            low = k[half * words + 2 * i]
            high = k[half * words + 2 * i + 1]
        return low, high

    return k_pairs


def make_v_pairs(variant: DecodeVariant, target: Target) -> Any:
    """v_pairs(v, i, u) -> of tokens i and i + 1 (0 or 2 of the lane's four), element 2u of its share as a pair, and
    element 2u + 1."""
    ptx, words, is_quantised = target.ptx, variant.v_shares.words, variant.is_quantised

    @target.device
    def v_pairs(v, i, u):  # type: ignore[no-untyped-def]
        if is_quantised:
            first, second = v[i * words + (u >> 1)], v[(i + 1) * words + (u >> 1)]
            low, high = ptx.unpack_e4m3(ptx.prmt(first, second, 0x7362 if u & 1 else 0x5140))
        else:
            low = ptx.prmt(v[i * words + u], v[(i + 1) * words + u], 0x5410)
            high = ptx.prmt(v[i * words + u], v[(i + 1) * words + u], 0x7632)
        return low, high

    return v_pairs


def make_scores(variant: DecodeVariant, target: Target) -> Any:
    """scores(k, q) -> products of tokens (g, g, g + 8, g + 8) with heads (2j, 2j + 1, 2j, 2j + 1)."""
    float32, products = target.float32, variant.head_dim // 16
    mma, k_pairs = getattr(target.ptx, f"mma_{variant.mma_element}"), make_k_pairs(variant, target)

    @target.device
    def scores(k, q):  # type: ignore[no-untyped-def]
        s0 = float32(0.0)
        s1 = float32(0.0)
        s2 = float32(0.0)
        s3 = float32(0.0)
        for i in range(products):
            a0, a2 = k_pairs(k, 0, i)
            a1, a3 = k_pairs(k, 1, i)
            s0, s1, s2, s3 = mma(a0, a1, a2, a3, q[2 * i], q[2 * i + 1], s0, s1, s2, s3)
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


def make_softmax_step(variant: DecodeVariant, target: Target) -> Any:
    """softmax_step(s0, s1, s2, s3, state) -> the weights as two words of P^T; `state` takes the tile in.

    Scores are in base 2. At least one token of the tile is seen, so the maximum is a real one from here on.
    """
    ptx = target.ptx
    column_maximum = make_column_maximum(target)
    pack = getattr(ptx, f"pack_{variant.mma_element}")

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


def make_accumulate(variant: DecodeVariant, target: Target) -> Any:
    """accumulate(acc, v, p0, p1, state): acc = acc x factor + V^T P^T.

    acc[4u .. 4u + 3] belong to (dim, head): (d, 2j), (d, 2j + 1), (d + 1, 2j), (d + 1, 2j + 1), where d is
    `unit_dim(u, g)`.
    """
    mma, v_pairs = getattr(target.ptx, f"mma_{variant.mma_element}"), make_v_pairs(variant, target)
    units = variant.head_dim // 16

    @target.device
    def accumulate(acc, v, p0, p1, state):  # type: ignore[no-untyped-def]
        factor_0 = state[FACTOR_0]
        factor_1 = state[FACTOR_1]
        for u in range(units):
            a0, a1 = v_pairs(v, 0, u)
            a2, a3 = v_pairs(v, 2, u)
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


def make_unit_dim(variant: DecodeVariant, target: Target) -> Any:
    """unit_dim(u, g): the first of the two elements of head_dim that are unit u of the lanes of g: those of its share
    of V, two after two."""
    shares, size = variant.v_shares, variant.kv_bytes
    whole_dims, rest_dims = 16 // size, shares.rest_bytes // size  # of a lane in a piece
    whole_units, rest_units, in_whole = whole_dims // 2, rest_dims // 2, shares.num_whole * whole_dims // 2

    @target.device
    def unit_dim(u, g):  # type: ignore[no-untyped-def]
        if u < in_whole:
            return u // whole_units * (8 * whole_dims) + g * whole_dims + u % whole_units * 2
        r = u - in_whole
        return in_whole * 16 + r // rest_units * (8 * rest_dims) + g * rest_dims + r % rest_units * 2

    return unit_dim
