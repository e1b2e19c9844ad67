"""One token per row of a batch: the most likely, or a draw."""

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch

from numba_kernels import Kernels
from serve_paged.engine.device import runs_behind
from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.truncation import Truncation, draw, draw_truncated, draw_truncated_at_once, select_rows

DrawTruncated = Callable[[torch.Tensor, torch.Tensor, Truncation, torch.Tensor], torch.Tensor]

# From logits, float32 [S, vocab] after bias and penalties, overwritten: tokens int64 [S], and the same with -1 for each
# row whose best logit is not finite, and whose token is any.
TokenChoice = Callable[[torch.Tensor, SamplingBatch], tuple[torch.Tensor, torch.Tensor]]


@runtime_checkable
class SamplingKernels(Protocol):
    """A device that samples by a kernel of its own (numba_kernels/cuda/sampling.py)."""

    @property
    def sample(self) -> Callable[..., Any]:
        """Tokens and finiteness of each row of logits."""


def token_choice(kernels: Kernels, vocab_size: int) -> TokenChoice:
    """How tokens are chosen on this device. The kernel wants rows at multiples of 16 bytes: 4 logits."""
    if not runs_behind(kernels):
        return choose_tokens
    if isinstance(kernels, SamplingKernels) and vocab_size % 4 == 0:
        return partial(choose_by_kernel, kernels)
    return choose_without_looking


def choose_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """The CPU's `TokenChoice`."""
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if not bool(finite.all()):
        return tokens, tokens.where(finite, -1)
    if len(batch.drawn_rows):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch, draw_truncated)
    return tokens, tokens


def choose_without_looking(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """A GPU's `TokenChoice` by torch: what is launched depends on the parameters alone, never on a result."""
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if len(batch.drawn_rows):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch, draw_truncated_at_once)
    checked = tokens.where(finite, -1)
    return checked.clamp(min=0), checked  # what is drawn from NaN may lie outside the vocabulary


def choose_by_kernel(
    kernels: SamplingKernels, logits: torch.Tensor, batch: SamplingBatch
) -> tuple[torch.Tensor, torch.Tensor]:
    """A GPU's `TokenChoice` by one kernel. Its random numbers and its top_p are float32."""
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


def _draw_rows(logits: torch.Tensor, best: torch.Tensor, batch: SamplingBatch, draw_cut: DrawTruncated) -> torch.Tensor:
    """Tokens of batch.drawn_rows; overwrites logits."""
    uniform, params = batch.uniforms(), batch.truncation
    tokens = torch.empty_like(batch.drawn_rows)
    if len(batch.cut):
        rows = batch.drawn_rows[batch.cut]
        cut = params.rows(batch.cut)
        tokens[batch.cut] = draw_cut(select_rows(logits, rows), best[rows], cut, uniform[batch.cut])
    if len(batch.plain):
        rows = batch.drawn_rows[batch.plain]
        temperature = params.temperature[batch.plain]
        tokens[batch.plain] = draw(select_rows(logits, rows), best[rows], temperature, uniform[batch.plain])
    return tokens
