"""Copying whole blocks of the cache (copy-on-write): a block is one contiguous row, whatever is in it."""

import functools
from collections.abc import Callable

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 256
_STRIDE = 16 * NUM_THREADS  # bytes that a block of threads moves at once
_AT_ONCE = 4  # loads in flight per thread
CHUNK_BYTES = _STRIDE * _AT_ONCE  # bytes per block of threads

COPY_BLOCKS_ARGUMENTS = ("int64",) * 4


def num_chunks(row_bytes: int) -> int:
    """The grid's first extent for rows of this size."""
    return -(-row_bytes // CHUNK_BYTES)


def make_copy_blocks(target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_chunks(row_bytes), num_pairs), `NUM_THREADS` threads.

    Arguments: source and destination cache (may be the same), pairs int64 [num_pairs, 2] of (source row, destination
    row): addresses; row_bytes, a multiple of 16. No destination may be another pair's source or destination: the
    copies run in no order.
    """
    cuda, ptx, int64, uint32 = target.cuda, target.ptx, target.int64, target.uint32
    words = 4 * _AT_ONCE

    def copy_blocks(source, destination, pairs, row_bytes):  # type: ignore[no-untyped-def]
        pair = pairs + int64(cuda.blockIdx.y) * 16
        source_row = source + ptx.ldg_i64(pair) * row_bytes
        destination_row = destination + ptx.ldg_i64(pair + 8) * row_bytes
        at = int64(cuda.blockIdx.x) * CHUNK_BYTES + int64(cuda.threadIdx.x) * 16
        if at + (_AT_ONCE - 1) * _STRIDE < row_bytes:
            held = cuda.local.array(words, uint32)
            for i in range(_AT_ONCE):
                w0, w1, w2, w3 = ptx.ldg128(source_row + at + i * _STRIDE)
                held[i * 4] = w0
                held[i * 4 + 1] = w1
                held[i * 4 + 2] = w2
                held[i * 4 + 3] = w3
            for i in range(_AT_ONCE):
                to = destination_row + at + i * _STRIDE
                ptx.stg128(to, held[i * 4], held[i * 4 + 1], held[i * 4 + 2], held[i * 4 + 3])
        else:
            while at < row_bytes:
                w0, w1, w2, w3 = ptx.ldg128(source_row + at)
                ptx.stg128(destination_row + at, w0, w1, w2, w3)
                at += _STRIDE

    return copy_blocks


@functools.cache
def copy_blocks_kernel() -> Kernel:
    """`make_copy_blocks` for the compiler."""
    return Kernel(
        make_copy_blocks,
        COPY_BLOCKS_ARGUMENTS,
        NUM_THREADS,
        4,
        name="copy-blocks",
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )
