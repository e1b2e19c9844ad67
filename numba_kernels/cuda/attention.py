"""`paged_attention` on a CUDA device: checks, the choice of kernels, their launches."""

import math

import torch
from torch import Tensor

from numba_kernels.cuda.cache_layer import cache_layer
from numba_kernels.cuda.checks import ELEMENTS, describe, require_cache, require_rows
from numba_kernels.cuda.decode import (
    HEAD_DIMS,
    MAX_GROUP_SIZE,
    NUM_THREADS,
    DecodeVariant,
    decode_kernel,
    grid_blocks,
)
from numba_kernels.cuda.decode_merge import HEADS, merge_splits_kernel
from numba_kernels.cuda.decode_plan import NO_WINDOW
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.metadata import CudaMetadata, DecodeRows, PrefillRows
from numba_kernels.cuda.prefill import prefill_kernel
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.target import Index3
from numba_kernels.layout import KVLayout
from numba_kernels.metadata import AttentionMetadata

_LOG2_E = math.log2(math.e)


def decode_variant(dtype: torch.dtype, head_dim: int, block_size: int, group_size: int) -> DecodeVariant:
    """The decode kernel for a cache of this type and shape."""
    return DecodeVariant(head_dim, ELEMENTS[dtype], block_size, wide_group=group_size > HEADS)


def paged_attention(
    launcher: Launcher,
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    metadata: AttentionMetadata,
    *,
    scale: float,
    layout: KVLayout,
    sliding_window: int | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """As `numba_kernels.paged_attention`, for bfloat16 and float16, head_dim 64, 96, 128 or 256, groups of 1 to 16
    heads, the standard layout, and metadata made by the same device's `attention_metadata`. Raises ValueError for
    anything else. `out`, where given, is contiguous.
    """
    if not isinstance(metadata, CudaMetadata):
        raise ValueError("metadata was not made by this device's attention_metadata")
    _require_fitting(launcher, q, kv_cache, layer, metadata, scale, layout, sliding_window)
    if out is None:
        out = launcher.empty(tuple(q.shape), q.dtype)
    elif out.shape != q.shape or out.dtype != q.dtype or out.device != q.device or not out.is_contiguous():
        raise ValueError(f"out must be like q and contiguous: got {describe(out)}")
    if metadata.prefill is not None:
        attend_prefill(launcher, q, kv_cache, layer, metadata, metadata.prefill, out, scale, sliding_window)
    decode = metadata.decode
    if decode is not None and isinstance(decode.rows, slice):
        attend_decode(launcher, q[decode.rows], kv_cache, layer, decode, out[decode.rows], scale, sliding_window)
    elif decode is not None:
        attended = launcher.empty((decode.num_seqs, *q.shape[1:]), q.dtype)
        attend_decode(launcher, q[decode.rows], kv_cache, layer, decode, attended, scale, sliding_window)
        out[decode.rows] = attended
    return out


def attend_decode(
    launcher: Launcher,
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    decode: DecodeRows,
    out: Tensor,
    scale: float,
    window: int | None,
) -> None:
    """Attention of one query per sequence: q and out [num_seqs, num_heads, head_dim], out contiguous."""
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, block_size = kv_cache.shape[3:5]
    group_size = num_heads // num_kv_heads
    variant = decode_variant(q.dtype, head_dim, block_size, group_size)
    splits = decode.splits_of(window)
    partials = splits.partials_of(num_heads, head_dim)
    at, tables = cache_layer(kv_cache, layer), decode.block_tables
    num_work = splits.work_begin.data_ptr() + 4 * num_seqs
    results = (partials.out.data_ptr(), partials.lse.data_ptr(), out.data_ptr())
    launcher.launch(
        decode_kernel(variant),
        Index3(grid_blocks(variant, splits.max_work, num_kv_heads, launcher.properties.num_sms), num_kv_heads),
        NUM_THREADS,
        (
            *(q.data_ptr(), at.k, at.v, tables.data_ptr(), splits.work.data_ptr(), num_work, *results),
            *(at.block_stride, at.token_stride, at.head_stride, 4 * tables.stride(0)),
            *(2 * q.stride(0), 2 * q.stride(1), group_size, scale * _LOG2_E, 1.0),
        ),
        (q, kv_cache, tables, splits.work, splits.work_begin, partials.out, partials.lse, out),
    )
    launcher.launch(
        merge_splits_kernel(head_dim, variant.element),
        Index3(num_seqs, num_heads),
        head_dim // 2,
        (splits.work_begin.data_ptr(), *results[:2], results[2]),
        (splits.work_begin, partials.out, partials.lse, out),
    )


def attend_prefill(
    launcher: Launcher,
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    metadata: CudaMetadata,
    prefill: PrefillRows,
    out: Tensor,
    scale: float,
    window: int | None,
) -> None:
    """Attention of the sequences with several queries: their rows of out, contiguous; the others stay as they are."""
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, block_size = kv_cache.shape[3:5]
    group_size = num_heads // num_kv_heads
    variant = PrefillVariant(head_dim, ELEMENTS[q.dtype], block_size)
    work = prefill.work_of(variant, group_size, window)
    at, tables = cache_layer(kv_cache, layer), metadata.block_tables
    inputs = (tables, metadata.cu_seqlens_q, metadata.seq_lens, work, out)
    launcher.launch(
        prefill_kernel(variant),
        Index3(num_kv_heads, work.shape[0]),
        variant.num_threads,
        (
            *(q.data_ptr(), at.k, at.v, *(x.data_ptr() for x in inputs)),
            *(at.block_stride, at.head_stride, 4 * tables.stride(0), 2 * q.stride(0), 2 * q.stride(1)),
            *(NO_WINDOW if window is None else window, group_size, scale * _LOG2_E, 1.0),
        ),
        (q, kv_cache, *inputs),
    )


def _require_fitting(
    launcher: Launcher,
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    metadata: CudaMetadata,
    scale: float,
    layout: KVLayout,
    window: int | None,
) -> None:
    require_cache(kv_cache, layer, layout, launcher.device)
    num_blocks, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    if q.dim() != 3:
        raise ValueError(f"q must be [num_tokens, num_heads, head_dim]: got {describe(q)}")
    num_heads = q.shape[1]
    require_rows("q", q, (metadata.num_query_tokens, num_heads, head_dim), kv_cache.dtype, launcher.device)
    group_size, rest = divmod(num_heads, num_kv_heads)
    if head_dim not in HEAD_DIMS:
        raise ValueError(f"head_dim must be one of {HEAD_DIMS}, not {head_dim}")
    if rest or not 1 <= group_size <= MAX_GROUP_SIZE:
        raise ValueError(f"q's {num_heads} heads must be 1 to {MAX_GROUP_SIZE} times the cache's {num_kv_heads}")
    if scale <= 0:
        raise ValueError(f"scale must be above 0, not {scale}")
    if window is not None and window < 1:
        raise ValueError(f"sliding_window must be at least 1, not {window}")
    metadata.require_blocks(num_blocks, block_size)
