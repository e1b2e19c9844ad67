"""Storing a step's keys and values into the paged cache, 16 bytes a lane."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 128

# k, v, k_cache, v_cache, slot_mapping; strides of k and v (row, head), of the cache (block, token, head); num_kv_heads;
# k_inverse_scale, v_inverse_scale
KV_WRITE_ARGUMENTS = ("int64",) * 5 + ("int64",) * 7 + ("int32", "float32", "float32")


@dataclass(frozen=True, slots=True)
class KvWriteVariant:
    """What is constant in a compiled kernel. Raises ValueError for what has no kernel."""

    head_dim: int
    block_size: int = 16  # tokens per block of the cache
    quantised_from: str = ""  # "bf16" or "f16": k and v of that type into a cache of e4m3; else both are 16-bit

    def __post_init__(self) -> None:
        if self.head_dim <= 0 or self.head_dim % 16 or self.quantised_from not in ("", "bf16", "f16"):
            raise ValueError(f"no kernel writes heads of {self.head_dim} from {self.quantised_from}")

    @property
    def name(self) -> str:
        """As in the catalogue: write-kv-128-b16, write-kv-bf16-e4m3-128-b16."""
        elements = f"{self.quantised_from}-e4m3-" if self.quantised_from else ""
        return f"write-kv-{elements}{self.head_dim}-b{self.block_size}"


def make_copy_16(target: Target) -> Any:
    """store(source, to, inverse_scale): 16 bytes as they are."""
    ptx = target.ptx

    @target.device
    def store(source, to, inverse_scale):  # type: ignore[no-untyped-def]
        w0, w1, w2, w3 = ptx.ldg128(source)
        ptx.stg128(to, w0, w1, w2, w3)

    return store


def make_quantise_16(element: str, target: Target) -> Any:
    """store(source, to, inverse_scale): 16 elements times inverse_scale as e4m3, from 32 bytes to 16.

    Rounded to nearest even; what is beyond 448 becomes 448.
    """
    ptx, unpack = target.ptx, getattr(target.ptx, f"unpack_{element}")

    @target.device
    def quantise(first, second, inverse_scale):  # type: ignore[no-untyped-def]
        a, b = unpack(first)
        c, d = unpack(second)
        return ptx.pack_e4m3(a * inverse_scale, b * inverse_scale, c * inverse_scale, d * inverse_scale)

    @target.device
    def store(source, to, inverse_scale):  # type: ignore[no-untyped-def]
        w0, w1, w2, w3 = ptx.ldg128(source)
        w4, w5, w6, w7 = ptx.ldg128(source + 16)
        e0, e1 = quantise(w0, w1, inverse_scale), quantise(w2, w3, inverse_scale)
        e2, e3 = quantise(w4, w5, inverse_scale), quantise(w6, w7, inverse_scale)
        ptx.stg128(to, e0, e1, e2, e3)

    return store


def make_store_row(variant: KvWriteVariant, target: Target) -> Any:
    """store_row(source, head_stride, cache, cache_head_stride, num_heads, inverse_scale): one token's heads, by the
    whole block of threads."""
    cuda, int32, int64, element = target.cuda, target.int32, target.int64, variant.quantised_from
    store = make_quantise_16(element, target) if element else make_copy_16(target)
    source_bytes = 32 if element else 16
    lanes_per_head = variant.head_dim * 2 // source_bytes

    @target.device
    def store_row(source, head_stride, cache, cache_head_stride, num_heads, inverse_scale):  # type: ignore[no-untyped-def]
        item = int32(cuda.threadIdx.x)
        while item < num_heads * lanes_per_head:
            head = int32(item // lanes_per_head)
            lane = int64(item - head * lanes_per_head)
            at = source + head * head_stride + lane * source_bytes
            store(at, cache + head * cache_head_stride + lane * 16, inverse_scale)
            item = int32(item + NUM_THREADS)

    return store_row


def make_write_kv(variant: KvWriteVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_tokens), `NUM_THREADS` threads.

    k and v [num_tokens, num_kv_heads, head_dim] of 16-bit elements; a layer's K and V [num_blocks, ..., num_kv_heads,
    block_size, head_dim]; slot_mapping int64 [num_tokens], block * block_size + offset, or -1: not written. Addresses,
    then strides in bytes, all but slot_mapping's multiples of 16; then, for a cache of e4m3, 1 / the scales: what the
    cache's numbers are to be multiplied by to be k and v again.
    """
    cuda, ptx, int64, uint32 = target.cuda, target.ptx, target.int64, target.uint32
    store_row, block_size = make_store_row(variant, target), variant.block_size

    def write_kv(  # type: ignore[no-untyped-def]
        k, v, k_cache, v_cache, slot_mapping, k_stride, k_head_stride, v_stride, v_head_stride, block_stride,
        token_stride, head_stride, num_kv_heads, k_inverse_scale, v_inverse_scale
    ):  # fmt: skip
        token = int64(cuda.blockIdx.x)
        slot = ptx.ldg_i64(slot_mapping + token * 8)
        if slot < 0:
            return
        block = int64(uint32(slot) // uint32(block_size))
        to = block * block_stride + (slot - block * block_size) * token_stride
        store_row(k + token * k_stride, k_head_stride, k_cache + to, head_stride, num_kv_heads, k_inverse_scale)
        store_row(v + token * v_stride, v_head_stride, v_cache + to, head_stride, num_kv_heads, v_inverse_scale)

    return write_kv


@functools.cache
def write_kv_kernel(variant: KvWriteVariant) -> Kernel:
    """`make_write_kv` for the compiler."""
    return Kernel(
        lambda target: make_write_kv(variant, target),
        KV_WRITE_ARGUMENTS,
        NUM_THREADS,
        8,
        name=variant.name,
        min_compute_capability=(8, 9) if variant.quantised_from else (8, 0),
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )


def write_kv_kernels() -> list[Kernel]:
    """For the catalogue: every head_dim and type of cache, over blocks of 16 tokens, the cache's default."""
    return [write_kv_kernel(KvWriteVariant(d, 16, f)) for d in (64, 96, 128, 256) for f in ("", "bf16", "f16")]
