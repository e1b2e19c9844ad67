"""Decode attention over the paged cache on tensor cores: one query per sequence, split along its keys.

A block of 4 warps takes one split of one sequence, one kv head and up to 8 of its query heads; then its next split, so
that the grid is fixed while the number of splits is not. A warp takes every fourth tile of 16 tokens, and keeps keys
and values in registers only (`decode_tile.py`). Splits begin at fixed positions, so that a sequence's result depends
neither on the others of the batch nor on the grid (`decode_plan.py`).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.decode_merge import HEADS, WARPS, make_merge_warps, make_share
from numba_kernels.cuda.decode_tile import (
    MASKED,
    MAX_0,
    MAX_1,
    SUM_0,
    SUM_1,
    make_accumulate,
    make_blank_v,
    make_load_k,
    make_load_v,
    make_scores,
    make_softmax_step,
)
from numba_kernels.cuda.decode_variant import ELEMENTS, HEAD_DIMS, TOKENS_PER_TILE, DecodeVariant
from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 32 * WARPS
MAX_GROUP_SIZE = 16

# q, k_cache, v_cache, block_tables, work, num_work, partial_out, partial_lse, out; strides; group_size, scale, v_scale
DECODE_ARGUMENTS = ("int64",) * 9 + ("int64",) * 6 + ("int32", "float32", "float32")


def make_block_table(variant: DecodeVariant, target: Target) -> tuple[Any, Any]:
    """block_of(table, tile) -> block id; tile_offset(block, tile, block_stride, token_stride) -> bytes to its token 0.

    Two functions, because the id is loaded long before the address is needed.
    """
    ptx, int32, int64, uint32 = target.ptx, target.int32, target.int64, target.uint32
    tiles_per_block = variant.block_size // TOKENS_PER_TILE

    @target.device
    def block_of(table, tile):  # type: ignore[no-untyped-def]
        return ptx.ldg_i32(table + int64(uint32(tile) // uint32(tiles_per_block)) * 4)

    @target.device
    def tile_offset(block, tile, block_stride, token_stride):  # type: ignore[no-untyped-def]
        in_block = int32(uint32(tile) % uint32(tiles_per_block))
        return int64(block) * block_stride + int64(in_block * TOKENS_PER_TILE) * token_stride

    return block_of, tile_offset


def make_load_q(variant: DecodeVariant, target: Target) -> Any:
    """load_q(q, address, j): lane j's words of a head's query at `address`, in the order in which K is loaded.

    For a cache of 8-bit numbers in float16, whose range is that of any sensible query: what is beyond 65504 becomes
    65504, what is below 6e-8 becomes 0.
    """
    ptx, shares, words = target.ptx, variant.k_shares, variant.head_dim // 8
    whole_bytes, rest_bytes = 32 // variant.kv_bytes, shares.rest_bytes * 2 // variant.kv_bytes  # of a lane in a piece
    whole_loads, rest_loads = whole_bytes // 16, max(1, rest_bytes // 16)
    in_whole, num_loads = shares.num_whole * whole_loads, words // 4
    narrow = variant.is_quantised and variant.element == "bf16"

    @target.device
    def load_q(q, address, j):  # type: ignore[no-untyped-def]
        for i in range(num_loads):
            if i < in_whole:
                at = address + i // whole_loads * (4 * whole_bytes) + j * whole_bytes + i % whole_loads * 16
            else:
                r = i - in_whole
                at = address + in_whole * 64 + r // rest_loads * (4 * rest_bytes) + j * rest_bytes + r % rest_loads * 16
            w0, w1, w2, w3 = ptx.ldg128(at)
            q[i * 4] = w0
            q[i * 4 + 1] = w1
            q[i * 4 + 2] = w2
            q[i * 4 + 3] = w3
        if narrow:
            for w in range(words):
                low, high = ptx.unpack_bf16(q[w])
                q[w] = ptx.pack_f16_finite(low, high)

    return load_q


def make_attend_tile(variant: DecodeVariant, target: Target) -> Any:
    """attend_tile(k, v, q, acc, state, addresses of K and V, token_stride, token, begin, end, scale).

    `token` is the tile's first; of begin .. end the query sees every token. With `k_ahead`, K is the next tile's
    address, and this tile's is in `k` already; without, it is this tile's.
    """
    float32, cuda, ahead = target.float32, target.cuda, variant.k_ahead
    load_k, load_v, blank_v = make_load_k(variant, target), make_load_v(variant, target), make_blank_v(variant, target)
    scores, softmax_step = make_scores(variant, target), make_softmax_step(variant, target)
    accumulate = make_accumulate(variant, target)

    @target.device
    def attend_tile(k, v, q, acc, state, k_at, v_at, token_stride, token, begin, end, scale):  # type: ignore[no-untyped-def]
        if ahead:
            load_v(v, v_at, token_stride)
        else:
            load_k(k, k_at, token_stride)
        s0, s1, s2, s3 = scores(k, q)
        if ahead:
            load_k(k, k_at, token_stride)
        else:
            load_v(v, v_at, token_stride)
        row = token + ((cuda.threadIdx.x >> 2) & 7)
        upper_seen = row >= begin and row < end
        lower_seen = row + 8 >= begin and row + 8 < end
        s0 = s0 * scale if upper_seen else float32(MASKED)
        s1 = s1 * scale if upper_seen else float32(MASKED)
        s2 = s2 * scale if lower_seen else float32(MASKED)
        s3 = s3 * scale if lower_seen else float32(MASKED)
        p0, p1 = softmax_step(s0, s1, s2, s3, state)
        if token < begin or token + TOKENS_PER_TILE > end:
            blank_v(v, token + 2 * (cuda.threadIdx.x & 3), begin, end)
        accumulate(acc, v, p0, p1, state)

    return attend_tile


def make_attend_split(variant: DecodeVariant, target: Target) -> Any:
    """attend_split(q, acc, state, cache addresses of the kv head, table, strides, begin, end, scale).

    This warp's tiles of the tokens begin .. end, into `acc` and `state`.
    """
    cuda, int32, int64, uint32 = target.cuda, target.int32, target.int64, target.uint32
    block_of, tile_offset = make_block_table(variant, target)
    load_k, attend_tile = make_load_k(variant, target), make_attend_tile(variant, target)
    ahead, k_words, v_words = variant.k_ahead, 2 * variant.k_shares.words, 4 * variant.v_shares.words

    @target.device
    def attend_split(q, acc, state, k_head, v_head, table, block_stride, token_stride, begin, end, scale):  # type: ignore[no-untyped-def]
        k = cuda.local.array(k_words, uint32)
        v = cuda.local.array(v_words, uint32)
        g = int64((cuda.threadIdx.x >> 2) & 7)
        j = int64(cuda.threadIdx.x & 3)
        k_lane = k_head + g * token_stride + j * 16
        v_lane = v_head + 2 * j * token_stride + g * 16
        last = int32((end + (TOKENS_PER_TILE - 1)) >> 4)
        tile = int32((begin >> 4) + int32(cuda.threadIdx.x >> 5))
        if tile >= last:
            return
        next_tile = int32(min(int32(tile + WARPS), int32(last - 1)))
        here = tile_offset(block_of(table, tile), tile, block_stride, token_stride)
        next_block = block_of(table, next_tile)
        if ahead:
            load_k(k, k_lane + here, token_stride)
        while tile < last:
            there = tile_offset(next_block, next_tile, block_stride, token_stride)
            next_tile = int32(min(int32(tile + 2 * WARPS), int32(last - 1)))
            next_block = block_of(table, next_tile)
            k_at = k_lane + (there if ahead else here)
            token = int32(tile * TOKENS_PER_TILE)
            attend_tile(k, v, q, acc, state, k_at, v_lane + here, token_stride, token, begin, end, scale)
            here = there
            tile = int32(tile + WARPS)

    return attend_split


def make_finish(variant: DecodeVariant, target: Target) -> Any:
    """finish(shared_out, shared_state, num_heads, row, partial_row, is_partial, v_scale, out, partial_out,
    partial_lse).

    Merges the warps and stores `num_heads` rows: to the partial results from `partial_row` on, or to `out` from `row`
    on if this split is the sequence's only one.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    merge_warps = make_merge_warps(variant.head_dim, target)
    pack = getattr(ptx, f"pack_{variant.element}")
    head_dim, pairs = variant.head_dim, variant.head_dim // 2

    @target.device
    def finish(  # type: ignore[no-untyped-def]
        shared_out, shared_state, num_heads, row, partial_row, is_partial, v_scale, out, partial_out, partial_lse
    ):
        item = int32(cuda.threadIdx.x)
        while item < num_heads * pairs:
            head = int32(item // pairs)
            dim = int32((item - head * pairs) * 2)
            out_0, out_1, lse = merge_warps(head, dim, shared_out, shared_state)
            out_0 *= v_scale
            out_1 *= v_scale
            if is_partial:
                to = int64(partial_row + head)
                ptx.stg_f32x2(partial_out + (to * head_dim + dim) * 4, out_0, out_1)
                if dim == 0:
                    ptx.stg_f32(partial_lse + to * 4, lse)
            else:
                ptx.stg_u32(out + ((row + head) * head_dim + dim) * 2, pack(out_0, out_1))
            item = int32(item + NUM_THREADS)

    return finish


def make_decode(variant: DecodeVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (any number, num_kv_heads), `NUM_THREADS` threads.

    The number is how many blocks share a kv head's splits. `grid_blocks` picks one that fills the GPU once; another
    gives the same bits.

    Addresses: q [num_seqs, num_heads, head_dim]; the layer's K and V [num_blocks, ..., num_kv_heads, block_size,
    head_dim]; block_tables int32 [num_seqs, max_blocks]; work int32 [num_work, 4] (`decode_plan.py`); num_work: one
    int32; partial_out and partial_lse as in `decode_merge.py`; out contiguous, as q. Strides in bytes: cache block,
    token, head; table row; q row and head; all of q's and the cache's multiples of 16. `scale` is times log2(e), and
    for a cache of 8-bit numbers times what its K is to be multiplied by; `v_scale` is the same for V, else 1. K, V, q,
    tables, work and num_work must not be written during the launch.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    float32, uint32, head_dim, wide = target.float32, target.uint32, variant.head_dim, variant.wide_group
    load_q, attend_split = make_load_q(variant, target), make_attend_split(variant, target)
    share, finish = make_share(variant, target), make_finish(variant, target)
    q_words, sums, outputs, states = head_dim // 8, head_dim // 4, WARPS * HEADS * head_dim, WARPS * HEADS * 2
    halves = 2 if wide else 1

    def decode(  # type: ignore[no-untyped-def]
        q_rows, k_cache, v_cache, block_tables, work, num_work, partial_out, partial_lse, out, block_stride,
        token_stride, head_stride, table_stride, q_stride, q_head_stride, group_size, scale, v_scale
    ):  # fmt: skip
        kv_head = int64(cuda.blockIdx.y)
        rows = int64(cuda.gridDim.y) * group_size
        k_head, v_head = k_cache + kv_head * head_stride, v_cache + kv_head * head_stride
        shared_out = cuda.shared.array(outputs, float32)
        shared_state = cuda.shared.array(states, float32)
        num_units = int32(ptx.ldg_i32(num_work) * halves)
        unit = int32(cuda.blockIdx.x)
        while unit < num_units:
            # The two halves of a wide group are neighbours, so that the second finds K and V in the L2 cache.
            first_head = int32((unit & 1) * HEADS) if wide else int32(0)
            row = work + int64(unit >> 1 if wide else unit) * 16
            w0, w1, w2, _ = ptx.ldg128(row)
            seq, begin, end = int64(w0), int32(w1), int32(w2)
            num_heads = int32(min(int32(group_size - first_head), int32(HEADS)))
            head = kv_head * group_size + first_head
            lane = ptx.opaque_i32(int32(cuda.threadIdx.x))  # else its part of the address stays in a register for good
            row_head = head + min((lane >> 2) & 7, int32(num_heads - 1))
            q = cuda.local.array(q_words, uint32)
            acc = cuda.local.array(sums, float32)
            state = cuda.local.array(6, float32)
            load_q(q, q_rows + seq * q_stride + row_head * q_head_stride, int64(lane & 3))
            for i in range(sums):
                acc[i] = float32(0.0)
            state[MAX_0] = float32(MASKED)
            state[MAX_1] = float32(MASKED)
            state[SUM_0] = float32(0.0)
            state[SUM_1] = float32(0.0)
            table = block_tables + seq * table_stride
            attend_split(q, acc, state, k_head, v_head, table, block_stride, token_stride, begin, end, scale)
            # Read only now, and again, rather than held in registers while the tiles are.
            partial_row = ptx.ldg_i32(row + 12)
            num_units = int32(ptx.ldg_i32(num_work) * halves)
            cuda.syncthreads()  # what the split before left in shared memory has been read
            share(acc, state, shared_out, shared_state)
            cuda.syncthreads()
            finish(
                shared_out,
                shared_state,
                num_heads,
                seq * rows + head,
                partial_row * rows + head,
                partial_row >= 0,
                v_scale,
                out,
                partial_out,
                partial_lse,
            )
            unit = int32(unit + int32(cuda.gridDim.x))

    return decode


def grid_blocks(variant: DecodeVariant, max_work: int, num_kv_heads: int, num_sms: int) -> int:
    """The grid's first extent for up to `max_work` splits: as many blocks as run at once, or as there is work.

    All blocks are then resident from the start, and none waits for another to end. `max_work` may be a bucket's
    capacity: a block that finds no work ends after one load.
    """
    resident = num_sms * variant.min_blocks_per_sm // num_kv_heads
    return max(1, min(resident, max_work * (2 if variant.wide_group else 1)))


@functools.cache
def decode_kernel(variant: DecodeVariant) -> Kernel:
    """`make_decode` for the compiler."""
    return Kernel(
        lambda target: make_decode(variant, target),
        DECODE_ARGUMENTS,
        NUM_THREADS,
        variant.min_blocks_per_sm,
        name=variant.name,
        min_compute_capability=variant.min_compute_capability,
        instructions=("LDG.128", "HMMA", "MOVM"),
        wide=variant.v_shares.num_whole > 0,
    )


def decode_kernels() -> list[Kernel]:
    """For the catalogue: every variant over blocks of 16 tokens, the cache's default."""
    variants = itertools.product(HEAD_DIMS, ELEMENTS, (False, True), ("", "e4m3"))
    return [decode_kernel(DecodeVariant(dim, element, 16, wide, kv)) for dim, element, wide, kv in variants]
