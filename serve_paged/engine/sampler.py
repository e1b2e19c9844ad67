"""Chooses each sequence's next token from the model's logits, for a whole batch at once."""

from dataclasses import dataclass

import torch

from serve_paged.core.outputs import TokenLogprobs
from serve_paged.core.sequence import Sequence
from serve_paged.engine.logprobs import NonFiniteLogits, token_logprobs
from serve_paged.engine.sampling_batch import SamplingBatch
from serve_paged.engine.truncation import draw, draw_truncated, select_rows


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A sequence's next token, with log probabilities where the request asked for them."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class Sampler:
    """Samples in the order of OpenAI's API and vLLM.

    Log probabilities from the untouched logits; logit_bias; min_tokens (end-of-sequence and stop tokens are out of
    reach until then, under ignore_eos too); repetition, frequency and presence penalties; then the largest logit
    (the lowest id among equals) or temperature, top_k, top_p, min_p and a draw. The random number depends on the
    sequence's seed, its choice and the position alone, so a text does not depend on its batch and can be resumed.
    """

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...]) -> None:
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._batch: SamplingBatch | None = None

    @torch.inference_mode()
    def sample(self, logits: torch.Tensor, seqs: list[Sequence]) -> list[SampledToken]:
        """Choose the next token of seqs[i] from logits[i]; logits float32 [S, vocab] are overwritten.

        Raises `NonFiniteLogits`, a fault of the engine, naming the requests.
        """
        assert logits.shape == (len(seqs), self._vocab_size)
        assert logits.dtype == torch.float32
        if not seqs:
            return []
        batch = self._batch_of(seqs, logits.device)
        raw = logits[batch.logprob_rows] if batch.logprob_rows else None  # a copy: `apply` works in place
        batch.apply(logits)
        best, tokens = logits.max(dim=-1)
        if not bool(torch.isfinite(best).all()):
            raise _fault(best, seqs)
        if len(batch.drawn_rows):
            tokens[batch.drawn_rows] = _draw_rows(logits, best, batch)
        token_ids = tokens.tolist()
        logprobs: dict[int, TokenLogprobs] = {}
        if raw is not None:
            chosen = [token_ids[row] for row in batch.logprob_rows]
            num_top = [seqs[row].params.logprobs or 0 for row in batch.logprob_rows]
            logprobs = dict(zip(batch.logprob_rows, token_logprobs(raw, chosen, num_top), strict=True))
        return [SampledToken(token_id, logprobs.get(row)) for row, token_id in enumerate(token_ids)]

    def _batch_of(self, seqs: list[Sequence], device: torch.device) -> SamplingBatch:
        batch = self._batch
        if batch is None or batch.seqs != seqs:
            batch = SamplingBatch(
                seqs,
                vocab_size=self._vocab_size,
                eos_token_ids=self._eos_token_ids,
                device=device,
                previous=self._batch,
            )
            self._batch = batch
        return batch


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


def _fault(best: torch.Tensor, seqs: list[Sequence]) -> NonFiniteLogits:
    bad = sorted({seqs[row].request_id for row in (~torch.isfinite(best)).nonzero()[:, 0].tolist()})
    return NonFiniteLogits(f"logits are NaN or infinite, or no token is left, for request {', '.join(bad)}")
