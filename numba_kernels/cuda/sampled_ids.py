"""Input ids that only the device knows: taken from what the step before sampled, without asking the host."""

import functools
from collections.abc import Callable

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 128

TAKE_SAMPLED_ARGUMENTS = ("int64",) * 3 + ("int32",)


def make_take_sampled(target: Target) -> Callable[..., None]:
    """The kernel. Grid (ceil(num_tokens / NUM_THREADS)), `NUM_THREADS` threads.

    input_ids int64 [num_tokens]; rows int32 [num_tokens]; sampled int64 [any]; num_tokens. Where a row is not negative,
    sampled[row] becomes the input id; the others stay. Addresses; rows and sampled must not be written meanwhile.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64

    def take_sampled(input_ids, rows, sampled, num_tokens):  # type: ignore[no-untyped-def]
        token = int32(int32(cuda.blockIdx.x) * NUM_THREADS + int32(cuda.threadIdx.x))
        if token >= num_tokens:
            return
        row = ptx.ldg_i32(rows + int64(token) * 4)
        if row >= 0:
            low, high = ptx.ldg64(sampled + int64(row) * 8)
            ptx.stg_u32(input_ids + int64(token) * 8, low)
            ptx.stg_u32(input_ids + int64(token) * 8 + 4, high)

    return take_sampled


@functools.cache
def take_sampled_kernel() -> Kernel:
    """`make_take_sampled` for the compiler."""
    return Kernel(make_take_sampled, TAKE_SAMPLED_ARGUMENTS, NUM_THREADS, 4, name="take-sampled")
