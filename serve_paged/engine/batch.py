"""From what the scheduler chose to the flat tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from numba_kernels import AttentionMetadata, Kernels
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput
from serve_paged.engine.device import to_device

# oneDNN adds up the products of a single row in another order than those of several. With two rows at least, one of
# them padding if need be, a token's numbers do not depend on how many others share its step. cuBLAS promises no such
# thing for any number of rows; there it changes nothing, as steps of one token run in graphs (cuda_runner.py).
MIN_ROWS = 2
_UNKNOWN = [0]  # stands for a token until the device puts in what it is


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tokens, all sequences one after another; then padding, which writes nothing and nobody reads.

    Tensors are on the device.
    """

    input_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    metadata: AttentionMetadata
    logits_rows: list[int]  # [num_logits]: the tokens whose logits are wanted
    sample_rows: dict[int, int]  # index into output.scheduled -> row of the logits its next token comes from
    prompt_rows: dict[int, tuple[int, int]]  # the same -> rows [start, stop) that its prompt logprobs come from


def build_batch(output: SchedulerOutput, block_size: int, kernels: Kernels, samples: Tensor | None = None) -> Batch:
    """Lay out the scheduled tokens; prompt_logprobs requests want the logits of all their prompt tokens.

    `samples`, int64 on the device, are those of the step before, for tokens that the host does not know yet.
    """
    ids: list[int] = []
    positions: list[np.ndarray] = []
    slots: list[np.ndarray] = []
    rows = _LogitsRows([], {}, {})
    num_seqs = len(output.scheduled)
    num_padding = max(MIN_ROWS - output.num_tokens, 0)  # sequences of one token, in the null block
    cu_seqlens = np.zeros(num_seqs + num_padding + 1, dtype=np.int32)
    seq_lens = np.ones(num_seqs + num_padding, dtype=np.int32)
    tables = np.zeros((num_seqs + num_padding, _max_blocks(output)), dtype=np.int32)
    for i, scheduled in enumerate(output.scheduled):
        seq = scheduled.seq
        start = seq.num_computed_tokens
        stop = start + scheduled.num_new_tokens
        rows.add(i, scheduled, first_row=len(ids))
        ids.extend(seq.tokens(start, stop) if scheduled.pending_sample is None else _UNKNOWN)
        tables[i, : len(seq.block_table)] = seq.block_table
        position = np.arange(start, stop, dtype=np.int64)
        positions.append(position)
        slots.append(tables[i, position // block_size].astype(np.int64) * block_size + position % block_size)
        cu_seqlens[i + 1] = len(ids)
        seq_lens[i] = stop
    if num_padding:
        ids.extend([0] * num_padding)
        positions.append(np.zeros(num_padding, dtype=np.int64))
        slots.append(np.full(num_padding, -1, dtype=np.int64))
        cu_seqlens[num_seqs + 1 :] = range(output.num_tokens + 1, len(ids) + 1)
    metadata = kernels.attention_metadata(
        torch.from_numpy(tables),
        torch.from_numpy(np.concatenate(slots)),
        torch.from_numpy(cu_seqlens),
        torch.from_numpy(seq_lens),
    )
    input_ids = to_device(torch.tensor(ids, dtype=torch.int64), kernels.device)
    if samples is not None:
        _fill_in(input_ids, samples, cu_seqlens, output)
    return Batch(
        input_ids=input_ids,
        positions=to_device(torch.from_numpy(np.concatenate(positions)), kernels.device),
        metadata=metadata,
        logits_rows=rows.padded(),
        sample_rows=rows.sample_rows,
        prompt_rows=rows.prompt_rows,
    )


def _fill_in(input_ids: Tensor, samples: Tensor, cu_seqlens: np.ndarray, output: SchedulerOutput) -> None:
    """Put the samples that only the device knows where they belong."""
    found = [
        (int(cu_seqlens[i]), scheduled.pending_sample)
        for i, scheduled in enumerate(output.scheduled)
        if scheduled.pending_sample is not None
    ]
    if found:
        to, source = to_device(torch.tensor(found, dtype=torch.int64), input_ids.device).unbind(1)
        input_ids[to] = samples[source]


@dataclass(slots=True)
class _LogitsRows:
    """Collects which tokens need logits, and where those end up."""

    token_rows: list[int]
    sample_rows: dict[int, int]
    prompt_rows: dict[int, tuple[int, int]]

    def add(self, index: int, scheduled: ScheduledSequence, *, first_row: int) -> None:
        seq = scheduled.seq
        # Token p of the prompt is predicted by the logits at p - 1, so the last prompt token needs none here.
        num_prompt_rows = min(seq.num_prompt_tokens - 1 - seq.num_computed_tokens, scheduled.num_new_tokens)
        if seq.params.prompt_logprobs is not None and seq.num_output_tokens == 0 and num_prompt_rows > 0:
            start = len(self.token_rows)
            self.token_rows.extend(range(first_row, first_row + num_prompt_rows))
            self.prompt_rows[index] = (start, start + num_prompt_rows)
        if scheduled.needs_token:
            self.sample_rows[index] = len(self.token_rows)
            self.token_rows.append(first_row + scheduled.num_new_tokens - 1)

    def padded(self) -> list[int]:
        """The rows; where there is one, twice."""
        return self.token_rows * MIN_ROWS if len(self.token_rows) == 1 else self.token_rows


def _max_blocks(output: SchedulerOutput) -> int:
    return max(len(scheduled.seq.block_table) for scheduled in output.scheduled)
