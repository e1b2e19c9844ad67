"""Log probabilities of tokens under the model's own distribution: before temperature, penalties and truncation."""

from collections.abc import Sequence

import torch

from serve_paged.core.outputs import TokenLogprobs


class NonFiniteLogits(RuntimeError):
    """The model produced NaN or infinite logits: a fault of the engine, not of the request."""


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
        raise NonFiniteLogits("logits hold NaN or infinity where log probabilities were asked for")
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
