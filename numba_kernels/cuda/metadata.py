"""One step's batch on the device: sent in one copy, with the plans that its layers share."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from numba_kernels.cuda.decode_plan import NO_WINDOW, decode_plan
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.staging import send
from numba_kernels.metadata import AttentionMetadata, attention_metadata


@dataclass(frozen=True, slots=True, eq=False)
class DeviceDecodePlan:
    """`DecodePlan` on the device."""

    work: Tensor  # int32 [>= num_work, 4]
    work_begin: Tensor  # int32 [num_seqs + 1]
    max_work: int  # how many rows `work` has: partial results need as many


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """The sequences of a step that have one query each."""

    rows: slice | Tensor  # of q and out, one each: in a row, or int64 indices
    block_tables: Tensor  # int32 [num_seqs, max_blocks]
    seq_lens: Tensor  # int32 [num_seqs]
    host_seq_lens: NDArray[np.int32]
    launcher: Launcher = field(repr=False)
    plans: dict[int, DeviceDecodePlan] = field(default_factory=dict)  # by window

    @property
    def num_seqs(self) -> int:
        return len(self.host_seq_lens)

    def plan(self, window: int | None) -> DeviceDecodePlan:
        """Who does what, made for the first layer with that window."""
        key = NO_WINDOW if window is None else window
        found = self.plans.get(key)
        if found is None:
            host = decode_plan(self.host_seq_lens, key)
            sent = send(self.launcher, {"work": host.work, "work_begin": host.work_begin})
            found = self.plans[key] = DeviceDecodePlan(sent["work"], sent["work_begin"], host.num_work)
        return found


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CudaMetadata(AttentionMetadata):
    """One step's sequences; all tensors are on the device."""

    decode: DecodeRows | None  # None: no sequence has exactly one query


def cuda_metadata(
    launcher: Launcher, block_tables: Tensor, slot_mapping: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor
) -> CudaMetadata:
    """`numba_kernels.attention_metadata` for a step on this launcher's device, from the same tensors on the CPU.

    Raises ValueError also for contents that do not fit: bounds that fall, a sequence with fewer tokens than queries,
    or more than its block table could hold at 16 tokens a block or more is not known here.
    """
    host = attention_metadata(block_tables, slot_mapping, cu_seqlens_q, seq_lens)
    bounds, lens = host.cu_seqlens_q.numpy(), host.seq_lens.numpy().copy()
    num_queries = np.diff(bounds)
    if len(bounds) and (bounds[0] != 0 or (num_queries < 0).any() or host.num_query_tokens != slot_mapping.numel()):
        raise ValueError(f"cu_seqlens_q {bounds.tolist()} does not divide {slot_mapping.numel()} tokens")
    if ((num_queries > lens) & (lens > 0)).any():
        raise ValueError(f"seq_lens {lens.tolist()} are shorter than the queries {num_queries.tolist()}")
    single = np.flatnonzero(num_queries == 1)
    arrays = {
        "block_tables": host.block_tables.numpy(),
        "slot_mapping": host.slot_mapping.numpy(),
        "cu_seqlens_q": bounds,
        "seq_lens": lens,
    }
    in_a_row = len(single) == 0 or single[-1] - single[0] + 1 == len(single)
    if not in_a_row:
        arrays |= {"decode_seqs": single, "decode_rows": bounds[single].astype(np.int64)}
    sent = send(launcher, arrays)
    decode = None
    if len(single):
        first, last = single[0], single[-1] + 1
        tables, device_lens = sent["block_tables"], sent["seq_lens"]
        decode = DecodeRows(
            rows=slice(int(bounds[first]), int(bounds[last])) if in_a_row else sent["decode_rows"],
            block_tables=tables[first:last] if in_a_row else tables[sent["decode_seqs"]],
            seq_lens=device_lens[first:last] if in_a_row else device_lens[sent["decode_seqs"]],
            host_seq_lens=lens[single],
            launcher=launcher,
        )
    return CudaMetadata(
        sent["block_tables"],
        sent["slot_mapping"],
        sent["cu_seqlens_q"],
        sent["seq_lens"],
        host.num_query_tokens,
        decode=decode,
    )
