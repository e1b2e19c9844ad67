"""A step in which every sequence has one token, as the arrays that a captured graph takes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput

_KNOWN = -1


@dataclass(frozen=True, slots=True)
class DecodeInputs:
    """One row per sequence; tensors on the CPU."""

    block_tables: Tensor  # int32 [num_seqs, max_blocks]
    slot_mapping: Tensor  # int64 [num_seqs]
    seq_lens: Tensor  # int32 [num_seqs], this step's token included
    positions: Tensor  # int64 [num_seqs]
    input_ids: Tensor  # int64 [num_seqs]; 0 where only the device knows
    sampled_rows: Tensor  # int32 [num_seqs]: which sample of the step before is the input id; -1: it is known


def is_decode(output: SchedulerOutput) -> bool:
    """Whether every sequence has one token, and nobody wants the logits of prompt tokens."""
    return all(
        scheduled.num_new_tokens == 1 and scheduled.seq.params.prompt_logprobs is None for scheduled in output.scheduled
    )


def decode_inputs(scheduled: list[ScheduledSequence], block_size: int) -> DecodeInputs:
    """Lay out a step for which `is_decode` holds."""
    seqs = [entry.seq for entry in scheduled]
    tables = np.zeros((len(seqs), max((len(seq.block_table) for seq in seqs), default=0)), dtype=np.int32)
    for row, seq in enumerate(seqs):
        tables[row, : len(seq.block_table)] = seq.block_table
    positions = np.array([seq.num_computed_tokens for seq in seqs], dtype=np.int64)
    blocks = tables[np.arange(len(seqs)), positions // block_size].astype(np.int64)
    pending = [entry.pending_sample for entry in scheduled]
    ids = [
        seq.tokens(seq.num_computed_tokens, seq.num_computed_tokens + 1)[0] if sample is None else 0
        for seq, sample in zip(seqs, pending, strict=True)
    ]
    return DecodeInputs(
        block_tables=torch.from_numpy(tables),
        slot_mapping=torch.from_numpy(blocks * block_size + positions % block_size),
        seq_lens=torch.from_numpy((positions + 1).astype(np.int32)),
        positions=torch.from_numpy(positions),
        input_ids=torch.tensor(ids, dtype=torch.int64),
        sampled_rows=torch.tensor([_KNOWN if sample is None else sample for sample in pending], dtype=torch.int32),
    )
