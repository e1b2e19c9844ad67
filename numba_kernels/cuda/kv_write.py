"""Storing a step's keys and values into the paged cache, 16 bytes a lane."""

import functools
from collections.abc import Callable
from typing import Any

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 128

# k, v, k_cache, v_cache, slot_mapping; strides of k and v (row, head), of the cache (block, token, head); num_kv_heads
KV_WRITE_ARGUMENTS = ("int64",) * 5 + ("int64",) * 7 + ("int32",)


def make_store_row(head_dim: int, target: Target) -> Any:
    """store_row(source, head_stride, cache, cache_head_stride, num_heads): one token's heads, by the whole block."""
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    lanes_per_head = head_dim // 8

    @target.device
    def store_row(source, head_stride, cache, cache_head_stride, num_heads):  # type: ignore[no-untyped-def]
        item = int32(cuda.threadIdx.x)
        while item < num_heads * lanes_per_head:
            head = int32(item // lanes_per_head)
            at = int64(item - head * lanes_per_head) * 16
            w0, w1, w2, w3 = ptx.ldg128(source + head * head_stride + at)
            ptx.stg128(cache + head * cache_head_stride + at, w0, w1, w2, w3)
            item = int32(item + NUM_THREADS)

    return store_row


def make_write_kv(head_dim: int, block_size: int, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_tokens), `NUM_THREADS` threads.

    k and v [num_tokens, num_kv_heads, head_dim] of 16-bit elements; a layer's K and V [num_blocks, ..., num_kv_heads,
    block_size, head_dim]; slot_mapping int64 [num_tokens], block * block_size + offset, or -1: not written. Addresses,
    then strides in bytes, all but slot_mapping's multiples of 16.
    """
    cuda, ptx, int64, uint32 = target.cuda, target.ptx, target.int64, target.uint32
    store_row = make_store_row(head_dim, target)

    def write_kv(  # type: ignore[no-untyped-def]
        k, v, k_cache, v_cache, slot_mapping, k_stride, k_head_stride, v_stride, v_head_stride, block_stride,
        token_stride, head_stride, num_kv_heads
    ):  # fmt: skip
        token = int64(cuda.blockIdx.x)
        slot = ptx.ldg_i64(slot_mapping + token * 8)
        if slot < 0:
            return
        block = int64(uint32(slot) // uint32(block_size))
        to = block * block_stride + (slot - block * block_size) * token_stride
        store_row(k + token * k_stride, k_head_stride, k_cache + to, head_stride, num_kv_heads)
        store_row(v + token * v_stride, v_head_stride, v_cache + to, head_stride, num_kv_heads)

    return write_kv


@functools.cache
def write_kv_kernel(head_dim: int, block_size: int = 16) -> Kernel:
    """`make_write_kv` for the compiler."""
    return Kernel(
        lambda target: make_write_kv(head_dim, block_size, target),
        KV_WRITE_ARGUMENTS,
        NUM_THREADS,
        8,
        name=f"write-kv-{head_dim}-b{block_size}",
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )
