"""`paged_attention` on the CPU: checks the arguments, picks the path for this processor, launches it."""

import functools
from array import array
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import numba
import numpy as np
import torch

from numba_kernels.cpu.amx import tiles_permitted
from numba_kernels.cpu.attention_amx import attend_amx, attend_amx_emulated
from numba_kernels.cpu.attention_plain import attend_plain
from numba_kernels.cpu.attention_plan import Plan, Shape, build_plan, partials
from numba_kernels.cpu.attention_unit import STATE_TAIL, Launch
from numba_kernels.cpu.attention_vector import attend_vector_bfloat16, attend_vector_float32
from numba_kernels.cpu.workers import run_worker, run_workers
from numba_kernels.layout import KVLayout, has_avx512
from numba_kernels.metadata import AttentionMetadata

_LOG2_E = 1.4426950408889634
_MAX_HEAD_DIM = 256


class AttentionPath(StrEnum):
    """Which instructions attention is computed with."""

    PLAIN = "plain"  # standard layout: loops that LLVM vectorises
    VECTOR_FLOAT32 = "vector-float32"  # standard layout: vectors of 16 float32
    VECTOR_BFLOAT16 = "vector-bfloat16"  # packed layout: VDPBF16PS
    AMX = "amx"  # packed layout: matrix tiles
    AMX_EMULATED = "amx-emulated"  # the same kernel without the instructions: slow, for tests


_WORKERS: dict[AttentionPath, Callable[[], int]] = {
    AttentionPath.PLAIN: attend_plain,
    AttentionPath.VECTOR_FLOAT32: attend_vector_float32,
    AttentionPath.VECTOR_BFLOAT16: attend_vector_bfloat16,
    AttentionPath.AMX: attend_amx,
    AttentionPath.AMX_EMULATED: attend_amx_emulated,
}


@functools.cache
def best_path(dtype: torch.dtype, layout: KVLayout) -> AttentionPath:
    """The fastest path on this processor for a cache of this type and layout."""
    if layout is KVLayout.AMX_PACKED:
        return AttentionPath.AMX if tiles_permitted() else AttentionPath.VECTOR_BFLOAT16
    return AttentionPath.VECTOR_FLOAT32 if has_avx512() else AttentionPath.PLAIN


