"""Runs one step's forward pass over the paged KV cache."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from serve_paged.core.sampling_params import MAX_LOGPROBS
from serve_paged.core.schedule_output import SchedulerOutput
from serve_paged.engine.batch import build_batch
from serve_paged.engine.device import empty_logits, runs_behind, to_device
from serve_paged.engine.kv_cache import KVCache
from serve_paged.engine.logprobs import LogprobsCopy
from serve_paged.model.decoder import Decoder


@dataclass(frozen=True, slots=True)
class StepLogits:
    """Logits of one step, float32 [num_logits, vocab_size] on the device, and which rows belong to whom.

    They are the runner's: whoever samples may write into them, and the next `run` may overwrite them.
    """

    logits: Tensor
    sample_rows: dict[int, int]  # index into output.scheduled -> row of the logits its next token comes from
    prompt_rows: dict[int, tuple[int, int]]  # the same -> rows [start, stop) that its prompt logprobs come from

    def to_sample(self, scheduled_indices: list[int]) -> Tensor:
        """The logits that these scheduled sequences' next tokens are drawn from, one row each."""
        rows = [self.sample_rows[i] for i in scheduled_indices]
        if rows == list(range(self.logits.shape[0])):
            return self.logits  # the usual case: every row is sampled from once, so no copy
        device = self.logits.device
        index = to_device(torch.tensor(rows, dtype=torch.int64), device)
        return torch.index_select(self.logits, 0, index, out=empty_logits(len(rows), self.logits.shape[1], device))

    def of_prompt(self, scheduled_index: int) -> Tensor | None:
        """The logits that predict the prompt tokens after the first of this chunk, if they were asked for."""
        rows = self.prompt_rows.get(scheduled_index)
        return None if rows is None else self.logits[rows[0] : rows[1]]


class ModelRunner(Protocol):
    """What the engine asks for: on a GPU nothing here waits for it, and results are good for what is launched later."""

    def run(self, output: SchedulerOutput, samples: Tensor | None = None) -> StepLogits:
        """Compute the scheduled tokens, write their K and V, return the logits that somebody needs.

        `samples`, int64 on the device: what the step before sampled, for sequences with a `pending_sample`.
        """


class EagerRunner:
    """A `ModelRunner` that launches each operation by itself. References only: the decoder's weights, the cache."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache) -> None:
        self._decoder = decoder
        self._kv_cache = kv_cache

    @torch.inference_mode()
    def run(self, output: SchedulerOutput, samples: Tensor | None = None) -> StepLogits:
        """As in `ModelRunner`."""
        batch = build_batch(output, self._kv_cache.block_size, self._decoder.kernels, samples)
        hidden = self._decoder.forward(
            batch.input_ids,
            batch.positions,
            self._kv_cache.blocks,
            batch.metadata,
            self._kv_cache.layout,
            self._kv_cache.scales,
        )
        if batch.logits_rows != list(range(hidden.shape[0])):  # in decode every token needs its logits: no gather then
            hidden = hidden[to_device(torch.tensor(batch.logits_rows, dtype=torch.int64), hidden.device)]
        return StepLogits(self._logits(hidden), batch.sample_rows, batch.prompt_rows)

    @torch.inference_mode()
    def warm_up(self, *shapes: tuple[int, int]) -> None:
        """Load or compile kernels by running padded batches, (sequences, tokens of each), that write nothing."""
        for num_seqs, tokens_per_seq in shapes:
            self._logits(self._run_padding(num_seqs, tokens_per_seq)[:num_seqs])

    @torch.inference_mode()
    def run_largest(self, num_seqs: int, tokens_per_seq: int) -> None:
        """A step that takes as much memory as any of this size: with the log probabilities of all its tokens."""
        logits = self._logits(self._run_padding(num_seqs, tokens_per_seq))
        ids = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device)
        LogprobsCopy(logits, ids, [MAX_LOGPROBS] * logits.shape[0], self._decoder.kernels)

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of hidden states [num_rows, hidden_size]; on a GPU where its kernels can read them."""
        decoder = self._decoder
        if not runs_behind(decoder.kernels):
            return decoder.logits(hidden)
        return decoder.logits(hidden, out=empty_logits(hidden.shape[0], decoder.config.vocab_size, hidden.device))

    def _run_padding(self, num_seqs: int, tokens_per_seq: int) -> Tensor:
        """A step of sequences in the null block, which writes nothing; the hidden states of all its tokens."""
        kernels, num_tokens = self._decoder.kernels, num_seqs * tokens_per_seq
        metadata = kernels.attention_metadata(
            torch.zeros((num_seqs, -(-tokens_per_seq // self._kv_cache.block_size)), dtype=torch.int32),
            torch.full((num_tokens,), -1, dtype=torch.int64),
            torch.arange(0, num_tokens + 1, tokens_per_seq, dtype=torch.int32),
            torch.full((num_seqs,), tokens_per_seq, dtype=torch.int32),
        )
        ids = torch.zeros(num_tokens, dtype=torch.int64, device=kernels.device)
        positions = torch.arange(tokens_per_seq, dtype=torch.int64, device=kernels.device).repeat(num_seqs)
        cache = self._kv_cache
        return self._decoder.forward(ids, positions, cache.blocks, metadata, cache.layout, cache.scales)
