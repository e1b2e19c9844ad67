"""One token per row of a batch: the most likely, or a draw."""

import torch

from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.truncation import draw, draw_truncated, draw_truncated_at_once, select_rows


def choose_tokens(logits: torch.Tensor, batch: SamplingBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens int64 [S], and whether each row's best logit is finite, bool [S]; a token means nothing where it is not.

    logits: float32 [S, vocab] after bias and penalties, overwritten. On a GPU the host waits for nothing.
    """
    best, tokens = logits.max(dim=-1)
    finite = torch.isfinite(best)
    if len(batch.drawn_rows) and (logits.is_cuda or bool(finite.all())):
        tokens[batch.drawn_rows] = _draw_rows(logits, best, batch)
    return tokens, finite


def _draw_rows(logits: torch.Tensor, best: torch.Tensor, batch: SamplingBatch) -> torch.Tensor:
    """Tokens of batch.drawn_rows; overwrites logits."""
    uniform, params = batch.uniforms(), batch.truncation
    tokens = torch.empty_like(batch.drawn_rows)
    if len(batch.cut):
        rows = batch.drawn_rows[batch.cut]
        cut = params.rows(batch.cut)
        draw_cut = draw_truncated_at_once if logits.is_cuda else draw_truncated
        tokens[batch.cut] = draw_cut(select_rows(logits, rows), best[rows], cut, uniform[batch.cut])
    if len(batch.plain):
        rows = batch.drawn_rows[batch.plain]
        temperature = params.temperature[batch.plain]
        tokens[batch.plain] = draw(select_rows(logits, rows), best[rows], temperature, uniform[batch.plain])
    return tokens
