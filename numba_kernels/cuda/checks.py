"""What operations ask of their arguments before kernels get to see addresses."""

import torch
from torch import Tensor

from numba_kernels.layout import KVLayout

ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
_LANE_BYTES = 16  # what kernels load at once


def require_rows(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError unless x is that, its last dimension contiguous, every row at a multiple of 16 bytes."""
    *strides, last = x.stride()
    lane = _LANE_BYTES // x.element_size()
    aligned = last == 1 and x.data_ptr() % _LANE_BYTES == 0 and all(stride % lane == 0 for stride in strides)
    if x.shape != shape or x.dtype != dtype or x.device != device or not (aligned or x.numel() == 0):
        raise ValueError(
            f"{name} must be {dtype} {shape} on {device}, rows contiguous, at multiples of 16 bytes: got {describe(x)}"
        )


def require_indices(name: str, x: Tensor, count: int, device: torch.device) -> None:
    """Raises ValueError unless x is int64 [count], contiguous, there."""
    if x.dtype != torch.int64 or x.shape != (count,) or x.device != device or not x.is_contiguous():
        raise ValueError(f"{name} must be int64 ({count},) on {device}, contiguous: got {describe(x)}")


def require_element(name: str, x: Tensor) -> str:
    """The kernels' name of x's dtype. Raises ValueError for a dtype they do not take."""
    if x.dtype not in ELEMENTS:
        raise ValueError(f"{name} must be bfloat16 or float16, not {x.dtype}")
    return ELEMENTS[x.dtype]


def require_cache(kv_cache: Tensor, layer: int, layout: KVLayout, device: torch.device) -> None:
    """Raises ValueError unless kernels can use this layer of this cache."""
    shape = kv_cache.shape
    if len(shape) != 6 or shape[2] != 2:
        raise ValueError(f"kv_cache must have 6 dimensions, K and V in the third: got {describe(kv_cache)}")
    require_element("kv_cache", kv_cache)
    if not kv_cache.is_contiguous() or kv_cache.device != device or kv_cache.data_ptr() % _LANE_BYTES:
        raise ValueError(f"kv_cache must be contiguous on {device}: got {describe(kv_cache)}")
    if shape[4] == 0 or shape[4] % 16:
        raise ValueError(f"kv_cache's block_size must be a multiple of 16, not {shape[4]}")
    if layout is not KVLayout.STANDARD:
        raise ValueError(f"layout must be standard, not {layout}")
    if not 0 <= layer < shape[1]:
        raise ValueError(f"layer must be in [0, {shape[1]}), not {layer}")


def describe(x: Tensor) -> str:
    """For messages."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device} with strides {x.stride()}"
