"""What operations ask of their arguments before kernels get to see addresses."""

import torch
from torch import Tensor

from numba_kernels.cuda.launcher import Launcher
from numba_kernels.kv_scales import KVScales, require_unscaled
from numba_kernels.layout import KVLayout

ELEMENTS = {torch.bfloat16: "bf16", torch.float16: "f16"}
KV_ELEMENTS = dict.fromkeys(ELEMENTS, "") | {torch.float8_e4m3fn: "e4m3"}  # of a cache, "": as what it is written from
E4M3_COMPUTE_CAPABILITY = (8, 9)  # converts them in one instruction
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


def dtype_beside(kv_cache: Tensor, name: str, x: Tensor) -> torch.dtype:
    """What queries, keys and values have to be: as the cache; beside one of 8-bit numbers as x, which is one of them.

    Raises ValueError where kernels do not take x beside 8-bit numbers.
    """
    if KV_ELEMENTS[kv_cache.dtype]:
        require_element(name, x)
        return x.dtype
    return kv_cache.dtype


def require_cache(kv_cache: Tensor, layer: int, layout: KVLayout, kv_scales: KVScales, launcher: Launcher) -> None:
    """Raises ValueError unless kernels can use this layer of this cache."""
    shape, device = kv_cache.shape, launcher.device
    if len(shape) != 6 or shape[2] != 2:
        raise ValueError(f"kv_cache must have 6 dimensions, K and V in the third: got {describe(kv_cache)}")
    _require_cache_dtype(kv_cache.dtype, kv_scales, launcher.properties.compute_capability)
    if not kv_cache.is_contiguous() or kv_cache.device != device or kv_cache.data_ptr() % _LANE_BYTES:
        raise ValueError(f"kv_cache must be contiguous on {device}: got {describe(kv_cache)}")
    if shape[4] == 0 or shape[4] % 16:
        raise ValueError(f"kv_cache's block_size must be a multiple of 16, not {shape[4]}")
    if layout is not KVLayout.STANDARD:
        raise ValueError(f"layout must be standard, not {layout}")
    if not 0 <= layer < shape[1]:
        raise ValueError(f"layer must be in [0, {shape[1]}), not {layer}")


def _require_cache_dtype(dtype: torch.dtype, kv_scales: KVScales, capability: tuple[int, int]) -> None:
    if dtype not in KV_ELEMENTS:
        raise ValueError(f"kv_cache must be bfloat16, float16 or float8_e4m3fn, not {dtype}")
    if not KV_ELEMENTS[dtype]:
        require_unscaled(kv_scales, dtype)
    elif capability < E4M3_COMPUTE_CAPABILITY:
        raise ValueError(
            "a cache of {} takes a GPU of compute capability {}.{}, not {}.{}".format(
                dtype, *E4M3_COMPUTE_CAPABILITY, *capability
            )
        )


def describe(x: Tensor) -> str:
    """For messages."""
    return f"{x.dtype} {tuple(x.shape)} on {x.device} with strides {x.stride()}"
