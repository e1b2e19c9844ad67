"""Repetition, presence and frequency penalties over the tokens that occurred, never over the whole vocabulary."""

from collections.abc import Sequence as Rows

import numpy as np
import torch
from numpy.typing import NDArray

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.device import to_device


def has_penalties(params: SamplingParams) -> bool:
    """Whether any penalty is in effect."""
    return params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0


class TokenCounts:
    """The distinct tokens of one sequence and how often each is in its output.

    Follows the sequence token by token; made anew from the sequence alone after a preemption or on another replica.
    Prompt tokens are kept only where the repetition penalty wants them, with a count of 0.
    """

    def __init__(self, seq: Sequence) -> None:
        self._seq = seq
        prompt = np.array(seq.prompt_token_ids if seq.params.repetition_penalty != 1.0 else [], dtype=np.int64)
        output = np.array(seq.output_token_ids, dtype=np.int64)
        ids, inverse = np.unique(np.concatenate((prompt, output)), return_inverse=True)
        counts = np.bincount(inverse[len(prompt) :], minlength=len(ids)).astype(np.float32)
        self._size = len(ids)
        self._ids, self._counts = np.append(ids, ids), np.append(counts, counts)  # room to grow
        self._index = dict(zip(ids.tolist(), range(len(ids)), strict=True))
        self._num_output_tokens = len(output)

    def follow(self) -> None:
        """Count the output tokens that came since the last call."""
        for token_id in self._seq.output_token_ids[self._num_output_tokens :]:
            index = self._index.setdefault(token_id, self._size)
            if index == self._size:
                self._grow()
                self._ids[index], self._counts[index] = token_id, 0.0
                self._size += 1
            self._counts[index] += 1.0
        self._num_output_tokens = self._seq.num_output_tokens

    def _grow(self) -> None:
        if self._size == len(self._ids):
            room = self._size + 256
            self._ids = np.append(self._ids, np.zeros(room, dtype=np.int64))
            self._counts = np.append(self._counts, np.zeros(room, dtype=np.float32))

    @property
    def ids(self) -> NDArray[np.int64]:
        """Distinct token ids, [n]."""
        return self._ids[: self._size]

    @property
    def counts(self) -> NDArray[np.float32]:
        """How often each is in the output, [n]."""
        return self._counts[: self._size]


class Penalties:
    """The penalties of one batch: which rows have them, and how strong."""

    def __init__(self, seqs: Rows[Sequence], previous: "Penalties | None") -> None:
        known: dict[Sequence, TokenCounts] = previous._counts if previous is not None else {}
        self._rows = np.array([row for row, seq in enumerate(seqs) if has_penalties(seq.params)], dtype=np.int64)
        penalised = [seqs[row] for row in self._rows]
        self._counts: dict[Sequence, TokenCounts] = {seq: known.get(seq) or TokenCounts(seq) for seq in penalised}
        self._strengths = np.array(
            [[s.params.repetition_penalty, s.params.frequency_penalty, s.params.presence_penalty] for s in penalised],
            dtype=np.float32,
        )

    def __bool__(self) -> bool:
        return bool(self._counts)

    def apply(self, logits: torch.Tensor) -> None:
        """Penalise in place; logits float32 [S, vocab] before the temperature.

        Repetition as in CTRL (Keskar et al. 2019) over prompt and output, then frequency and presence over the output.
        """
        found = list(self._counts.values())
        for counts in found:
            counts.follow()
        sizes = [len(counts.ids) for counts in found]
        arrays = (
            np.repeat(self._rows, sizes),
            np.concatenate([counts.ids for counts in found]),
            np.concatenate([counts.counts for counts in found]),
            np.repeat(self._strengths, sizes, axis=0),
        )
        rows, ids, num, strengths = (to_device(torch.from_numpy(array), logits.device) for array in arrays)
        repetition, frequency, presence = strengths.unbind(1)
        values = logits[rows, ids]
        values = torch.where(values > 0, values / repetition, values * repetition)
        logits[rows, ids] = values - frequency * num - presence * (num > 0)
