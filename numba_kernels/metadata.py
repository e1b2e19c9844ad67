"""What attention needs to know about a step's batch: built once per step, passed to every layer."""

from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMetadata:
    """One step's sequences. All tensors are on the CPU and contiguous, and must not change while this is in use."""

    block_tables: torch.Tensor  # int32 [num_seqs, max_blocks]: block ids in token order, padded with 0
    slot_mapping: (
        torch.Tensor
    )  # int64 [num_tokens]: block * block_size + offset where a token's K and V go; -1: nowhere
    cu_seqlens_q: torch.Tensor  # int32 [num_seqs + 1]: sequence s owns query rows cu[s] .. cu[s + 1]
    seq_lens: torch.Tensor  # int32 [num_seqs]: tokens in the cache once this step's are written
    num_query_tokens: int  # cu_seqlens_q's last
    calls: dict[Any, Any] = field(
        default_factory=dict, repr=False
    )  # what the layers of this step share, made by the first

    @property
    def num_seqs(self) -> int:
        return self.seq_lens.shape[0]


def attention_metadata(
    block_tables: torch.Tensor, slot_mapping: torch.Tensor, cu_seqlens_q: torch.Tensor, seq_lens: torch.Tensor
) -> AttentionMetadata:
    """Describe one step's batch.

    block_tables int32 [num_seqs, max_blocks], slot_mapping int64 [num_tokens], cu_seqlens_q int32 [num_seqs + 1],
    seq_lens int32 [num_seqs]. Raises `ValueError` for a wrong dtype, device or shape; the contents are checked by the
    first `paged_attention` of the step.
    """
    num_seqs = seq_lens.shape[0] if seq_lens.dim() == 1 else -1
    expected = (
        ("block_tables", block_tables, torch.int32, (num_seqs, block_tables.shape[-1])),
        ("slot_mapping", slot_mapping, torch.int64, (slot_mapping.numel(),)),
        ("cu_seqlens_q", cu_seqlens_q, torch.int32, (num_seqs + 1,)),
        ("seq_lens", seq_lens, torch.int32, (num_seqs,)),
    )
    for name, tensor, dtype, shape in expected:
        if tensor.dtype != dtype or tensor.device.type != "cpu" or tuple(tensor.shape) != shape:
            raise ValueError(
                f"{name} must be a CPU tensor of {dtype}, shape {shape}: got {tensor.dtype}, "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
    return AttentionMetadata(
        block_tables.contiguous(),
        slot_mapping.contiguous(),
        cu_seqlens_q.contiguous(),
        seq_lens.contiguous(),
        int(cu_seqlens_q[-1]),
    )