def runs_here(path: AttentionPath) -> bool:
    """Whether this processor can run a path. Only AMX needs its own instructions: vectors are split where too long."""
    return path is not AttentionPath.AMX or tiles_permitted()


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    metadata: AttentionMetadata,
    *,
    scale: float,
    layout: KVLayout,
    sliding_window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a batch's queries over the paged cache: decode, chunked prefill and mixtures in one call.

    q, out: [num_tokens, num_heads, head_dim], float32 or bfloat16 as the cache, last dimension contiguous.
    kv_cache: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], contiguous; num_heads is a multiple of
    num_kv_heads, block_size and head_dim (at most 256) are multiples of 16. Query i of a sequence with n queries and
    seq_len tokens stands at position seq_len - n + i and sees positions up to its own, with `sliding_window` only the
    last that many. Sums are float32. The result of a row depends to the bit on its sequence alone: not on the rest
    of the batch, the chunk it comes in, or the number of threads. Raises `ValueError` for arguments that do not fit.
    """
    return attend(best_path(kv_cache.dtype, layout), q, kv_cache, layer, metadata, scale, layout, sliding_window, out)


def attend(
    path: AttentionPath,
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    metadata: AttentionMetadata,
    scale: float,
    layout: KVLayout,
    sliding_window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """`paged_attention` by a given path."""
    out = torch.empty(q.shape, dtype=q.dtype) if out is None else out
    _check(q, kv_cache, layer, metadata, sliding_window, out)
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if layout is KVLayout.AMX_PACKED and kv_cache.dtype != torch.bfloat16:
        raise ValueError("the packed layout holds bfloat16 only")
    plan, threads = _plan(metadata, q.shape[1], kv_cache.shape, sliding_window or 0)
    if plan.num_units == 0:
        return out
    room = partials(plan, (kv_cache.shape[5] + STATE_TAIL) * 4)
    launch = array("q", _launch(q, kv_cache, layer, metadata, scale, sliding_window or 0, plan, room, out))
    plan.counters[0] = 0
    if threads == 1:
        run_worker(_WORKERS[path](), launch.buffer_info()[0])
    else:
        run_workers(_WORKERS[path](), launch.buffer_info()[0], threads)
    return out


@functools.cache
def _scale_bits(scale: float) -> int:
    """The bits of scale * log2(e) as a float32."""
    return int(np.float32(scale * _LOG2_E).view(np.int32))


def _launch(  # its arguments are what one call consists of
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    metadata: AttentionMetadata,
    scale: float,
    window: int,
    plan: Plan,
    room: torch.Tensor,
    out: torch.Tensor,
) -> Launch:
    size = kv_cache.element_size()
    block_stride, layer_stride, value_offset, head_stride, _, _ = kv_cache.stride()
    _, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    q_token_stride, q_head_stride, _ = q.stride()
    out_token_stride, out_head_stride, _ = out.stride()
    return Launch(
        q=q.data_ptr(),
        q_token_stride=q_token_stride * size,
        q_head_stride=q_head_stride * size,
        out=out.data_ptr(),
        out_token_stride=out_token_stride * size,
        out_head_stride=out_head_stride * size,
        cache=kv_cache.data_ptr() + layer * layer_stride * size,
        block_stride=block_stride * size,
        value_offset=value_offset * size,
        head_stride=head_stride * size,
        block_size=block_size,
        block_tables=metadata.block_tables.data_ptr(),
        table_width=metadata.block_tables.shape[1],
        seq_lens=metadata.seq_lens.data_ptr(),
        cu_seqlens_q=metadata.cu_seqlens_q.data_ptr(),
        group=q.shape[1] // num_kv_heads,
        head_dim=head_dim,
        window=window,
        units=plan.units_address,
        num_units=plan.num_units,
        counters=plan.counters_address,
        partials=room.data_ptr(),
        is_bfloat16=int(size == 2),
        scale_bits=_scale_bits(scale),
    )


def _plan(metadata: AttentionMetadata, num_heads: int, cache_shape: torch.Size, window: int) -> tuple[Plan, int]:
    num_blocks, _, _, num_kv_heads, block_size, _ = cache_shape
    key = (num_heads, num_kv_heads, window, block_size, num_blocks)
    found = metadata.plans.get(key)
    if found is None:
        threads = numba.get_num_threads()
        shape = Shape(num_kv_heads, num_heads // num_kv_heads, window, block_size, num_blocks, threads)
        plan = build_plan(metadata, shape)
        found = metadata.plans[key] = (plan, min(threads, plan.num_units))
    return found


def _check(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    metadata: AttentionMetadata,
    sliding_window: int | None,
    out: torch.Tensor,
) -> None:
    _, num_layers, two, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_tokens, num_heads, q_dim = q.shape
    fits: dict[str, Any] = {
        "kv_cache must be float32 or bfloat16, on the CPU and contiguous": kv_cache.dtype
        in (torch.float32, torch.bfloat16)
        and kv_cache.is_cpu
        and kv_cache.is_contiguous(),
        "kv_cache must be [num_blocks, num_layers, 2, num_kv_heads, 16 * n, 16 * m], m <= 16": two == 2
        and block_size % 16 == 0
        and head_dim % 16 == 0
        and head_dim <= _MAX_HEAD_DIM,
        "q must have the cache's dtype and head_dim, last dimension contiguous": q.dtype == kv_cache.dtype
        and q_dim == head_dim
        and q.stride(2) == 1
        and q.is_cpu,
        "q's heads must be a multiple of the cache's": num_heads % num_kv_heads == 0,
        "out must be like q": out.shape == q.shape and out.dtype == q.dtype and out.stride(2) == 1 and out.is_cpu,
        "layer must be one of the cache's": 0 <= layer < num_layers,
        "sliding_window must be at least 1": sliding_window is None or sliding_window >= 1,
        "q must have as many rows as the batch has query tokens": num_tokens == metadata.num_query_tokens,
    }
    for rule, holds in fits.items():
        if not holds:
            raise ValueError(rule)
