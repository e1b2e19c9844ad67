"""One token per row of a batch: the most likely, or a draw."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from numba_kernels import Kernels
from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.truncation import draw, draw_truncated, select_rows

# From logits, float32 [S, vocab] after bias and penalties, overwritten: tokens int64 [S], and the same with -1 for each
# row whose best logit is not finite, and whose token is any.
TokenChoice = Callable[[torch.Tensor, SamplingBatch], tuple[torch.Tensor, torch.Tensor]]


@runtime_checkable
class SamplingKernels(Protocol):
    """A device that samples by a kernel of its own (numba_kernels/cuda/sampling.py)."""

    @property
    def sample(self) -> Callable[..., Any]:
        """Tokens and finiteness of each row of logits."""


def token_choice(kernels: Kernels) -> TokenChoice:
    """How tokens are chosen on this device."""
    return partial(choose_by_kernel, kernels) if isinstance(kernels, SamplingKernels) else choose_tokens


def choose_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's `TokenChoice`."""
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if not bool(finite.all()):
        return tokens, tokens.where(finite, -1)
    if len(batch.drawn_rows):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch)
    return tokens, tokens


def choose_by_kernel(
    kernels: SamplingKernels, logits: torch.Tensor, batch: SamplingBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """A GPU's `TokenChoice`, one kernel, for logits in `empty_logits` memory. Random numbers and top_p are float32."""
    rows = batch.rows
    sampled = kernels.sample(
        logits,
        temperature=rows.temperature,
        top_k=rows.top_k,
        top_p=rows.top_p,
        log_min_p=rows.log_min_p,
        uniform=batch.row_uniforms(),
    )
    return sampled.token_ids, sampled.token_ids.where(sampled.is_finite != 0, -1)


def _draw_rows(logits: torch.Tensor, best: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Tokens of batch.drawn_rows; overwrites logits."""
    uniform, params = batch.uniforms(), batch.truncation
    tokens = torch.empty_like(batch.drawn_rows)
    if len(batch.cut):
        rows = batch.drawn_rows[batch.cut]
        cut = params.rows(batch.cut)
        tokens[batch.cut] = draw_truncated(select_rows(logits, rows), best[rows], cut, uniform[batch.cut])
    if len(batch.plain):
        rows = batch.drawn_rows[batch.plain]
        temperature = params.temperature[batch.plain]
        tokens[batch.plain] = draw(select_rows(logits, rows), best[rows], temperature, uniform[batch.plain])
    return tokens
