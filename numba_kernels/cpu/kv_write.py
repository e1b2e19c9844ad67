"""Writing keys and values into their slots of the paged cache, with or without rotary embedding on the way.

Knows both layouts (`numba_kernels.layout`). A slot of -1 writes nothing; any other slot outside the cache, or a
position outside the rotary table, raises before anything is written.
"""

import functools
from typing import Any

import torch
from numba import prange
from torch import Tensor

from numba_kernels.cpu.jit import device, f32_ptr, float_ptr, i64_ptr, kernel, pair_ptr, stack_bytes, word_ptr
from numba_kernels.cpu.scalar import load, store
from numba_kernels.cpu.simd import vfma, vload, vload_bf16, vmul, vstore, vstore_bf16, vsub
from numba_kernels.kv_scales import UNSCALED, KVScales, require_unscaled
from numba_kernels.layout import KVLayout

# Below this many elements (of q, k and v) one core is done before a second one has woken up.
_PARALLEL_FROM = 65_536


@device
def _put_row(source: Any, target: Any, offset: int, head_dim: int) -> None:
    """Standard layout: token `offset` of a block's [block_size, head_dim]."""
    base = offset * head_dim
    for i in range(head_dim):
        target[base + i] = source[i]


@device
def _put_packed_key(pairs: Any, target: Any, offset: int, head_dim: int) -> None:
    """Packed layout: the pairs of token `offset` of [block_size/16, head_dim/2, 16] pairs."""
    group = offset // 16
    base = group * (8 * head_dim) + offset - group * 16
    for i in range(head_dim // 2):
        target[base + i * 16] = pairs[i]


@device
def _put_packed_value(source: Any, target: Any, offset: int, head_dim: int) -> None:
    """Packed layout: token `offset` of [block_size/2, head_dim, 2]. Writes only its own half of each pair."""
    pair = offset // 2
    base = pair * (2 * head_dim) + offset - pair * 2
    for i in range(head_dim):
        target[base + 2 * i] = source[i]


@device
def _rotate(x: Any, out: Any, cos: Any, sin: Any, half: int) -> None:
    """Rotate (x[i], x[i + half]) by the angle of i; `out` may be `x`."""
    for i in range(half):
        first, second = load(x, i), load(x, i + half)
        store(out, i, first * cos[i] - second * sin[i])
        store(out, i + half, second * cos[i] + first * sin[i])


@device
def _rotate_16(x: int, out: int, cosines: Any, sines: Any, half_bytes: int, is_bfloat: bool) -> None:
    """The same for 16 angles held in registers; x, out: addresses of the first element."""
    first = vload_bf16(x) if is_bfloat else vload(x)
    second = vload_bf16(x + half_bytes) if is_bfloat else vload(x + half_bytes)
    low = vsub(vmul(first, cosines), vmul(second, sines))
    high = vfma(second, cosines, vmul(first, sines))
    if is_bfloat:
        vstore_bf16(out, low)
        vstore_bf16(out + half_bytes, high)
    else:
        vstore(out, low)
        vstore(out + half_bytes, high)


@device
def _rotate_heads(x: int, x_head: int, out: int, out_head: int, heads: int, cos: int, sin: int, half: int, size: int) -> None:  # fmt: skip # noqa: E501
    """`_rotate` for every head of a token, 16 angles at a time; strides between heads in bytes; half % 16 == 0."""
    for i in range(0, half, 16):
        cosines, sines = vload(cos + i * 4), vload(sin + i * 4)
        for head in range(heads):
            begin = i * size
            _rotate_16(x + head * x_head + begin, out + head * out_head + begin, cosines, sines, half * size, size == 2)


@device
def _all_within(numbers: Any, count: int, low: int, limit: int) -> bool:
    outside = 0
    for i in range(count):
        outside += (numbers[i] < low) | (numbers[i] >= limit)
    return outside == 0


@functools.cache
def _write_kv_kernel(head_dim: int, is_bfloat: bool, is_packed: bool, parallel: bool) -> Any:
    size = 2 if is_bfloat else 4

    @kernel(parallel=parallel)
    def write_kv_rows(k, k_stride, k_head, v, v_stride, v_head, cache, block_stride, to_values, heads, block_size, slots, num_tokens, num_slots):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
        if not _all_within(i64_ptr(slots), num_tokens, -1, num_slots):
            return False
        for token in prange(num_tokens):
            slot = i64_ptr(slots)[token]
            block = slot // block_size
            offset = slot - block * block_size
            for head in range(heads if slot >= 0 else 0):
                key = k + (token * k_stride + head * k_head) * size
                value = word_ptr(v + (token * v_stride + head * v_head) * size, is_bfloat)
                place = cache + (block * block_stride + head * block_size * head_dim) * size
                value_place = word_ptr(place + to_values * size, is_bfloat)
                if is_packed:
                    _put_packed_key(pair_ptr(key, is_bfloat), pair_ptr(place, is_bfloat), offset, head_dim)
                    _put_packed_value(value, value_place, offset, head_dim)
                else:
                    _put_row(word_ptr(key, is_bfloat), word_ptr(place, is_bfloat), offset, head_dim)
                    _put_row(value, value_place, offset, head_dim)
        return True

    return write_kv_rows


def write_kv(k: Tensor, v: Tensor, kv_cache: Tensor, layer: int, slot_mapping: Tensor, *, layout: KVLayout) -> None:
    """Store each token's key and value of one layer at its slot.

    k, v: [num_tokens, num_kv_heads, head_dim], last dimension contiguous, dtype of the cache.
    kv_cache: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim], contiguous, float32 or bfloat16.
    slot_mapping: int64 [num_tokens], block * block_size + offset, or -1 to write nothing. No two alike.
    Raises ValueError for wrong shapes, TypeError for wrong dtypes, IndexError for a slot outside the cache.
    """
    num_tokens, heads, head_dim = k.shape
    cache = _cache_arguments(kv_cache, layer, heads, head_dim, layout)
    (k_stride, k_head, k_last), (v_stride, v_head, v_last) = k.stride(), v.stride()
    if k_last != 1 or v_last != 1 or v.shape != k.shape or k.dtype is not kv_cache.dtype or v.dtype is not k.dtype:
        raise ValueError(f"write_kv takes no k {_describe(k)} with v {_describe(v)} for a cache {_describe(kv_cache)}")
    _require_indices("slot_mapping", slot_mapping, num_tokens)
    parallel = num_tokens * heads * head_dim * 2 >= _PARALLEL_FROM
    is_packed = layout == KVLayout.AMX_PACKED
    run = _write_kv_kernel(head_dim, k.dtype is torch.bfloat16, is_packed, parallel)
    sources = (k.data_ptr(), k_stride, k_head, v.data_ptr(), v_stride, v_head)
    if not run(*sources, *cache[:-1], slot_mapping.data_ptr(), num_tokens, cache[-1]):
        raise IndexError(f"slot_mapping has slots outside [-1, {cache[-1]}): {slot_mapping.tolist()}")


@functools.cache
def _rope_and_write_kv_kernel(head_dim: int, is_bfloat: bool, is_packed: bool, parallel: bool) -> Any:
    size, half = 2 if is_bfloat else 4, head_dim // 2
    row_bytes, by_16 = head_dim * size, half % 16 == 0

    @kernel(parallel=parallel)
    def rope_and_write_kv_rows(q, q_stride, q_head, q_heads, k, k_stride, k_head, v, v_stride, v_head, cache, block_stride, to_values, heads, block_size, slots, num_tokens, num_slots, cos, sin, positions, num_positions):  # type: ignore[no-untyped-def]  # fmt: skip # noqa: E501
        if not _all_within(i64_ptr(slots), num_tokens, -1, num_slots):
            return 1
        if not _all_within(i64_ptr(positions), num_tokens, 0, num_positions):
            return 2
        for token in prange(num_tokens):
            angle = i64_ptr(positions)[token] * (half * 4)
            query = q + token * q_stride * size
            if by_16:
                _rotate_heads(query, q_head * size, query, q_head * size, q_heads, cos + angle, sin + angle, half, size)
            else:
                for head in range(q_heads):
                    here = float_ptr(query + head * q_head * size, is_bfloat)
                    _rotate(here, here, f32_ptr(cos + angle), f32_ptr(sin + angle), half)
            slot = i64_ptr(slots)[token]
            block = slot // block_size
            offset = slot - block * block_size
            for head in range(heads if slot >= 0 else 0):
                key = k + (token * k_stride + head * k_head) * size
                value = word_ptr(v + (token * v_stride + head * v_head) * size, is_bfloat)
                place = cache + (block * block_stride + head * block_size * head_dim) * size
                value_place = word_ptr(place + to_values * size, is_bfloat)
                rotated = stack_bytes(row_bytes) if is_packed else place + offset * row_bytes
                if by_16:
                    _rotate_heads(key, 0, rotated, 0, 1, cos + angle, sin + angle, half, size)
                else:
                    target = float_ptr(rotated, is_bfloat)
                    _rotate(float_ptr(key, is_bfloat), target, f32_ptr(cos + angle), f32_ptr(sin + angle), half)
                if is_packed:
                    _put_packed_key(pair_ptr(rotated, is_bfloat), pair_ptr(place, is_bfloat), offset, head_dim)
                    _put_packed_value(value, value_place, offset, head_dim)
                else:
                    _put_row(value, value_place, offset, head_dim)
        return 0

    return rope_and_write_kv_rows


def rope_and_write_kv(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, kv_cache: Tensor, layer: int, slot_mapping: Tensor, *, layout: KVLayout, kv_scales: KVScales = UNSCALED) -> None:  # fmt: skip # noqa: E501
    """Rotary embedding on q in place and on k, then k and v into the cache at their slots; k and v stay as they are.

    q: [num_tokens, num_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim]: views with a contiguous last
    dimension and the cache's dtype. cos, sin: float32 [max_positions, head_dim / 2], contiguous. positions: int64
    [num_tokens]. kv_cache, layer, slot_mapping, layout: as in `write_kv`.
    Convention of Llama and NeoX: element i of the first half turns with element i of the second. Rotated in float32
    and rounded once (transformers rounds cos, sin and both products to bfloat16 first, so it is less exact).
    Raises as `write_kv` does; IndexError also for a position outside the table, ValueError for `kv_scales` not 1.
    """
    if kv_scales is not UNSCALED:
        require_unscaled(kv_scales, kv_cache.dtype)
    num_tokens, heads, head_dim = k.shape
    cache = _cache_arguments(kv_cache, layer, heads, head_dim, layout)
    (q_stride, q_head, q_last), (k_stride, k_head, k_last) = q.stride(), k.stride()
    v_stride, v_head, v_last = v.stride()
    q_shape, dtype, table_shape = q.shape, kv_cache.dtype, cos.shape
    if (
        (q_last != 1 or k_last != 1 or v_last != 1)
        or (q.dtype is not dtype or k.dtype is not dtype or v.dtype is not dtype)
        or (q_shape[0] != num_tokens or q_shape[2] != head_dim or v.shape != k.shape or head_dim % 2)
    ):
        raise ValueError(
            f"rope_and_write_kv takes no q {_describe(q)}, k {_describe(k)}, v {_describe(v)} "
            f"for a cache {_describe(kv_cache)}"
        )
    if table_shape[1] * 2 != head_dim or sin.shape != table_shape or not (cos.is_contiguous() and sin.is_contiguous()):
        raise ValueError(f"rope_and_write_kv takes no cos {_describe(cos)}, sin {_describe(sin)}, head_dim {head_dim}")
    if cos.dtype is not torch.float32 or sin.dtype is not torch.float32:
        raise TypeError(f"cos and sin must be float32, got {cos.dtype} and {sin.dtype}")
    _require_indices("slot_mapping", slot_mapping, num_tokens)
    _require_indices("positions", positions, num_tokens)
    q_heads = q_shape[1]
    parallel = num_tokens * (q_heads + 2 * heads) * head_dim >= _PARALLEL_FROM
    run = _rope_and_write_kv_kernel(head_dim, dtype is torch.bfloat16, layout == KVLayout.AMX_PACKED, parallel)
    sources = (q.data_ptr(), q_stride, q_head, q_heads, k.data_ptr(), k_stride, k_head, v.data_ptr(), v_stride, v_head)
    slots = (slot_mapping.data_ptr(), num_tokens, cache[-1])
    outcome = run(*sources, *cache[:-1], *slots, cos.data_ptr(), sin.data_ptr(), positions.data_ptr(), table_shape[0])
    if outcome == 1:
        raise IndexError(f"slot_mapping has slots outside [-1, {cache[-1]}): {slot_mapping.tolist()}")
    if outcome == 2:
        raise IndexError(f"positions outside [0, {table_shape[0]}): {positions.tolist()}")


def _cache_arguments(kv_cache: Tensor, layer: int, heads: int, head_dim: int, layout: KVLayout) -> tuple[int, ...]:
    """(address of the layer in block 0, elements per block, elements from K to V, heads, block_size, slots)."""
    num_blocks, num_layers, _, cache_heads, block_size, cache_dim = kv_cache.shape
    if cache_heads != heads or cache_dim != head_dim or not 0 <= layer < num_layers or not kv_cache.is_contiguous():
        raise ValueError(f"no layer {layer} of {heads} heads of {head_dim} in a cache {_describe(kv_cache)}")
    if kv_cache.dtype is not torch.bfloat16 and kv_cache.dtype is not torch.float32:
        raise TypeError(f"the cache must be float32 or bfloat16, not {kv_cache.dtype}")
    if block_size % 16 and layout == KVLayout.AMX_PACKED:
        raise ValueError(f"the packed layout needs a block_size that is a multiple of 16, not {block_size}")
    plane = heads * block_size * head_dim
    address = kv_cache.data_ptr() + layer * 2 * plane * kv_cache.element_size()
    return address, num_layers * 2 * plane, plane, heads, block_size, num_blocks * block_size


def _require_indices(name: str, indices: Tensor, count: int) -> None:
    if indices.dtype is not torch.int64 or indices.shape != (count,) or not indices.is_contiguous():
        raise ValueError(f"{name} must be int64 [{count}] and contiguous, got {_describe(indices)}")


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} with strides {x.stride()}"
