"""What the sampler knows of the sequences of one step, as tensors. Made anew only when the batch changes.

What a GPU needs of it goes there through pinned memory, and the host does not wait.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.device import to_device
from serve_paged.engine.penalties import Penalties
from serve_paged.engine.philox import seed_words, uniforms
from serve_paged.engine.truncation import Truncation

_SMALLEST_FLOAT = torch.finfo(torch.float32).tiny  # as a temperature it equals greedy but for ties
_LARGEST_BELOW_ONE = np.float32(1.0 - 2.0**-24)


@dataclass(frozen=True, slots=True)
class _Entries:
    """Single elements of a [S, vocab] tensor."""

    rows: torch.Tensor
    ids: torch.Tensor


@dataclass(frozen=True, slots=True)
class RowParameters:
    """What the sampling kernel takes of each row, [S] on the device."""

    temperature: torch.Tensor  # float32; 0: the largest logit
    top_k: torch.Tensor  # int32; 0: all
    top_p: torch.Tensor  # float32 in (0, 1]
    log_min_p: torch.Tensor  # float32; -inf: none


class SamplingBatch:
    """Per-row parameters of the sequences `seqs`, in their order."""

    def __init__(
        self,
        seqs: list[Sequence],
        *,
        vocab_size: int,
        eos_token_ids: tuple[int, ...],
        device: torch.device,
        previous: "SamplingBatch | None",
    ) -> None:
        self.seqs = list(seqs)
        self._device = device
        self._vocab_size = vocab_size
        self._eos_token_ids = eos_token_ids
        self._bias = [(row, seq) for row, seq in enumerate(seqs) if seq.params.logit_bias]
        self._bias_entries = self._entries((row, seq.params.logit_bias) for row, seq in self._bias)
        biases = [value for _, seq in self._bias for value in seq.params.logit_bias.values()]
        self._bias_values = to_device(torch.tensor(biases, dtype=torch.float32), device)
        self._no_chance = torch.full((), -torch.inf, device=device)
        self._with_minimum = [(row, seq) for row, seq in enumerate(seqs) if seq.params.min_tokens]
        self.penalties: Penalties = Penalties(seqs, previous.penalties if previous is not None else None)
        self.logprob_rows = self._ints(row for row, seq in enumerate(seqs) if seq.params.logprobs is not None)
        drawn = [row for row, seq in enumerate(seqs) if not seq.params.greedy]
        params = [seqs[row].params for row in drawn]
        cut = [_truncates(p, vocab_size) for p in params]
        self.drawn_rows = self._ints(drawn)  # [D] rows of the batch that are not greedy
        self.plain = self._ints(i for i, is_cut in enumerate(cut) if not is_cut)  # of those: the whole vocabulary
        self.cut = self._ints(i for i, is_cut in enumerate(cut) if is_cut)  # and the others
        self.truncation = _truncation(params, vocab_size, device)
        self._key = seed_words([seqs[row].seed for row in drawn])
        self._choices = [seqs[row].choice for row in drawn]
        self._drawn = [seqs[row] for row in drawn]
        self._drawn_indices = drawn

    def apply(self, logits: torch.Tensor) -> None:
        """Apply logit_bias, min_tokens and penalties in place; logits float32 [S, vocab]."""
        if self._bias:
            logits[self._bias_entries.rows, self._bias_entries.ids] += self._bias_values
        banned = self._entries(
            (row, {*self._eos_token_ids, *seq.params.stop_token_ids})
            for row, seq in self._with_minimum
            if seq.num_output_tokens < seq.params.min_tokens
        )
        if len(banned.rows):
            logits.index_put_((banned.rows, banned.ids), self._no_chance)
        if self.penalties:
            self.penalties.apply(logits)

    def uniforms(self) -> torch.Tensor:
        """This step's random number of each drawn row, float64 [D] in [0, 1)."""
        return to_device(torch.from_numpy(self._numbers()), self._device)

    @cached_property
    def rows(self) -> RowParameters:
        """The parameters of every row, greedy ones too, as float32."""
        params = [seq.params for seq in self.seqs]
        temperature = [0.0 if p.greedy else max(p.temperature, _SMALLEST_FLOAT) for p in params]
        with np.errstate(divide="ignore"):
            log_min_p = np.log(np.array([p.min_p for p in params], dtype=np.float64)).astype(np.float32)
        return RowParameters(
            temperature=self._floats(temperature),
            top_k=to_device(torch.tensor([_top_k(p, self._vocab_size) for p in params]).int(), self._device),
            top_p=self._floats([max(p.top_p, _SMALLEST_FLOAT) for p in params]),
            log_min_p=to_device(torch.from_numpy(log_min_p), self._device),
        )

    def row_uniforms(self) -> torch.Tensor:
        """This step's random number of every row, float32 [S], below 1 when rounded; 0 for greedy ones."""
        numbers = np.zeros(len(self.seqs), dtype=np.float32)
        numbers[self._drawn_indices] = np.minimum(self._numbers(), _LARGEST_BELOW_ONE)
        return to_device(torch.from_numpy(numbers), self._device)

    def _numbers(self) -> NDArray[np.float64]:
        return uniforms(self._key, self._choices, [seq.num_output_tokens for seq in self._drawn])

    def _floats(self, values: list[float]) -> torch.Tensor:
        return to_device(torch.tensor(values, dtype=torch.float32), self._device)

    def _entries(self, found: Iterable[tuple[int, Iterable[int]]]) -> _Entries:
        pairs = [(row, token_id) for row, ids in found for token_id in ids]
        rows_ids = to_device(torch.tensor(pairs, dtype=torch.int64).view(-1, 2), self._device)
        return _Entries(rows_ids[:, 0], rows_ids[:, 1])

    def _ints(self, values: Iterable[int]) -> torch.Tensor:
        return to_device(torch.tensor(list(values), dtype=torch.int64), self._device)


def _top_k(params: SamplingParams, vocab_size: int) -> int:
    return params.top_k if 0 < params.top_k < vocab_size else 0


def _truncates(params: SamplingParams, vocab_size: int) -> bool:
    return 0 < params.top_k < vocab_size or params.top_p < 1.0 or params.min_p > 0.0


def _truncation(params: list[SamplingParams], vocab_size: int, device: torch.device) -> Truncation:
    temperature = torch.tensor([p.temperature for p in params], dtype=torch.float32)
    top_k = [min(p.top_k, vocab_size) if p.top_k > 0 else vocab_size for p in params]
    min_p = np.array([p.min_p for p in params], dtype=np.float64)
    with np.errstate(divide="ignore"):  # 0 becomes -inf: no cut
        log_min_p = torch.from_numpy(np.log(min_p).astype(np.float32))
    return Truncation(
        temperature=to_device(temperature.clamp(min=_SMALLEST_FLOAT), device),
        top_k=to_device(torch.tensor(top_k, dtype=torch.int64), device),
        top_p=to_device(torch.tensor([p.top_p for p in params], dtype=torch.float64), device),
        log_min_p=to_device(log_min_p, device),
    )
