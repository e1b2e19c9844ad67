"""Putting together what was computed apart: the warps of a block, then the splits of a sequence. In a fixed order."""

import functools
from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.decode_tile import MASKED, MAX_0, MAX_1, SUM_0, SUM_1
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


def make_share(head_dim: int, target: Target) -> Any:
    """share(acc, state, shared_out, shared_state): this warp's sums into shared memory.

    shared_out float32 [WARPS, HEADS, head_dim], shared_state float32 [WARPS, 2 (maximum, sum), HEADS].
    """
    cuda, int32 = target.cuda, target.int32
    column_sum = make_column_sum(target)
    units, whole = head_dim // 16, head_dim // 64 * 4

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
            # The lane's 16 bytes of V are 8 elements of head_dim, two to a unit; in the rest its 8 bytes are 4.
            lane_dims = 8 if u < whole else 4
            at = row + u // 4 * 64 + g * lane_dims + u % 4 * 2
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


def make_merge_splits(head_dim: int, element: str, target: Target) -> Callable[..., None]:
    """The kernel that adds a sequence's splits up, in their order. Grid (num_seqs, num_heads), head_dim / 2 threads.

    Arguments: work_begin int32 [num_seqs + 1], partial_out float32 [num_work, num_heads, head_dim] (each with weights
    that add up to 1), partial_lse float32 [num_work, num_heads] (base 2), out [num_seqs, num_heads, head_dim]: the
    addresses. A sequence of one split is left as it is, one of none (padding) becomes zero.
    """
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32
    pack = getattr(ptx, f"pack_{element}")

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
        largest = float32(MASKED)
        for s in range(num_splits):
            largest = ptx.fmax(largest, ptx.ldg_f32(partial_lse + (first + s * num_heads) * 4))
        total = float32(0.0)
        out_0 = float32(0.0)
        out_1 = float32(0.0)
        for s in range(num_splits):
            row = first + s * num_heads
            factor = ptx.ex2(ptx.ldg_f32(partial_lse + row * 4) - largest)
            total += factor
            address = partial_out + (row * head_dim + dim) * 4
            out_0 += factor * ptx.ldg_f32(address)
            out_1 += factor * ptx.ldg_f32(address + 4)
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
