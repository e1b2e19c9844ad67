"""Draws one token per row from logits cut by top_k, top_p and min_p.

Each of the three keeps the tokens above some value, so a row's cut is one threshold; equal logits are kept or dropped
together, which makes the kept set independent of any sort order. The draw inverts the cumulative distribution in
order of token id. A row's token depends on that row and its random number alone.
"""

from dataclasses import dataclass

import numpy as np
import torch

_NUM_CANDIDATES = (64, 1024)  # a short top-k answers nearly every row; a full sort of the vocabulary is the last resort
_BLOCK = 256  # tokens per first-level sum when the whole vocabulary is drawn from


@dataclass(frozen=True, slots=True)
class Truncation:
    """Parameters of R rows, each tensor [R] on the logits' device."""

    temperature: torch.Tensor  # float32, above 0
    top_k: torch.Tensor  # int64; the vocabulary's size means all
    top_p: torch.Tensor  # float64 in (0, 1]
    log_min_p: torch.Tensor  # float32; -inf means none

    def rows(self, index: torch.Tensor) -> "Truncation":
        """Those of the rows in index [n]."""
        return Truncation(self.temperature[index], self.top_k[index], self.top_p[index], self.log_min_p[index])


def draw(logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw from softmax(logits / temperature).

    logits: float32 [R, vocab], overwritten; best: their maxima [R]; temperature: float32 [R]; uniform: float64 [R].
    Returns int64 [R].
    """
    return _draw_from_weights(logits.sub_(best[:, None]).div_(temperature[:, None]).exp_(), uniform)


def draw_truncated(logits: torch.Tensor, best: torch.Tensor, params: Truncation, uniform: torch.Tensor) -> torch.Tensor:
    """Draw from the distribution that is left after temperature, then top_k, then top_p, then min_p.

    logits: float32 [R, vocab]; best: their maxima [R]; uniform: float64 [R]. Returns int64 [R].
    """
    vocab_size = logits.shape[1]
    mass = _mass_before_top_p(logits, best, params)
    tokens = torch.empty(logits.shape[0], dtype=torch.int64, device=logits.device)
    pending = torch.arange(logits.shape[0], device=logits.device)
    for num_candidates in _NUM_CANDIDATES:
        if num_candidates >= vocab_size or not len(pending):
            break
        cut = params.rows(pending)
        values, ids = select_rows(logits, pending).topk(num_candidates, dim=-1)
        values = _scaled(values, best[pending], cut)
        threshold = _threshold(values, cut, mass[pending])
        # Strictly above the last candidate: no equal is left outside.
        covered = (threshold > values[:, -1]) & ((cut.top_k <= num_candidates) | (cut.top_k >= vocab_size))
        drawn = _draw_from_candidates(values, ids, threshold, uniform[pending])
        tokens[pending[covered]] = drawn[covered]
        pending = pending[~covered]
    if len(pending):
        cut = params.rows(pending)
        scaled = _scaled(logits[pending], best[pending], cut)
        tokens[pending] = _draw_sorted(scaled, cut, mass[pending], uniform[pending])
    return tokens


def _draw_sorted(scaled: torch.Tensor, params: Truncation, mass: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    threshold = _threshold(_sorted_descending(scaled), params, mass)
    weights = scaled.exp().masked_fill_(scaled < threshold[:, None], 0.0)
    return _draw_from_weights(weights, uniform)


def select_rows(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Rows of logits, `rows` ascending without repeats: logits itself, not a copy, if these are all."""
    return logits if len(rows) == logits.shape[0] else logits[rows]


def _sorted_descending(values: torch.Tensor) -> torch.Tensor:
    # NumPy's vector sort takes a third of the time of torch's.
    return torch.from_numpy(np.negative(np.sort(np.negative(values.numpy()), axis=-1)))


def _scaled(logits: torch.Tensor, best: torch.Tensor, params: Truncation) -> torch.Tensor:
    return (logits - best[:, None]).div_(params.temperature[:, None])


def _mass_before_top_p(logits: torch.Tensor, best: torch.Tensor, params: Truncation) -> torch.Tensor:
    """Sum of the scaled logits' exp over the vocabulary where top_p has no top_k before it, else infinity. [R]."""
    mass = torch.full_like(params.top_p, torch.inf)
    rows = ((params.top_p < 1.0) & (params.top_k >= logits.shape[1])).nonzero()[:, 0]
    if len(rows):
        scaled = _scaled(select_rows(logits, rows), best[rows], params.rows(rows))
        mass[rows] = scaled.exp_().sum(dim=-1, dtype=torch.float64)
    return mass


def _threshold(values: torch.Tensor, params: Truncation, mass: torch.Tensor) -> torch.Tensor:
    """The smallest scaled logit that is kept, [R]; values [R, K] are each row's largest, best first."""
    num_values = values.shape[1]
    kth = (params.top_k - 1).clamp(max=num_values - 1)
    top_k_threshold = values.gather(1, kth[:, None])
    weights = values.exp().to(torch.float64)
    cumulative = weights.cumsum(dim=-1)
    num_top_k = (values >= top_k_threshold).sum(dim=-1, keepdim=True)
    mass = torch.where(mass.isinf(), cumulative.gather(1, num_top_k - 1)[:, 0], mass)
    # The nucleus: tokens before which less than top_p of the mass lies. The first one always belongs.
    before = torch.nn.functional.pad(cumulative[:, :-1], (1, 0))
    nucleus = (before < (params.top_p * mass)[:, None]).sum(dim=-1, keepdim=True)
    top_p_threshold = values.gather(1, nucleus - 1)[:, 0].masked_fill(params.top_p >= 1.0, -torch.inf)
    top_k_threshold = top_k_threshold[:, 0].masked_fill(params.top_k > num_values, -torch.inf)
    return torch.maximum(torch.maximum(top_k_threshold, top_p_threshold), params.log_min_p)


def _draw_from_candidates(
    values: torch.Tensor, ids: torch.Tensor, threshold: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    ids, order = ids.sort(dim=-1)
    values = values.gather(1, order)
    weights = values.exp().masked_fill_(values < threshold[:, None], 0.0)
    cumulative = weights.cumsum(dim=-1, dtype=torch.float64)
    index = _first_above(cumulative, uniform * cumulative[:, -1])
    return ids.gather(1, index[:, None])[:, 0]


def _draw_from_weights(weights: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """Draw in proportion to weights float32 [R, vocab]: first a block of tokens by its sum, then within the block."""
    padding = -weights.shape[1] % _BLOCK
    if padding:
        weights = torch.nn.functional.pad(weights, (0, padding))
    blocks = weights.unflatten(1, (-1, _BLOCK))  # [R, num_blocks, _BLOCK]
    sums = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)  # [R, num_blocks]
    target = uniform * sums[:, -1]
    block = _first_above(sums, target)
    before = torch.nn.functional.pad(sums, (1, 0)).gather(1, block[:, None])[:, 0]
    rows = torch.arange(len(block), device=block.device)
    within = blocks[rows, block].cumsum(dim=-1, dtype=torch.float64)  # [R, _BLOCK]
    return block * _BLOCK + _first_above(within, target - before)


def _first_above(cumulative: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Index [R] of the first entry of cumulative [R, n] above target [R]; never one whose own weight is 0."""
    index = torch.searchsorted(cumulative, target[:, None], right=True)
    last = torch.searchsorted(
        cumulative, cumulative[:, -1:].contiguous()
    )  # target may reach the total: other order of sums
    return torch.minimum(index, last)[:, 0]
