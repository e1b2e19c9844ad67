"""Sums over the lanes of a warp and the warps of a block: always in the same order, and known to every thread."""

from typing import Any

from numba_kernels.cuda.target import Target


def make_lane_sum(num_lanes: int, target: Target) -> Any:
    """lane_sum(x): the sum over each aligned group of `num_lanes` lanes (a power of two), in all of them."""
    ptx, steps = target.ptx, num_lanes.bit_length() - 1

    @target.device
    def lane_sum(x):  # type: ignore[no-untyped-def]
        for i in range(steps):
            x = x + ptx.shfl_xor_f32(x, 1 << i)
        return x

    return lane_sum


def make_block_sum(num_warps: int, target: Target) -> Any:
    """block_sum(x, shared): the sum over the whole block, through float32 [num_warps] of shared memory."""
    cuda, float32, int32 = target.cuda, target.float32, target.int32
    warp_sum = make_lane_sum(32, target)

    @target.device
    def block_sum(x, shared):  # type: ignore[no-untyped-def]
        x = warp_sum(x)
        lane = int32(cuda.threadIdx.x & 31)
        if lane == 0:
            shared[int32(cuda.threadIdx.x >> 5)] = x
        cuda.syncthreads()
        return warp_sum(shared[lane] if lane < num_warps else float32(0.0))

    return block_sum
