"""What operations ask of their arguments before kernels get to see addresses."""

import torch
from torch import Tensor

from numba_kernels.layout import KVLayout

ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
_LANE_BYTES = 16  # what kernels load at once


def require(rules: dict[str, bool]) -> None:
    """Raises ValueError with the first rule that does not hold."""
    for rule, holds in rules.items():
        if not holds:
            raise ValueError(rule)


def require_rows(name: str, x: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    """Raises ValueError unless x is that, its last dimension contiguous, every row at a multiple of 16 bytes."""
    strides = x.stride()
    aligned = x.data_ptr() % _LANE_BYTES == 0 and all(n * x.element_size() % _LANE_BYTES == 0 for n in strides[:-1])
    if x.shape != shape or x.dtype != dtype or x.device != device or (x.numel() and (strides[-1] != 1 or not aligned)):
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
    shape = tuple(kv_cache.shape)
    require({f"kv_cache must have 6 dimensions, K and V in the third: got {shape}": len(shape) == 6 and shape[2] == 2})
    require_element("kv_cache", kv_cache)
    require(
        {
            f"kv_cache must be contiguous on {device}: got {describe(kv_cache)}": kv_cache.is_contiguous()
            and kv_cache.device == device
            and kv_cache.data_ptr() % _LANE_BYTES == 0,
            f"kv_cache's block_size must be a multiple of 16, not {shape[4]}": shape[4] > 0 and shape[4] % 16 == 0,
            f"layout must be standard, not {layout}": layout is KVLayout.STANDARD,
            f"layer must be in [0, {shape[1]}), not {layer}": 0 <= layer < shape[1],
        }
    )


def describe(x: Tensor) -> str:
    """For messages."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device} with strides {x.stride()}"
