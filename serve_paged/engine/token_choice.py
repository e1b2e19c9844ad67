"""One token per row of a batch: the most likely, or a draw."""

from collections.abc import Callable

import torch

from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.truncation import Truncation, draw, draw_truncated, draw_truncated_at_once, select_rows

DrawTruncated = Callable[[torch.Tensor, torch.Tensor, Truncation, torch.Tensor], torch.Tensor]


def choose_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [S]; and the same with -1 for each row whose best logit is not finite, and whose token is any.

    logits: float32 [S, vocab] after bias and penalties, overwritten.
    """
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if not bool(finite.all()):
        return tokens, tokens.where(finite, -1)
    if len(batch.drawn_rows):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch, draw_truncated)
    return tokens, tokens


def choose_without_looking(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """`choose_tokens` for a GPU: which operations are launched depends on the parameters alone, never on a result."""
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if len(batch.drawn_rows):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch, draw_truncated_at_once)
    checked = tokens.where(finite, -1)
    return checked.clamp(min=0), checked  # what is drawn from NaN may lie outside the vocabulary


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
