"""`paged_attention` on the CPU: checks the arguments, picks the path for this processor, launches it."""

import functools
from array import array
from collections.abc import Callable
from enum import StrEnum

import numba
import numpy as np
import torch

from numba_kernels.cpu.amx import tiles_permitted
from numba_kernels.cpu.attention_amx import attend_amx, attend_amx_emulated
from numba_kernels.cpu.attention_plain import attend_plain
from numba_kernels.cpu.attention_plan import Shape, build_plan
from numba_kernels.cpu.attention_unit import NUM_CALL_FIELDS, STATE_TAIL, Launch
from numba_kernels.cpu.attention_vector import attend_vector_bfloat16, attend_vector_float32
from numba_kernels.cpu.workers import run_worker, run_workers
from numba_kernels.kv_scales import UNSCALED, KVScales, require_unscaled
from numba_kernels.layout import KVLayout, has_avx512
from numba_kernels.metadata import AttentionMetadata

_LOG2_E = 1.4426950408889634
_MAX_HEAD_DIM = 256
_PARALLEL_FROM = 12 * 64  # cost x head_dim: below about 15 µs of work one core is done before a second has woken up


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
    kv_scales: KVScales = UNSCALED,
) -> torch.Tensor:
    """Causal attention of a batch's queries over the paged cache: decode, chunked prefill and mixtures in one call.

    q, out: [num_tokens, num_heads, head_dim], float32 or bfloat16 as the cache, last dimension contiguous.
    kv_cache: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], contiguous; num_heads is a multiple of
    num_kv_heads, block_size and head_dim (at most 256) are multiples of 16. Query i of a sequence with n queries and
    seq_len tokens stands at position seq_len - n + i and sees positions up to its own, with `sliding_window` only the
    last that many. Sums are float32. The result of a row depends to the bit on its sequence alone: not on the rest
    of the batch, the chunk it comes in, or the number of threads. Raises `ValueError` for arguments that do not fit,
    `kv_scales` other than 1 among them.
    """
    if kv_scales is not UNSCALED:
        require_unscaled(kv_scales, kv_cache.dtype)
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
    out = torch.empty_like(q) if out is None else out
    key = (path, q.shape, kv_cache.shape, kv_cache.dtype, kv_cache.data_ptr(), scale, sliding_window)
    call = metadata.calls.get(key)
    if call is None:
        _check_cache(q, kv_cache, metadata, scale, layout, sliding_window)
        call = metadata.calls[key] = _Call(path, q, kv_cache, metadata, scale, sliding_window or 0)
    call.run(q, layer, out)
    return out


class _Call:
    """What all layers of one shape share in one step: the plan, and the launch record but for its first fields."""

    def __init__(
        self,
        path: AttentionPath,
        q: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        scale: float,
        window: int,
    ) -> None:
        num_blocks, self._num_layers, _, num_kv_heads, block_size, head_dim = kv_cache.shape
        threads = numba.get_num_threads()
        shape = Shape(num_kv_heads, q.shape[1] // num_kv_heads, window, block_size, num_blocks, threads)
        self._plan = build_plan(metadata, shape)
        self._threads = min(threads, len(self._plan.units))
        if self._plan.cost * head_dim < _PARALLEL_FROM:
            self._threads = 1
        self._room = torch.empty(self._plan.num_slots * (head_dim + STATE_TAIL), dtype=torch.float32)
        self._shape, self._dtype, self._size = q.shape, q.dtype, q.element_size()
        block_stride, layer_stride, value_offset, head_stride, _, _ = (n * self._size for n in kv_cache.stride())
        self._layer_bytes, self._cache = layer_stride, kv_cache.data_ptr()
        launch = Launch(
            **dict.fromkeys(Launch._fields[:NUM_CALL_FIELDS], 0),
            block_stride=block_stride,
            value_offset=value_offset,
            head_stride=head_stride,
            block_size=block_size,
            block_tables=metadata.block_tables.data_ptr(),
            table_width=metadata.block_tables.shape[1],
            seq_lens=metadata.seq_lens.data_ptr(),
            cu_seqlens_q=metadata.cu_seqlens_q.data_ptr(),
            group=shape.group,
            head_dim=head_dim,
            window=window,
            units=self._plan.units.ctypes.data,
            num_units=len(self._plan.units),
            counters=self._plan.counters.ctypes.data,
            partials=self._room.data_ptr(),
            is_bfloat16=int(self._size == 2),
            scale_bits=int(np.float32(scale * _LOG2_E).view(np.int32)),
        )
        self._record = array("q", launch)
        self._address, _ = self._record.buffer_info()
        self._worker = _WORKERS[path]()

    def run(self, q: torch.Tensor, layer: int, out: torch.Tensor) -> None:
        """Attend; raises `ValueError` if q, out or layer do not fit."""
        q_stride, out_stride, size, record = q.stride(), out.stride(), self._size, self._record
        if q.dtype != self._dtype or q_stride[2] != 1 or not q.is_cpu:
            raise ValueError("q must have the cache's dtype, last dimension contiguous, on the CPU")
        if out.shape != self._shape or out.dtype != self._dtype or out_stride[2] != 1 or not out.is_cpu:
            raise ValueError("out must be like q")
        if not 0 <= layer < self._num_layers:
            raise ValueError(f"layer must be in [0, {self._num_layers}), got {layer}")
        if self._threads == 0:
            return
        record[0], record[1], record[2] = q.data_ptr(), q_stride[0] * size, q_stride[1] * size
        record[3], record[4], record[5] = out.data_ptr(), out_stride[0] * size, out_stride[1] * size
        record[6] = self._cache + layer * self._layer_bytes
        self._plan.counters[0] = 0
        if self._threads == 1:
            run_worker(self._worker, self._address)
        else:
            run_workers(self._worker, self._address, self._threads)


def _check_cache(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    metadata: AttentionMetadata,
    scale: float,
    layout: KVLayout,
    window: int | None,
) -> None:
    dtype = kv_cache.dtype
    _, _, two, num_kv_heads, block_size, head_dim = kv_cache.shape
    num_tokens, num_heads, q_dim = q.shape
    blocks_fit = two == 2 and block_size % 16 == 0 and head_dim % 16 == 0 and head_dim <= _MAX_HEAD_DIM
    rules = {
        "kv_cache must be float32 or bfloat16": dtype in (torch.float32, torch.bfloat16),
        "kv_cache must be contiguous, on the CPU": kv_cache.is_contiguous() and kv_cache.is_cpu,
        "kv_cache must be [num_blocks, num_layers, 2, num_kv_heads, 16 * n, 16 * m], m <= 16": blocks_fit,
        "the packed layout holds bfloat16 only": layout is KVLayout.STANDARD or dtype == torch.bfloat16,
        "q must have the cache's dtype and head_dim": q.dtype == dtype and q_dim == head_dim,
        "q's heads must be a multiple of the cache's": num_heads % num_kv_heads == 0,
        "q must have as many rows as the batch has query tokens": num_tokens == metadata.num_query_tokens,
        "scale must be above 0": scale > 0,
        "sliding_window must be at least 1": window is None or window >= 1,
    }
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)
