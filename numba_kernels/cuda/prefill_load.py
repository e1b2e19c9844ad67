"""Bringing Q, and tile after tile of K and V, from global into shared memory, asynchronously.

What nobody of this block of threads may see is not read but filled with zeros: slots behind the sequence or before the
window may hold NaN, and a weight of 0 times NaN would be NaN.
"""

from typing import Any

from numba_kernels.cuda.prefill_rows import make_query_of
from numba_kernels.cuda.prefill_shared import make_place, make_swizzle
from numba_kernels.cuda.prefill_variant import GRANULE, PrefillVariant
from numba_kernels.cuda.target import Target


def rows_per_pass(variant: PrefillVariant) -> int:
    """How many rows of Q the threads copy at once, 16 bytes each: a power of two, so some may be idle."""
    return 1 << (variant.num_threads // (variant.head_dim // 8)).bit_length() - 1


def tokens_per_pass(variant: PrefillVariant) -> int:
    """The same of K and V: a power of two that divides a tile."""
    at_once = 1 << (variant.num_threads // variant.kv_pieces).bit_length() - 1
    return min(at_once, variant.tile_tokens & -variant.tile_tokens)


def num_block_ids(variant: PrefillVariant) -> int:
    """How many entries of the block table a thread needs for one tile."""
    return variant.tile_tokens // max(GRANULE, tokens_per_pass(variant))


def make_load_block_ids(variant: PrefillVariant, target: Target) -> Any:
    """load_block_ids(ids, table, tile, last_token): the blocks of this thread's part of a tile, ahead of their use.

    What is behind the sequence's last token, and perhaps behind the table, is replaced by the last token's block.
    """
    cuda, ptx, int32, int64, uint32 = target.cuda, target.ptx, target.int32, target.int64, target.uint32
    pieces, num_ids, granules_per_block = variant.kv_pieces, num_block_ids(variant), variant.block_size // GRANULE
    granules = variant.tile_tokens // GRANULE
    granules_per_id = granules // num_ids

    @target.device
    def load_block_ids(ids, table, tile, last_token):  # type: ignore[no-untyped-def]
        first = tile * granules + (uint32(cuda.threadIdx.x) // uint32(pieces) >> 4)
        for i in range(num_ids):
            granule = uint32(min(int32(first + i * granules_per_id), int32(last_token >> 4)))
            ids[i] = ptx.ldg_i32(table + int64(granule // uint32(granules_per_block)) * 4)

    return load_block_ids


def make_load_tile(variant: PrefillVariant, target: Target) -> Any:
    """load_tile(ids, stage, k_head, v_apart, block_stride, tile, first_token, last_token): K and V of one tile.

    `stage` is their place in shared memory, `k_head` a kv head's address in block 0, `v_apart` the distance from K to
    V. Of the tokens, those from first_token to last_token are read. 8-bit numbers arrive as they are (`make_place`).
    """
    cuda, ptx, int32, int64, uint32 = target.cuda, target.ptx, target.int32, target.int64, target.uint32
    place = (make_place if variant.is_quantised else make_swizzle)(variant.head_dim, target)
    pieces, at_once = variant.kv_pieces, tokens_per_pass(variant)
    passes, num_ids = variant.tile_tokens // at_once, num_block_ids(variant)
    passes_per_id, granules_per_block = passes // num_ids, variant.block_size // GRANULE
    tile_tokens, tile_bytes = variant.tile_tokens, variant.tile_bytes
    row_bytes, loading = pieces * 16, at_once * pieces
    everybody_loads = loading == variant.num_threads

    @target.device
    def load_tile(ids, stage, k_head, v_apart, block_stride, tile, first_token, last_token):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        row = int32(uint32(thread) // uint32(pieces))
        piece = int32(thread - row * pieces)
        num_seen = uint32(last_token - first_token)
        if everybody_loads or thread < loading:
            for i in range(passes):
                in_tile = int32(i * at_once + row)
                token = int32(tile * tile_tokens + in_tile)
                in_block = int32(uint32(token >> 4) % uint32(granules_per_block)) * GRANULE + (in_tile & 15)
                source = k_head + int64(ids[i // passes_per_id]) * block_stride + in_block * row_bytes + piece * 16
                num_bytes = int32(16) if uint32(token - first_token) <= num_seen else int32(0)
                to = int32(stage + place(in_tile, piece))
                ptx.cp_async16_zfill(to, source, num_bytes)
                ptx.cp_async16_zfill(int32(to + tile_bytes), source + v_apart, num_bytes)

    return load_tile


def make_load_q(variant: PrefillVariant, target: Target) -> Any:
    """load_q(to, q, q_stride, q_head_stride, first_row, num_rows, group_size, reciprocal): this block's rows,
    and behind the last of them zeros.

    `q` is the address of the sequence's first token and the group's first head.
    """
    cuda, ptx, int32, int64, uint32 = target.cuda, target.ptx, target.int32, target.int64, target.uint32
    swizzle = make_swizzle(variant.head_dim, target)
    _, query_of = make_query_of(target)
    chunks, at_once, tile_rows = variant.head_dim // 8, rows_per_pass(variant), variant.tile_rows
    loading = at_once * chunks

    @target.device
    def load_q(to, q, q_stride, q_head_stride, first_row, num_rows, group_size, reciprocal):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        in_tile = int32(uint32(thread) // uint32(chunks))
        chunk = int32(thread - in_tile * chunks)
        if thread >= loading:
            in_tile = int32(tile_rows)
        while in_tile < tile_rows:
            row = int32(min(int32(first_row + in_tile), int32(num_rows - 1)))
            token = query_of(row, reciprocal)
            head = int32(row - token * group_size)
            source = q + int64(token) * q_stride + int64(head) * q_head_stride + int64(chunk) * 16
            num_bytes = int32(16) if first_row + in_tile < num_rows else int32(0)
            ptx.cp_async16_zfill(int32(to + swizzle(in_tile, chunk)), source, num_bytes)
            in_tile = int32(in_tile + at_once)

    return load_q
