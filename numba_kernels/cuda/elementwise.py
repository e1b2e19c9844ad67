"""RMS norm and SiLU on a CUDA device: checks and launches."""

from torch import Tensor

from numba_kernels.cuda import silu_and_mul as silu
from numba_kernels.cuda.checks import describe, require_element, require_rows
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.rms_norm import RmsNormVariant, rms_norm_kernel
from numba_kernels.cuda.target import Index3

_MAX_GROUPS = 65535  # a grid's y


def rms_norm(launcher: Launcher, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """As `numba_kernels.rms_norm`, for bfloat16 and float16 and widths that are multiples of 8, up to 16384.

    A norm of heads takes at most 65,535 tokens: they are the grid's second extent.
    """
    if not 2 <= x.dim() <= 3 or (residual is not None and x.dim() != 2):
        raise ValueError(f"rms_norm takes no x {describe(x)}{' with a residual' if residual is not None else ''}")
    if x.dim() == 3 and x.shape[0] > _MAX_GROUPS:
        raise ValueError(f"rms_norm takes at most {_MAX_GROUPS} tokens of several heads, not {x.shape[0]}")
    variant = RmsNormVariant(x.shape[-1], require_element("x", x), residual is not None)
    require_rows("x", x, tuple(x.shape), x.dtype, launcher.device)
    require_rows("weight", weight, (variant.width,), x.dtype, launcher.device)
    out = launcher.empty(tuple(x.shape), x.dtype)
    num_groups, rows = (1, x.shape[0]) if x.dim() == 2 else (x.shape[0], x.shape[1])
    group_stride, row_stride = 2 * x.stride(0), 2 * x.stride(-2)
    residual_address = residual_stride = 0
    touching: tuple[Tensor, ...] = (x, weight, out)
    if residual is not None:
        require_rows("residual", residual, tuple(x.shape), x.dtype, launcher.device)
        residual_address, residual_stride = residual.data_ptr(), 2 * residual.stride(0)
        touching = (*touching, residual)
    addresses = (x.data_ptr(), residual_address, weight.data_ptr(), out.data_ptr())
    launcher.launch(
        rms_norm_kernel(variant),
        Index3(-(-rows // variant.rows_per_block), num_groups),
        variant.num_threads,
        (*addresses, group_stride, row_stride, residual_stride, rows, eps),
        touching,
    )
    return out


def silu_and_mul(launcher: Launcher, gate_up: Tensor) -> Tensor:
    """As `numba_kernels.silu_and_mul`, for bfloat16 and float16 and widths that are multiples of 8."""
    if gate_up.dim() != 2 or gate_up.shape[1] % 16:
        raise ValueError(f"silu_and_mul takes no {describe(gate_up)}")
    element = require_element("gate_up", gate_up)
    require_rows("gate_up", gate_up, tuple(gate_up.shape), gate_up.dtype, launcher.device)
    num_tokens, width = gate_up.shape[0], gate_up.shape[1] // 2
    out = launcher.empty((num_tokens, width), gate_up.dtype)
    launcher.launch(
        silu.silu_and_mul_kernel(element),
        Index3(num_tokens, silu.num_chunks(width)),
        silu.NUM_THREADS,
        (gate_up.data_ptr(), out.data_ptr(), 2 * gate_up.stride(0), width),
        (gate_up, out),
    )
    return out
