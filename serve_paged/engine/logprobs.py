"""Log probabilities of tokens under the model's own distribution: before temperature, penalties and truncation."""

from collections.abc import Sequence

import torch

from numba_kernels import Kernels
from numba_kernels.kernels import Download
from serve_paged.core.outputs import TokenLogprobs
from serve_paged.engine.device import runs_behind

# On a GPU. Ordering the alternatives takes seven times the memory of the logits: 0.9 GB for so many rows of Llama 3's
# vocabulary, where a step of 4,096 prompt tokens at once would take 15 GB.
CHUNK_ROWS = 256


class NonFiniteLogits(RuntimeError):
    """The model produced NaN or infinite logits: a fault of the engine, not of the request."""


class LogprobsCopy:
    """`token_logprobs` of token_ids int64 [rows] on the logits' device, without waiting for it.

    On a GPU it is computed there and copied to the host, and the logits are let go of; alternatives come in order of
    logit, then id. On the CPU it is computed when read, so `logits` must stay as they are until then.
    """

    def __init__(self, logits: torch.Tensor, token_ids: torch.Tensor, num_top: Sequence[int], kernels: Kernels) -> None:
        self._num_top = num_top
        self._given: tuple[torch.Tensor, torch.Tensor] | None = None
        self._copies: list[Download] = []
        if runs_behind(kernels):
            self._copies = [kernels.download(tensor) for tensor in _launch(logits, token_ids, max(num_top))]
        else:
            self._given = logits, token_ids

    @torch.inference_mode()
    def read(self) -> list[TokenLogprobs]:
        """One for each row. Raises `NonFiniteLogits`."""
        if self._given is None:
            return _read([copy.wait() for copy in self._copies], self._num_top)
        logits, token_ids = self._given
        return token_logprobs(logits, token_ids.tolist(), self._num_top)


def _launch(logits: torch.Tensor, token_ids: torch.Tensor, k: int) -> list[torch.Tensor]:
    """Token ids, their log probabilities and ranks [rows]; ids and log probabilities of the k best [rows, k]; and
    whether all that is finite [rows]. The host needs no result of any operation to launch the next one.
    """
    chunks = zip(logits.split(CHUNK_ROWS), token_ids.split(CHUNK_ROWS), strict=True)
    return [torch.cat(found) for found in zip(*(_launch_chunk(*chunk, k) for chunk in chunks), strict=True)]


def _launch_chunk(logits: torch.Tensor, token_ids: torch.Tensor, k: int) -> tuple[torch.Tensor, ...]:
    normalizer = torch.logsumexp(logits, dim=-1, keepdim=True)
    values = logits.gather(1, token_ids[:, None])
    ranks = (logits > values).sum(dim=-1) + 1
    top_ids = _best_ids(logits, min(k, logits.shape[1]))
    top = logits.gather(1, top_ids) - normalizer
    return token_ids, (values - normalizer)[:, 0], ranks, top_ids, top, torch.isfinite(normalizer)[:, 0]


def _best_ids(logits: torch.Tensor, k: int) -> torch.Tensor:
    """Ids int64 [rows, k] of the k largest, in order of value, then id, as `topk` does not promise."""
    bits = (logits + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)  # as the floats are
    reversed_ids = torch.arange(logits.shape[1] - 1, -1, -1, device=logits.device)
    keys = (ordered << 32) | reversed_ids
    return logits.shape[1] - 1 - (keys.topk(k, dim=-1).values & 0xFFFFFFFF)


def _read(found: Sequence[torch.Tensor], num_top: Sequence[int]) -> list[TokenLogprobs]:
    *columns, finite = found
    if not bool(finite.all()):
        raise _fault()
    return [
        TokenLogprobs(token_id, logprob, rank, tuple(zip(ids[:count], values[:count], strict=True)))
        for token_id, logprob, rank, ids, values, count in zip(
            *(column.tolist() for column in columns), num_top, strict=True
        )
    ]


def _fault() -> NonFiniteLogits:
    return NonFiniteLogits("logits hold NaN or infinity where log probabilities were asked for")


def prompt_logprobs(logits: torch.Tensor, next_token_ids: Sequence[int], k: int) -> list[TokenLogprobs]:
    """Say how likely each prompt token was at its place.

    logits: float32 [num_prompt_rows, vocab], row i predicts next_token_ids[i]; k: alternatives per token.
    """
    return token_logprobs(logits, next_token_ids, [k] * len(next_token_ids))


def token_logprobs(logits: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]) -> list[TokenLogprobs]:
    """Log probability, rank and the num_top[i] best alternatives of token_ids[i] under logits[i].

    logits: float32 [rows, vocab], left as it is. Rank counts the strictly more likely tokens, so that the first of
    several equals has rank 1; equal alternatives come in order of id. Raises `NonFiniteLogits`.
    """
    if not token_ids:
        return []
    normalizer = torch.logsumexp(logits, dim=-1)  # [rows]
    if not bool(torch.isfinite(normalizer).all()):
        raise _fault()
    chosen = torch.tensor(token_ids, dtype=torch.int64, device=logits.device)[:, None]
    values = logits.gather(1, chosen)  # [rows, 1]
    ranks = ((logits > values).sum(dim=-1) + 1).tolist()
    logprobs = (values[:, 0] - normalizer).tolist()
    tops = _top(logits, normalizer, num_top)
    return [
        TokenLogprobs(token_id, logprob, rank, top)
        for token_id, logprob, rank, top in zip(token_ids, logprobs, ranks, tops, strict=True)
    ]


def _top(logits: torch.Tensor, normalizer: torch.Tensor, num_top: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    k = min(max(num_top), logits.shape[1])
    if k == 0:
        return [()] * len(num_top)
    # topk promises no order among equals, and bfloat16 logits are full of them: take all that reach the k-th value.
    kth_values = logits.topk(k, dim=-1).values[:, -1:]
    rows, ids = (logits >= kth_values).nonzero(as_tuple=True)  # ids ascend within a row
    logprobs = logits[rows, ids] - normalizer[rows]
    found: list[list[tuple[int, float]]] = [[] for _ in num_top]
    for row, token_id, logprob in zip(rows.tolist(), ids.tolist(), logprobs.tolist(), strict=True):
        found[row].append((token_id, logprob))
    return [
        tuple(sorted(pairs, key=lambda pair: -pair[1])[:count]) for pairs, count in zip(found, num_top, strict=True)
    ]
