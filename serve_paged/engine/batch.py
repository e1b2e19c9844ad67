"""From what the scheduler chose to the flat tensors of one forward pass."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from numba_kernels import AttentionMetadata, Kernels
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput

# oneDNN adds up the products of a single row in another order than those of several. With two rows at least, one of
# them padding if need be, a token's numbers do not depend on how many others share its step.
MIN_ROWS = 2


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's tokens, all sequences one after another; then padding, which writes nothing and nobody reads."""

    input_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    metadata: AttentionMetadata
    logits_rows: list[int]  # [num_logits]: the tokens whose logits are wanted
    sample_rows: dict[int, int]  # index into output.scheduled -> row of the logits its next token comes from
    prompt_rows: dict[int, tuple[int, int]]  # the same -> rows [start, stop) that its prompt logprobs come from


def build_batch(output: SchedulerOutput, block_size: int, kernels: Kernels) -> Batch:
    """Lay out the scheduled tokens; prompt_logprobs requests want the logits of all their prompt tokens."""
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
        ids.extend(seq.tokens(start, stop))
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
    return Batch(
        input_ids=torch.tensor(ids, dtype=torch.int64),
        positions=torch.from_numpy(np.concatenate(positions)),
        metadata=metadata,
        logits_rows=rows.padded(),
        sample_rows=rows.sample_rows,
        prompt_rows=rows.prompt_rows,
    )


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
