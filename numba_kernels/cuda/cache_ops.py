"""What a step writes into the paged cache, and whole blocks copied within it and out of it: checks and launches."""

import torch
from torch import Tensor

from numba_kernels.cuda import block_copy, kv_write, rope_kv_write
from numba_kernels.cuda.cache_layer import cache_layer
from numba_kernels.cuda.checks import (
    ELEMENTS,
    KV_ELEMENTS,
    describe,
    dtype_beside,
    require_cache,
    require_indices,
    require_rows,
)
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.staging import send
from numba_kernels.cuda.target import Index3
from numba_kernels.kv_scales import UNSCALED, KVScales
from numba_kernels.layout import KVLayout

_MAX_PAIRS = 65535  # a grid's y


def write_kv(
    launcher: Launcher,
    k: Tensor,
    v: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    *,
    layout: KVLayout,
    kv_scales: KVScales = UNSCALED,
) -> None:
    """As `numba_kernels.write_kv`, and into a cache of float8_e4m3fn: rounded to nearest even, what is beyond 448
    becoming 448. Slots are not checked: they are on the device.
    """
    require_cache(kv_cache, layer, layout, kv_scales, launcher)
    _require_step(launcher, k, v, kv_cache, slot_mapping)
    num_kv_heads, block_size, head_dim = kv_cache.shape[3:]
    at = cache_layer(kv_cache, layer)
    quantised_from = ELEMENTS[k.dtype] if KV_ELEMENTS[kv_cache.dtype] else ""
    launcher.launch(
        kv_write.write_kv_kernel(kv_write.KvWriteVariant(head_dim, block_size, quantised_from)),
        Index3(k.shape[0]),
        kv_write.NUM_THREADS,
        (
            *(k.data_ptr(), v.data_ptr(), at.k, at.v, slot_mapping.data_ptr()),
            *(2 * k.stride(0), 2 * k.stride(1), 2 * v.stride(0), 2 * v.stride(1)),
            *(at.block_stride, at.token_stride, at.head_stride, num_kv_heads, 1.0 / kv_scales.k, 1.0 / kv_scales.v),
        ),
        (k, v, kv_cache, slot_mapping),
    )


def rope_and_write_kv(
    launcher: Launcher,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    *,
    layout: KVLayout,
    kv_scales: KVScales = UNSCALED,
) -> None:
    """As `numba_kernels.rope_and_write_kv`, and into a cache of float8_e4m3fn: k is rounded to its own type first.

    Slots and positions are not checked: they are on the device.
    """
    require_cache(kv_cache, layer, layout, kv_scales, launcher)
    _require_step(launcher, k, v, kv_cache, slot_mapping)
    num_tokens, num_kv_heads, head_dim = k.shape
    block_size, num_heads = kv_cache.shape[4], q.shape[1]
    require_rows("q", q, (num_tokens, num_heads, head_dim), k.dtype, launcher.device)
    for name, table in (("cos", cos), ("sin", sin)):
        require_rows(name, table, (cos.shape[0], head_dim // 2), torch.float32, launcher.device)
        if not table.is_contiguous():
            raise ValueError(f"{name} must be contiguous: got {describe(table)}")
    require_indices("positions", positions, num_tokens, launcher.device)
    kv_element = KV_ELEMENTS[kv_cache.dtype]
    variant = rope_kv_write.RopeVariant(head_dim, ELEMENTS[k.dtype], block_size, kv_element=kv_element)
    at = cache_layer(kv_cache, layer)
    launcher.launch(
        rope_kv_write.rope_kv_write_kernel(variant),
        Index3(num_tokens, variant.num_blocks(num_heads, num_kv_heads)),
        rope_kv_write.NUM_THREADS,
        (
            *(q.data_ptr(), k.data_ptr(), v.data_ptr(), 0, 0),  # no norm of the heads
            *(cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), at.k, at.v, slot_mapping.data_ptr()),
            *(2 * x.stride(d) for x in (q, k, v) for d in (0, 1)),
            *(at.block_stride, at.token_stride, at.head_stride, num_heads, num_kv_heads),
            *(0.0, 1.0 / kv_scales.k, 1.0 / kv_scales.v),
        ),
        (q, k, v, cos, sin, positions, kv_cache, slot_mapping),
    )


def copy_blocks(launcher: Launcher, kv_cache: Tensor, pairs: Tensor) -> None:
    """As `numba_kernels.copy_blocks`."""
    row_bytes = kv_cache.stride(0) * kv_cache.element_size()
    on_device = kv_cache.is_contiguous() and kv_cache.device == launcher.device
    if not on_device or row_bytes % 16 or kv_cache.data_ptr() % 16:
        raise ValueError(
            f"kv_cache must be contiguous on {launcher.device}, rows at multiples of 16 bytes: got {describe(kv_cache)}"
        )
    _require_pairs(pairs, kv_cache.shape[0], kv_cache.shape[0])
    cache = kv_cache.data_ptr()
    for begin in range(0, len(pairs), _MAX_PAIRS):
        some = pairs[begin : begin + _MAX_PAIRS]
        sent = send(launcher, {"pairs": some.numpy()})["pairs"]
        launcher.launch(
            block_copy.copy_blocks_kernel(),
            Index3(block_copy.num_chunks(row_bytes), len(some)),
            block_copy.NUM_THREADS,
            (cache, cache, sent.data_ptr(), row_bytes),
            (kv_cache, sent),
        )


def swap_blocks(launcher: Launcher, src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """As `numba_kernels.swap_blocks`, between the device and pinned memory of the host.

    The copies are asked for, not waited for: what comes later on the same stream may use the blocks at once, the host
    only after `synchronize`. Raises ValueError also for host memory that is not pinned.
    """
    if src.shape[1:] != dst.shape[1:] or src.dtype != dst.dtype or not (src.is_contiguous() and dst.is_contiguous()):
        raise ValueError(f"cannot copy blocks of src {describe(src)} to dst {describe(dst)}")
    _require_pairs(pairs, src.shape[0], dst.shape[0])
    if len(pairs):
        launcher.copy_rows(src, dst, [(i, j) for i, j in pairs.tolist()])


def _require_step(launcher: Launcher, k: Tensor, v: Tensor, kv_cache: Tensor, slot_mapping: Tensor) -> None:
    shape, dtype = (k.shape[0], kv_cache.shape[3], kv_cache.shape[5]), dtype_beside(kv_cache, "k", k)
    require_rows("k", k, shape, dtype, launcher.device)
    require_rows("v", v, shape, dtype, launcher.device)
    require_indices("slot_mapping", slot_mapping, k.shape[0], launcher.device)


def _require_pairs(pairs: Tensor, num_src: int, num_dst: int) -> None:
    """Raises ValueError for a wrong tensor, IndexError for blocks that are not there."""
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.device.type != "cpu":
        raise ValueError(f"pairs must be int64 [num_pairs, 2] on the CPU: got {describe(pairs)}")
    if len(pairs):
        (src, dst), (last_src, last_dst) = pairs.min(0).values.tolist(), pairs.max(0).values.tolist()
        if src < 0 or dst < 0 or last_src >= num_src or last_dst >= num_dst:
            raise IndexError(f"pairs name blocks outside {num_src} source or {num_dst} destination blocks")
