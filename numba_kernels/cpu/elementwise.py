"""The elementwise steps between matrix products: RMS norm with residual add, and SiLU times up-projection.

float32 inside, results rounded to the tensors' dtype (float32 or bfloat16). Rows may be strided views whose last
dimension is contiguous, such as slices of a fused matrix product.
"""

import functools
from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from numba_kernels.cpu.jit import device, float_ptr, kernel
from numba_kernels.cpu.scalar import exp, load, rounded_to, store

# Below this many elements one core is done before a second one has woken up.
_PARALLEL_FROM = 65_536


@device
def _add_row(x: Any, residual: Any, width: int) -> None:
    for i in range(width):
        store(residual, i, load(residual, i) + load(x, i))


@device
def _norm_row(x: Any, weight: Any, out: Any, width: int, eps: float) -> None:
    total = np.float32(0.0)
    for i in range(width):
        value = load(x, i)
        total += value * value
    scale = np.float32(1.0) / np.sqrt(total / np.float32(width) + np.float32(eps))
    for i in range(width):
        store(out, i, load(weight, i) * rounded_to(out, load(x, i) * scale))


@functools.cache
def _rms_norm_kernel(is_bfloat: bool, has_residual: bool, parallel: bool) -> Any:
    size = 2 if is_bfloat else 4

    @kernel(parallel=parallel)
    def rms_norm_rows(x, outer_stride, inner, inner_stride, residual, residual_stride, weight, out, rows, width, eps):  # type: ignore[no-untyped-def]
        for row in prange(rows):
            outer = row // inner
            source = x + (outer * outer_stride + (row - outer * inner) * inner_stride) * size
            if has_residual:
                total = residual + row * residual_stride * size
                _add_row(float_ptr(source, is_bfloat), float_ptr(total, is_bfloat), width)
                source = total
            target = float_ptr(out + row * width * size, is_bfloat)
            _norm_row(float_ptr(source, is_bfloat), float_ptr(weight, is_bfloat), target, width, eps)

    return rms_norm_rows


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """Root-mean-square norm of each row, as transformers' LlamaRMSNorm does it; returns a new contiguous tensor.

    x: [num_tokens, width], or [num_tokens, num_heads, width] for a norm per head; float32 or bfloat16, last dimension
    contiguous. weight: [width], contiguous, same dtype. In float32: x / sqrt(mean(x**2) + eps), rounded to x's dtype,
    times weight, rounded again.
    residual: [num_tokens, width], same dtype. If given, `residual += x` in place first (rounded to its dtype), and the
    sum is what is normed. Raises ValueError or TypeError for what it cannot take.
    """
    shape, strides = x.shape, x.stride()
    width, is_bfloat = shape[-1], _is_bfloat(x)
    fits = weight.shape == shape[-1:] and weight.dtype is x.dtype and weight.is_contiguous()
    if not fits or strides[-1] != 1 or not 2 <= len(shape) <= 3:
        raise ValueError(f"rms_norm takes no x {_describe(x)} with weight {_describe(weight)}")
    inner, inner_stride = (1, 0) if len(shape) == 2 else (shape[1], strides[1])
    residual_address = residual_stride = 0
    if residual is not None:
        residual_address, residual_stride = residual.data_ptr(), residual.stride()[0]
        if residual.shape != shape or residual.dtype is not x.dtype or residual.stride()[-1] != 1 or inner_stride:
            raise ValueError(f"rms_norm takes no x {_describe(x)} with residual {_describe(residual)}")
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    rows = shape[0] * inner
    run = _rms_norm_kernel(is_bfloat, residual is not None, rows * width >= _PARALLEL_FROM)
    source = (x.data_ptr(), strides[0], inner, inner_stride, residual_address, residual_stride)
    run(*source, weight.data_ptr(), out.data_ptr(), rows, width, eps)
    return out


@device
def _silu_and_mul_row(gate: Any, up: Any, out: Any, width: int) -> None:
    for i in range(width):
        x = load(gate, i)
        store(out, i, x / (np.float32(1.0) + exp(-x)) * load(up, i))


@functools.cache
def _silu_and_mul_kernel(is_bfloat: bool, parallel: bool) -> Any:
    size = 2 if is_bfloat else 4

    @kernel(parallel=parallel)
    def silu_and_mul_rows(gate_up, stride, out, rows, width):  # type: ignore[no-untyped-def]
        for row in prange(rows):
            gate = gate_up + row * stride * size
            up = float_ptr(gate + width * size, is_bfloat)
            target = float_ptr(out + row * width * size, is_bfloat)
            _silu_and_mul_row(float_ptr(gate, is_bfloat), up, target, width)

    return silu_and_mul_rows


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate_up is [num_tokens, 2 * width] with gate first; returns [num_tokens, width].

    float32 or bfloat16, last dimension contiguous. Computed in float32 and rounded once. Raises ValueError or
    TypeError for what it cannot take.
    """
    shape, strides = gate_up.shape, gate_up.stride()
    if len(shape) != 2 or strides[1] != 1 or shape[1] % 2:
        raise ValueError(f"silu_and_mul takes no {_describe(gate_up)}")
    rows, width = shape[0], shape[1] // 2
    out = gate_up.new_empty((rows, width))
    run = _silu_and_mul_kernel(_is_bfloat(gate_up), rows * width >= _PARALLEL_FROM)
    run(gate_up.data_ptr(), strides[0], out.data_ptr(), rows, width)
    return out


def _is_bfloat(x: Tensor) -> bool:
    if x.dtype is torch.bfloat16:
        return True
    if x.dtype is torch.float32:
        return False
    raise TypeError(f"the CPU kernels compute in float32 and bfloat16, not {x.dtype}")


def _describe(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype} with strides {x.stride()}"
