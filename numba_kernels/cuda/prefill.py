"""Prefill attention over the paged cache on tensor cores: any number of queries per sequence, after any context.

FlashAttention-2 (arXiv 2307.08691) with the heads of a group packed into the tile of rows: row = query x group_size +
head, so that all of them share what is loaded. A block of threads takes `tile_rows` rows of one sequence and kv head,
and goes through the keys they see, in tiles at fixed positions (`prefill_plan.py`: who takes what). While one tile is
worked on (`prefill_tile.py`), the next is on its way into the other of two stages (`prefill_load.py`). The cache may be
of 8-bit numbers (`prefill_e4m3.py`).
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.prefill_e4m3 import make_narrow_q, make_widen_tile
from numba_kernels.cuda.prefill_load import make_load_block_ids, make_load_q, make_load_tile, num_block_ids
from numba_kernels.cuda.prefill_rows import make_query_of
from numba_kernels.cuda.prefill_shared import make_lane_offsets
from numba_kernels.cuda.prefill_store import make_stage_rows, make_store_rows
from numba_kernels.cuda.prefill_tile import (
    LOWEST,
    make_accumulate,
    make_mask,
    make_raise_maximum,
    make_scores,
)
from numba_kernels.cuda.prefill_variant import ELEMENTS, HEAD_DIMS, PrefillVariant
from numba_kernels.cuda.target import Kernel, Target

# q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, work, out; strides; window, group_size, scale, v_scale
PREFILL_ARGUMENTS = ("int64",) * 8 + ("int64",) * 5 + ("int32", "int32", "float32", "float32")


def make_attend_tile(variant: PrefillVariant, target: Target) -> Any:
    """attend_tile(s, acc, state, q_lane, k_lane, v_lane, token, warp_row, first, last, context, window, reciprocal,
    scale).

    The warp's rows begin at `warp_row` and stand at positions `first` to `last`. A tile behind them is left out, and
    only one that some see in part, or not at all, is masked.
    """
    cuda, int32 = target.cuda, target.int32
    scores, mask = make_scores(variant, target), make_mask(variant, target)
    raise_maximum, accumulate = make_raise_maximum(variant, target), make_accumulate(variant, target)
    tile_tokens = variant.tile_tokens

    @target.device
    def attend_tile(  # type: ignore[no-untyped-def]
        s, acc, state, q_lane, k_lane, v_lane, token, warp_row, first, last, context, window, reciprocal, scale
    ):
        if token <= last:
            scores(s, q_lane, k_lane)
            if token + (tile_tokens - 1) > first or token < int32(last - window + 1):
                mask(s, int32(warp_row + ((cuda.threadIdx.x >> 2) & 7)), token, context, window, reciprocal)
            raise_maximum(s, acc, state, scale)
            accumulate(acc, s, state, v_lane, scale)

    return attend_tile


def make_prefill(variant: PrefillVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_kv_heads, num_work), `variant.num_threads` threads, `variant.shared_bytes` dynamic.

    Addresses: q [num_tokens, num_heads, head_dim]; the layer's K and V [num_blocks, ..., num_kv_heads, block_size,
    head_dim], of which the last two are contiguous; block_tables int32 [num_seqs, max_blocks]; cu_seqlens_q int32
    [num_seqs + 1]; seq_lens int32 [num_seqs]; work int32 [num_work, 4] (`prefill_plan.py`); out contiguous, as q; of
    rows that no work names nothing is written. Strides in bytes: cache block, head; table row; q row and head; all of
    q's and the cache's multiples of 16. `window`: how many tokens a query sees. `scale` is times log2(e), above 0,
    and for a cache of 8-bit numbers times what its K is to be multiplied by; `v_scale` is the same for V, else 1. K, V,
    q and tables must not be written during the launch.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    float32, uint32, head_dim = target.float32, target.uint32, variant.head_dim
    load_q, load_tile = make_load_q(variant, target), make_load_tile(variant, target)
    load_block_ids, attend_tile = make_load_block_ids(variant, target), make_attend_tile(variant, target)
    widen_tile, narrow_q = make_widen_tile(variant, target), make_narrow_q(variant, target)
    widens, narrows = variant.is_quantised, variant.mma_element != variant.element
    stage_rows, store_rows = make_stage_rows(variant, target), make_store_rows(variant, target)
    reciprocal_of, query_of = make_query_of(target)
    rows_first, elements_first = make_lane_offsets(head_dim, target)
    row_tiles, tile_tokens, tile_bytes, q_bytes = (
        variant.work_shape.row_tiles, variant.tile_tokens, variant.tile_bytes, variant.q_bytes
    )  # fmt: skip
    tile_rows, warp_rows, num_ids = variant.tile_rows, variant.warp_rows, num_block_ids(variant)
    num_scores, num_sums, num_state = row_tiles * tile_tokens // 2, row_tiles * head_dim // 2, row_tiles * 4

    def prefill(  # type: ignore[no-untyped-def]
        q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, work, out, block_stride, head_stride, table_stride,
        q_stride, q_head_stride, window, group_size, scale, v_scale
    ):  # fmt: skip
        w0, w1, w2, w3 = ptx.ldg128(work + int64(cuda.blockIdx.y) * 16)
        if w3 == 0:
            return
        seq, first_row, tile, end_tile = int64(w0), int32(w1), int32(w2), int32(w3)
        kv_head = int64(cuda.blockIdx.x)
        num_heads = int64(cuda.gridDim.x) * group_size
        q_begin = ptx.ldg_i32(cu_seqlens_q + seq * 4)
        num_queries = int32(ptx.ldg_i32(cu_seqlens_q + seq * 4 + 4) - q_begin)
        context = int32(ptx.ldg_i32(seq_lens + seq * 4) - num_queries)
        reciprocal = reciprocal_of(group_size)
        num_rows = int32(num_queries * group_size)
        last_row = int32(min(int32(first_row + tile_rows), num_rows) - 1)
        last_token = int32(context + query_of(last_row, reciprocal))
        first_token = int32(max(int32(context + query_of(first_row, reciprocal) - window + 1), int32(0)))
        base = int32(ptx.smem_addr(cuda.shared.array(0, uint32, 128)))
        k_head, v_apart = k_cache + kv_head * head_stride, v_cache - k_cache
        table = block_tables + seq * table_stride
        head = kv_head * group_size

        ids = cuda.local.array(num_ids, int32)
        load_block_ids(ids, table, tile, last_token)
        load_q(
            base,
            q + q_begin * q_stride + head * q_head_stride,
            q_stride,
            q_head_stride,
            first_row,
            num_rows,
            group_size,
            reciprocal,
        )
        stage = int32(base + q_bytes)
        load_tile(ids, stage, k_head, v_apart, block_stride, tile, first_token, last_token)
        ptx.cp_async_commit()
        load_block_ids(ids, table, int32(tile + 1), last_token)

        s = cuda.local.array(num_scores, float32)
        acc = cuda.local.array(num_sums, float32)
        state = cuda.local.array(num_state, float32)
        for i in range(num_sums):
            acc[i] = float32(0.0)
        for i in range(2 * row_tiles):
            state[i] = float32(LOWEST)
            state[2 * row_tiles + i] = float32(0.0)
        lane = int32(cuda.threadIdx.x & 31)
        in_tile = int32((cuda.threadIdx.x >> 5) * warp_rows)
        warp_row = int32(first_row + in_tile)
        rows = int32(base + in_tile * (head_dim * 2))
        # A warp without rows sees nothing.
        first = int32(context + query_of(warp_row, reciprocal))
        warp_last = int32(min(int32(warp_row + warp_rows - 1), last_row))
        last = int32(context + query_of(warp_last, reciprocal)) if warp_row < num_rows else int32(-1)
        q_lane = int32(rows + rows_first(lane))
        if narrows:
            ptx.cp_async_wait0()
            narrow_q(base)
        while tile < end_tile:
            ptx.cp_async_wait0()
            if widens:
                widen_tile(stage)
            cuda.syncthreads()  # this tile is here for all, and nobody reads the other stage any more
            other = int32(2 * base + 2 * q_bytes + 2 * tile_bytes - stage)
            if tile + 1 < end_tile:
                load_tile(ids, other, k_head, v_apart, block_stride, int32(tile + 1), first_token, last_token)
                ptx.cp_async_commit()
            k_lane, v_lane = int32(stage + elements_first(lane)), int32(stage + tile_bytes + rows_first(lane))
            attend_tile(
                s, acc, state, q_lane, k_lane, v_lane, int32(tile * tile_tokens), warp_row, first, last, context,
                window, reciprocal, scale
            )  # fmt: skip
            stage = other
            tile = int32(tile + 1)
            load_block_ids(ids, table, int32(tile + 1), last_token)
        stage_rows(acc, state, rows, v_scale)
        cuda.syncwarp()
        out_stride = num_heads * (head_dim * 2)
        out_head = out + q_begin * out_stride + head * (head_dim * 2)
        store_rows(rows, out_head, out_stride, warp_row, num_rows, group_size, reciprocal)

    return prefill


@functools.cache
def prefill_kernel(variant: PrefillVariant) -> Kernel:
    """`make_prefill` to launch or compile; the same object for the same variant."""
    return Kernel(
        functools.partial(make_prefill, variant),
        PREFILL_ARGUMENTS,
        variant.num_threads,
        variant.work_shape.min_blocks_per_sm,
        dynamic_shared_bytes=variant.shared_bytes,
        name=variant.name,
        min_compute_capability=variant.min_compute_capability,
        instructions=("HMMA", "LDSM", "LDGSTS.128"),
        wide=True,
    )


def prefill_kernels() -> list[Kernel]:
    """Every variant for blocks of 16 tokens."""
    variants = itertools.product(HEAD_DIMS, ELEMENTS, ("", "e4m3"))
    return [prefill_kernel(PrefillVariant(dim, element, kv_element=kv)) for dim, element, kv in variants]
