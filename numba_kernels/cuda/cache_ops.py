"""What is written into the paged cache on a CUDA device, and whole blocks copied within it and out of it."""

import torch
from torch import Tensor

from numba_kernels.cuda import block_copy, kv_write
from numba_kernels.cuda.attention import check_cache
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.staging import send
from numba_kernels.cuda.target import Index3
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
) -> None:
    """As `numba_kernels.write_kv`; slots are not checked: they are on the device."""
    check_cache(launcher, kv_cache, layer, layout)
    num_kv_heads, block_size, head_dim = kv_cache.shape[3:]
    num_tokens, size = k.shape[0], kv_cache.element_size()
    for name, x in (("k", k), ("v", v)):
        if tuple(x.shape) != (num_tokens, num_kv_heads, head_dim) or x.dtype != kv_cache.dtype:
            raise ValueError(f"{name} must be {(num_tokens, num_kv_heads, head_dim)} {kv_cache.dtype}, as the cache")
        if x.device != launcher.device or x.stride(2) != 1 or (x.stride(0) | x.stride(1)) % 8 or x.data_ptr() % 16:
            raise ValueError(f"{name} must be on {launcher.device}, its rows contiguous and aligned to 16 bytes")
    if tuple(slot_mapping.shape) != (num_tokens,) or slot_mapping.dtype != torch.int64:
        raise ValueError(f"slot_mapping must be int64 [{num_tokens}], not {slot_mapping.dtype} {slot_mapping.shape}")
    block_stride, layer_stride, v_offset, head_stride, token_stride, _ = (n * size for n in kv_cache.stride())
    k_cache = kv_cache.data_ptr() + layer * layer_stride
    launcher.launch(
        kv_write.write_kv_kernel(head_dim, block_size),
        Index3(num_tokens),
        kv_write.NUM_THREADS,
        (
            *(k.data_ptr(), v.data_ptr(), k_cache, k_cache + v_offset, slot_mapping.data_ptr()),
            *(k.stride(0) * size, k.stride(1) * size, v.stride(0) * size, v.stride(1) * size),
            *(block_stride, token_stride, head_stride, num_kv_heads),
        ),
        (k, v, kv_cache, slot_mapping),
    )


def copy_blocks(launcher: Launcher, kv_cache: Tensor, pairs: Tensor) -> None:
    """As `numba_kernels.copy_blocks`."""
    if not kv_cache.is_contiguous() or kv_cache.device != launcher.device:
        raise ValueError(f"kv_cache must be contiguous, on {launcher.device}")
    row_bytes = kv_cache.stride(0) * kv_cache.element_size()
    if row_bytes % 16 or kv_cache.data_ptr() % 16:
        raise ValueError(f"kv_cache's rows must be aligned to 16 bytes: {row_bytes} bytes at {kv_cache.data_ptr():#x}")
    check_pairs(pairs, kv_cache.shape[0], kv_cache.shape[0])
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

    The copies are asked for, not waited for: the host may read or write its blocks after `synchronize`, what is later
    on the same stream may use them at once.
    """
    if src.shape[1:] != dst.shape[1:] or src.dtype != dst.dtype or not (src.is_contiguous() and dst.is_contiguous()):
        raise ValueError(f"cannot copy blocks {tuple(src.shape)} {src.dtype} to {tuple(dst.shape)} {dst.dtype}")
    check_pairs(pairs, src.shape[0], dst.shape[0])
    if len(pairs):
        launcher.copy_rows(src, dst, [(i, j) for i, j in pairs.tolist()])


def check_pairs(pairs: Tensor, num_src: int, num_dst: int) -> None:
    """Raises ValueError for a wrong tensor, IndexError for blocks that are not there."""
    if pairs.dtype != torch.int64 or pairs.dim() != 2 or pairs.shape[1] != 2 or pairs.device.type != "cpu":
        raise ValueError(f"pairs must be int64 [num_pairs, 2] on the CPU, got {pairs.dtype} {tuple(pairs.shape)}")
    within = len(pairs) == 0 or (int(pairs.min()) >= 0 and int(pairs[:, 0].max()) < num_src)
    if not within or (len(pairs) and int(pairs[:, 1].max()) >= num_dst):
        raise IndexError(f"pairs name blocks outside {num_src} source or {num_dst} destination blocks")
