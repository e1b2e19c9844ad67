"""Putting together what was computed apart: the warps of a block, then the splits of a sequence. In a fixed order."""

import functools
from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.decode_tile import MASKED, MAX_0, MAX_1, SUM_0, SUM_1, make_unit_dim
from numba_kernels.cuda.decode_variant import DecodeVariant
from numba_kernels.cuda.target import Kernel, Target

WARPS = 4
HEADS = 8  # query heads that a block works on


def make_column_sum(target: Target) -> Any:
    """column_sum(x): the sum over the lanes of the same j, in the same order for all."""
    ptx = target.ptx

    @target.device
    def column_sum(x):  # type: ignore[no-untyped-def]
        x = x + ptx.shfl_xor_f32(x, 4)
        x = x + ptx.shfl_xor_f32(x, 8)
        return x + ptx.shfl_xor_f32(x, 16)

    return column_sum


def make_share(variant: DecodeVariant, target: Target) -> Any:
    """share(acc, state, shared_out, shared_state): this warp's sums into shared memory.

    shared_out float32 [WARPS, HEADS, head_dim], shared_state float32 [WARPS, 2 (maximum, sum), HEADS].
    """
    cuda, int32 = target.cuda, target.int32
    column_sum, unit_dim = make_column_sum(target), make_unit_dim(variant, target)
    head_dim, units = variant.head_dim, variant.head_dim // 16

    @target.device
    def share(acc, state, shared_out, shared_state):  # type: ignore[no-untyped-def]
        warp = int32(cuda.threadIdx.x >> 5)
        g = int32((cuda.threadIdx.x >> 2) & 7)
        j = int32(cuda.threadIdx.x & 3)
        sum_0 = column_sum(state[SUM_0])
        sum_1 = column_sum(state[SUM_1])
        if g == 0:
            row = warp * (2 * HEADS) + 2 * j
            shared_state[row] = state[MAX_0]
            shared_state[row + 1] = state[MAX_1]
            shared_state[row + HEADS] = sum_0
            shared_state[row + HEADS + 1] = sum_1
        row = (warp * HEADS + 2 * j) * head_dim
        for u in range(units):
            at = row + unit_dim(u, g)
            shared_out[at] = acc[u * 4]
            shared_out[at + 1] = acc[u * 4 + 2]
            shared_out[at + head_dim] = acc[u * 4 + 1]
            shared_out[at + head_dim + 1] = acc[u * 4 + 3]

    return share


def make_merge_warps(head_dim: int, target: Target) -> Any:
    """merge_warps(head, dim, shared_out, shared_state) -> (out[dim], out[dim + 1], log2 of the sum of weights)."""
    ptx, float32 = target.ptx, target.float32

    @target.device
    def merge_warps(head, dim, shared_out, shared_state):  # type: ignore[no-untyped-def]
        largest = float32(MASKED)
        for w in range(WARPS):
            largest = ptx.fmax(largest, shared_state[w * (2 * HEADS) + head])
        total = float32(0.0)
        out_0 = float32(0.0)
        out_1 = float32(0.0)
        for w in range(WARPS):
            factor = ptx.ex2(shared_state[w * (2 * HEADS) + head] - largest)
            total += factor * shared_state[w * (2 * HEADS) + HEADS + head]
            out_0 += factor * shared_out[(w * HEADS + head) * head_dim + dim]
            out_1 += factor * shared_out[(w * HEADS + head) * head_dim + dim + 1]
        inverse = float32(1.0) / total
        return out_0 * inverse, out_1 * inverse, largest + ptx.lg2(total)

    return merge_warps


MERGE_ARGUMENTS = ("int64",) * 4
_AT_ONCE = 8  # splits loaded together: one by one, each would wait for memory after the one before


def make_load_lse(target: Target) -> Any:
    """load_lse(lse, partial_lse, first, split, num_splits, num_heads): of `_AT_ONCE` splits, the last one repeated."""
    ptx, int32 = target.ptx, target.int32

    @target.device
    def load_lse(lse, partial_lse, first, split, num_splits, num_heads):  # type: ignore[no-untyped-def]
        for i in range(_AT_ONCE):
            row = first + min(int32(split + i), int32(num_splits - 1)) * num_heads
            lse[i] = ptx.ldg_f32(partial_lse + row * 4)

    return load_lse


def make_merge_splits(head_dim: int, element: str, target: Target) -> Callable[..., None]:
    """The kernel that adds a sequence's splits up, in their order. Grid (num_seqs, num_heads), head_dim / 2 threads.

    Arguments: work_begin int32 [num_seqs + 1], partial_out float32 [num_work, num_heads, head_dim] (each with weights
    that add up to 1), partial_lse float32 [num_work, num_heads] (base 2), out [num_seqs, num_heads, head_dim]: the
    addresses. A sequence of one split is left as it is, one of none (padding) becomes zero.
    """
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32
    pack, load_lse, pairs = getattr(ptx, f"pack_{element}"), make_load_lse(target), 2 * _AT_ONCE

    def merge_splits(work_begin, partial_out, partial_lse, out):  # type: ignore[no-untyped-def]
        seq = int64(cuda.blockIdx.x)
        head = int64(cuda.blockIdx.y)
        num_heads = int64(cuda.gridDim.y)
        dim = int64(cuda.threadIdx.x) * 2
        begin = ptx.ldg_i32(work_begin + seq * 4)
        num_splits = int32(ptx.ldg_i32(work_begin + seq * 4 + 4) - begin)
        if num_splits == 1:
            return
        first = int64(begin) * num_heads + head
        lse = cuda.local.array(_AT_ONCE, float32)
        held = cuda.local.array(pairs, float32)
        largest = float32(MASKED)
        split = int32(0)
        while split < num_splits:
            load_lse(lse, partial_lse, first, split, num_splits, num_heads)
            for i in range(_AT_ONCE):
                largest = ptx.fmax(largest, lse[i])
            split = int32(split + _AT_ONCE)
        total = float32(0.0)
        out_0 = float32(0.0)
        out_1 = float32(0.0)
        split = int32(0)
        while split < num_splits:
            load_lse(lse, partial_lse, first, split, num_splits, num_heads)
            for i in range(_AT_ONCE):
                row = first + min(int32(split + i), int32(num_splits - 1)) * num_heads
                address = partial_out + (row * head_dim + dim) * 4
                held[2 * i] = ptx.ldg_f32(address)
                held[2 * i + 1] = ptx.ldg_f32(address + 4)
            for i in range(_AT_ONCE):
                factor = ptx.ex2(lse[i] - largest) if split + i < num_splits else float32(0.0)
                total += factor
                out_0 += factor * held[2 * i]
                out_1 += factor * held[2 * i + 1]
            split = int32(split + _AT_ONCE)
        inverse = float32(1.0) / total if num_splits > 0 else float32(0.0)
        ptx.stg_u32(out + ((seq * num_heads + head) * head_dim + dim) * 2, pack(out_0 * inverse, out_1 * inverse))

    return merge_splits


@functools.cache
def merge_splits_kernel(head_dim: int, element: str) -> Kernel:
    """`make_merge_splits` for the compiler."""
    return Kernel(
        lambda target: make_merge_splits(head_dim, element, target),
        MERGE_ARGUMENTS,
        head_dim // 2,
        name=f"merge-splits-{element}-{head_dim}",
    )
