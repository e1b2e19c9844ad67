"""The next tokens of a step, chosen on a CUDA device: checks and the launch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from numba_kernels.cuda.checks import describe, require_rows
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.sample import sample_kernel
from numba_kernels.cuda.sample_row import variant_for
from numba_kernels.cuda.target import Index3

_ELEMENTS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}
_PARAMETERS = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "log_min_p": torch.float32,
    "uniform": torch.float32,
}


@dataclass(frozen=True, slots=True)
class Sampled:
    """Of each row of logits, [num_rows], on the device."""

    token_ids: Tensor  # int64; of a row that is not finite some token of the vocabulary
    largest: Tensor  # float32: the row's largest logit
    is_finite: Tensor  # int32: 0 where that is NaN or infinite


def sample(
    launcher: Launcher,
    logits: Tensor,
    *,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    log_min_p: Tensor,
    uniform: Tensor,
) -> Sampled:
    """Draw a token from each row, from what temperature, then top_k, top_p and min_p leave of it. One launch.

    logits [num_rows, vocab_size], float32, bfloat16 or float16, not changed, rows at multiples of 16 bytes. Of each
    row, [num_rows], contiguous: temperature float32, 0 for the largest logit (the lowest id among equals); top_k int32,
    0 for all; top_p float32 in (0, 1]; log_min_p float32, the logarithm of min_p; uniform float32 in [0, 1), below 1
    after rounding too. A row's token depends on its row alone. Raises ValueError for what does not fit.
    """
    if logits.dim() != 2 or logits.dtype not in _ELEMENTS:
        raise ValueError(f"sample takes no logits {describe(logits)}")
    num_rows, vocab_size = logits.shape
    require_rows("logits", logits, (num_rows, vocab_size), logits.dtype, launcher.device)
    parameters = (temperature, top_k, top_p, log_min_p, uniform)
    for (name, dtype), x in zip(_PARAMETERS.items(), parameters, strict=True):
        if x.shape != (num_rows,) or x.dtype != dtype or x.device != launcher.device or not x.is_contiguous():
            raise ValueError(
                f"{name} must be {dtype} ({num_rows},) on {launcher.device}, contiguous: got {describe(x)}"
            )
    sampled = Sampled(*(launcher.empty((num_rows,), dtype) for dtype in (torch.int64, torch.float32, torch.int32)))
    results = (sampled.token_ids, sampled.largest, sampled.is_finite)
    variant = variant_for(_ELEMENTS[logits.dtype], vocab_size)
    launcher.launch(
        sample_kernel(variant),
        Index3(num_rows),
        variant.num_threads,
        (
            *(x.data_ptr() for x in (logits, *parameters, *results)),
            *(logits.stride(0) * logits.element_size(), vocab_size),
        ),
        (logits, *parameters, *results),
    )
    return sampled
