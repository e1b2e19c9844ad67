"""`paged_attention` on a CUDA device: checks, the choice of kernels, their launches."""

import math
from dataclasses import dataclass

from torch import Tensor

from numba_kernels.cuda.cache_layer import cache_layer
from numba_kernels.cuda.checks import ELEMENTS, KV_ELEMENTS, describe, dtype_beside, require_cache, require_rows
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
from numba_kernels.kv_scales import UNSCALED, KVScales
from numba_kernels.layout import KVLayout
from numba_kernels.metadata import AttentionMetadata

_LOG2_E = math.log2(math.e)


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
    kv_scales: KVScales = UNSCALED,
) -> Tensor:
    """As `numba_kernels.paged_attention`, for bfloat16 and float16, head_dim 64, 96, 128 or 256, groups of 1 to 16
    heads, the standard layout, and metadata made by the same device's `attention_metadata`. The cache may also be
    float8_e4m3fn, with scales, on a GPU of compute capability 8.9. Raises ValueError for anything else. `out`, where
    given, is contiguous.
    """
    if not isinstance(metadata, CudaMetadata):
        raise ValueError("metadata was not made by this device's attention_metadata")
    require_cache(kv_cache, layer, layout, kv_scales, launcher)
    _require_fitting(launcher, q, kv_cache, metadata, scale, sliding_window)
    if out is None:
        out = launcher.empty(tuple(q.shape), q.dtype)
    elif out.shape != q.shape or out.dtype != q.dtype or out.device != q.device or not out.is_contiguous():
        raise ValueError(f"out must be like q and contiguous: got {describe(out)}")
    cache = AttendedCache(kv_cache, layer, scale * kv_scales.k * _LOG2_E, kv_scales.v, sliding_window)
    if metadata.prefill is not None:
        attend_prefill(launcher, q, cache, metadata, metadata.prefill, out)
    decode = metadata.decode
    if decode is not None and isinstance(decode.rows, slice):
        attend_decode(launcher, q[decode.rows], cache, decode, out[decode.rows])
    elif decode is not None:
        attended = launcher.empty((decode.num_seqs, *q.shape[1:]), q.dtype)
        attend_decode(launcher, q[decode.rows], cache, decode, attended)
        out[decode.rows] = attended
    return out


@dataclass(frozen=True, slots=True)
class AttendedCache:
    """What is attended to, and how."""

    kv_cache: Tensor
    layer: int
    scale: float  # of the exponents to base 2 of what q and the cache's numbers multiply to
    v_scale: float  # what V's numbers are to be multiplied by
    window: int | None

    @property
    def kv_element(self) -> str:
        """As variants name it."""
        return KV_ELEMENTS[self.kv_cache.dtype]

    @property
    def num_kv_heads(self) -> int:
        return self.kv_cache.shape[3]

    @property
    def block_size(self) -> int:
        return self.kv_cache.shape[4]


def attend_decode(launcher: Launcher, q: Tensor, cache: AttendedCache, decode: DecodeRows, out: Tensor) -> None:
    """Attention of one query per sequence: q and out [num_seqs, num_heads, head_dim], out contiguous."""
    num_seqs, num_heads, head_dim = q.shape
    num_kv_heads, group_size = cache.num_kv_heads, num_heads // cache.num_kv_heads
    variant = DecodeVariant(head_dim, ELEMENTS[q.dtype], cache.block_size, group_size > HEADS, cache.kv_element)
    splits = decode.splits_of(cache.window)
    partials = splits.partials_of(num_heads, head_dim)
    at, tables = cache_layer(cache.kv_cache, cache.layer), decode.block_tables
    num_work = splits.work_begin.data_ptr() + 4 * num_seqs
    results = (partials.out.data_ptr(), partials.lse.data_ptr(), out.data_ptr())
    launcher.launch(
        decode_kernel(variant),
        Index3(grid_blocks(variant, splits.max_work, num_kv_heads, launcher.properties.num_sms), num_kv_heads),
        NUM_THREADS,
        (
            *(q.data_ptr(), at.k, at.v, tables.data_ptr(), splits.work.data_ptr(), num_work, *results),
            *(at.block_stride, at.token_stride, at.head_stride, 4 * tables.stride(0)),
            *(2 * q.stride(0), 2 * q.stride(1), group_size, cache.scale, cache.v_scale),
        ),
        (q, cache.kv_cache, tables, splits.work, splits.work_begin, partials.out, partials.lse, out),
    )
    launcher.launch(
        merge_splits_kernel(head_dim, variant.element),
        Index3(num_seqs, num_heads),
        head_dim // 2,
        (splits.work_begin.data_ptr(), *results[:2], results[2]),
        (splits.work_begin, partials.out, partials.lse, out),
    )


def attend_prefill(
    launcher: Launcher, q: Tensor, cache: AttendedCache, metadata: CudaMetadata, prefill: PrefillRows, out: Tensor
) -> None:
    """Attention of the sequences with several queries: their rows of out, contiguous; the others stay as they are."""
    num_heads, head_dim = q.shape[1:]
    num_kv_heads, group_size = cache.num_kv_heads, num_heads // cache.num_kv_heads
    variant = PrefillVariant(head_dim, ELEMENTS[q.dtype], cache.block_size, kv_element=cache.kv_element)
    work = prefill.work_of(variant, group_size, cache.window)
    at, tables = cache_layer(cache.kv_cache, cache.layer), metadata.block_tables
    inputs = (tables, metadata.cu_seqlens_q, metadata.seq_lens, work, out)
    launcher.launch(
        prefill_kernel(variant),
        Index3(num_kv_heads, work.shape[0]),
        variant.num_threads,
        (
            *(q.data_ptr(), at.k, at.v, *(x.data_ptr() for x in inputs)),
            *(at.block_stride, at.head_stride, 4 * tables.stride(0), 2 * q.stride(0), 2 * q.stride(1)),
            *(NO_WINDOW if cache.window is None else cache.window, group_size, cache.scale, cache.v_scale),
        ),
        (q, cache.kv_cache, *inputs),
    )


def _require_fitting(
    launcher: Launcher, q: Tensor, kv_cache: Tensor, metadata: CudaMetadata, scale: float, window: int | None
) -> None:
    num_blocks, _, _, num_kv_heads, block_size, head_dim = kv_cache.shape
    if q.dim() != 3:
        raise ValueError(f"q must be [num_tokens, num_heads, head_dim]: got {describe(q)}")
    num_heads = q.shape[1]
    shape = (metadata.num_query_tokens, num_heads, head_dim)
    require_rows("q", q, shape, dtype_beside(kv_cache, "q", q), launcher.device)
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
