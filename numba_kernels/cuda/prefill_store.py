"""A warp's finished rows, through shared memory so that they leave in pieces of 16 bytes."""

from typing import Any

from numba_kernels.cuda.prefill_rows import make_query_of
from numba_kernels.cuda.prefill_shared import make_swizzle
from numba_kernels.cuda.prefill_tile import make_row_operations
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.target import Target


def make_stage_rows(variant: PrefillVariant, target: Target) -> Any:
    """stage_rows(acc, state, rows, v_scale): acc x v_scale / sum of the weights, rounded, to `rows`.

    That is the warp's own part of Q's place. A lane's word of chunk n goes to row g, place n ^ f(g), word j: 32
    different banks.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    pack, swizzle = getattr(ptx, f"pack_{variant.element}"), make_swizzle(variant.head_dim, target)
    _, row_sum = make_row_operations(target)
    num_rows, units = 2 * variant.work_shape.row_tiles, variant.head_dim // 8

    @target.device
    def stage_rows(acc, state, rows, v_scale):  # type: ignore[no-untyped-def]
        g = int32((cuda.threadIdx.x >> 2) & 7)
        word = int32((cuda.threadIdx.x & 3) * 4)
        for r in range(num_rows):
            factor = v_scale * (float32(1.0) / row_sum(state[num_rows + r]))
            for n in range(units):
                i = ((r >> 1) * units + n) * 4 + (r & 1) * 2
                to = int32(rows + swizzle(int32(r * 8 + g), n) + word)
                ptx.sts_u32(to, pack(acc[i] * factor, acc[i + 1] * factor))

    return stage_rows


def make_store_rows(variant: PrefillVariant, target: Target) -> Any:
    """store_rows(rows, out, token_stride, first_row, num_rows, group_size, reciprocal): what is staged, to `out`.

    That is the address of the sequence's first token and the group's first head; its heads are contiguous.
    """
    cuda, ptx, int32, int64, uint32 = target.cuda, target.ptx, target.int32, target.int64, target.uint32
    swizzle, row_bytes = make_swizzle(variant.head_dim, target), variant.head_dim * 2
    _, query_of = make_query_of(target)
    chunks, num_pieces = variant.head_dim // 8, variant.warp_rows * variant.head_dim // 8

    @target.device
    def store_rows(rows, out, token_stride, first_row, num_rows, group_size, reciprocal):  # type: ignore[no-untyped-def]
        piece = int32(cuda.threadIdx.x & 31)
        while piece < num_pieces:
            in_tile = int32(uint32(piece) // uint32(chunks))
            chunk = int32(piece - in_tile * chunks)
            row = int32(first_row + in_tile)
            if row < num_rows:
                token = query_of(row, reciprocal)
                head = int32(row - token * group_size)
                w0, w1, w2, w3 = ptx.lds128(int32(rows + swizzle(in_tile, chunk)))
                to = out + int64(token) * token_stride + int64(head * row_bytes + chunk * 16)
                ptx.stg128(to, w0, w1, w2, w3)
            piece = int32(piece + 32)

    return store_rows
