"""`paged_attention` on a CUDA device: checks, the choice of kernels, their launches."""

import math

import torch
from torch import Tensor

from numba_kernels.cuda.decode import HEAD_DIMS, MAX_GROUP_SIZE, NUM_THREADS, DecodeVariant, decode_kernel, grid_blocks
from numba_kernels.cuda.decode_merge import HEADS, merge_splits_kernel
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.metadata import CudaMetadata, DecodeRows
from numba_kernels.cuda.target import Index3
from numba_kernels.layout import KVLayout
from numba_kernels.metadata import AttentionMetadata

ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
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
    heads, the standard layout, and metadata made by the same `CudaKernels`. Raises ValueError for anything else.
    """
    if not isinstance(metadata, CudaMetadata):
        raise ValueError("metadata was not made by this device's attention_metadata")
    check_attention(launcher, q, kv_cache, layer, metadata, scale, layout, sliding_window, out)
    if out is None:
        out = launcher.empty(tuple(q.shape), q.dtype)
    decode = metadata.decode
    if decode is not None and isinstance(decode.rows, slice):
        attend_decode(launcher, q[decode.rows], kv_cache, layer, decode, out[decode.rows], scale, sliding_window)
    elif decode is not None:
        attended = launcher.empty((decode.num_seqs, *q.shape[1:]), q.dtype)
        attend_decode(launcher, q[decode.rows], kv_cache, layer, decode, attended, scale, sliding_window)
        out[decode.rows] = attended
    if decode is None or decode.num_seqs != metadata.num_query_tokens:
        raise NotImplementedError("sequences of several queries: the prefill kernel is not connected yet")
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
    group_size, size = num_heads // num_kv_heads, q.element_size()
    variant = decode_variant(q.dtype, head_dim, block_size, group_size)
    plan = decode.plan(window)
    partial_out = launcher.empty((plan.max_work, num_heads, head_dim), torch.float32)
    partial_lse = launcher.empty((plan.max_work, num_heads), torch.float32)
    block_stride, layer_stride, v_offset, head_stride, token_stride, _ = (n * size for n in kv_cache.stride())
    k_cache = kv_cache.data_ptr() + layer * layer_stride
    num_work = plan.work_begin[num_seqs:]
    addresses = (t.data_ptr() for t in (decode.block_tables, plan.work, num_work, partial_out, partial_lse, out))
    launcher.launch(
        decode_kernel(variant),
        Index3(grid_blocks(variant, plan.max_work, num_kv_heads, launcher.properties.num_sms), num_kv_heads),
        NUM_THREADS,
        (
            *(q.data_ptr(), k_cache, k_cache + v_offset, *addresses),
            *(block_stride, token_stride, head_stride, decode.block_tables.stride(0) * 4),
            *(q.stride(0) * size, q.stride(1) * size),
            *(group_size, scale * _LOG2_E),
        ),
        (q, kv_cache, decode.block_tables, plan.work, plan.work_begin, partial_out, partial_lse, out),
    )
    launcher.launch(
        merge_splits_kernel(head_dim, variant.element),
        Index3(num_seqs, num_heads),
        head_dim // 2,
        tuple(t.data_ptr() for t in (plan.work_begin, partial_out, partial_lse, out)),
        (plan.work_begin, partial_out, partial_lse, out),
    )


def check_cache(launcher: Launcher, kv_cache: Tensor, layer: int, layout: KVLayout) -> None:
    """Raises ValueError unless kernels can use this layer of this cache."""
    rules = {
        "kv_cache must be [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]": kv_cache.dim() == 6
        and kv_cache.shape[2] == 2,
        f"kv_cache must be bfloat16 or float16, not {kv_cache.dtype}": kv_cache.dtype in ELEMENTS,
        "kv_cache must be contiguous": kv_cache.is_contiguous(),
        f"kv_cache must be on {launcher.device}, not {kv_cache.device}": kv_cache.device == launcher.device,
        f"layout must be standard, not {layout}": layout is KVLayout.STANDARD,
        "kv_cache must be aligned to 16 bytes": kv_cache.data_ptr() % 16 == 0,
    }
    _require(rules)
    _require({f"layer {layer} is not in [0, {kv_cache.shape[1]})": 0 <= layer < kv_cache.shape[1]})


def check_attention(
    launcher: Launcher,
    q: Tensor,
    kv_cache: Tensor,
    layer: int,
    metadata: CudaMetadata,
    scale: float,
    layout: KVLayout,
    window: int | None,
    out: Tensor | None,
) -> None:
    """Raises ValueError unless everything fits together."""
    check_cache(launcher, kv_cache, layer, layout)
    num_kv_heads, block_size, head_dim = kv_cache.shape[3:]
    strides = q.stride() if q.dim() == 3 else (0, 0, 0)
    shape_fits = q.dim() == 3 and q.shape[2] == head_dim and q.dtype == kv_cache.dtype
    num_tokens = metadata.num_query_tokens
    _require(
        {
            f"head_dim must be one of {HEAD_DIMS}, not {head_dim}": head_dim in HEAD_DIMS,
            f"block_size must be a multiple of 16, not {block_size}": block_size % 16 == 0,
            "q must be [num_tokens, num_heads, head_dim] with the cache's dtype and head_dim": shape_fits,
            f"q must be on {launcher.device}, not {q.device}": q.device == launcher.device,
            f"q must have the batch's {num_tokens} rows, not {q.shape[0]}": q.shape[0] == num_tokens,
            "q must have a contiguous last dimension, and rows aligned to 16 bytes": strides[2] == 1
            and (strides[0] | strides[1]) % 8 == 0
            and q.data_ptr() % 16 == 0,
            f"scale must be above 0, not {scale}": scale > 0,
            f"sliding_window must be at least 1, not {window}": window is None or window >= 1,
        }
    )
    group_size, rest = divmod(q.shape[1], num_kv_heads)
    fits = rest == 0 and 1 <= group_size <= MAX_GROUP_SIZE
    out_fits = out is None or (
        out.shape == q.shape and out.dtype == q.dtype and out.is_contiguous() and out.device == q.device
    )
    _require(
        {
            f"q's {q.shape[1]} heads must be 1 to {MAX_GROUP_SIZE} times the cache's {num_kv_heads}": fits,
            "out must be contiguous, with q's shape, dtype and device": out_fits,
        }
    )


def _require(rules: dict[str, bool]) -> None:
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)
