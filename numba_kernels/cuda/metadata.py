"""One step's batch on the device: what its kernels read, and the plans that its layers share."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_kernels.cuda.decode_plan import NO_WINDOW, decode_plan
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.prefill_plan import prefill_plan
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.staging import send
from numba_kernels.metadata import AttentionMetadata, attention_metadata


@dataclass(frozen=True, slots=True, eq=False)
class Partials:
    """Where a decode step's splits leave their results until they are merged."""

    out: Tensor  # float32 [max_work, num_heads, head_dim]
    lse: Tensor  # float32 [max_work, num_heads]


@dataclass(frozen=True, slots=True, eq=False)
class DecodeSplits:
    """`DecodePlan` on the device, for one window."""

    work: Tensor  # int32 [max_work, 4], of which work_begin[num_seqs] are filled
    work_begin: Tensor  # int32 [num_seqs + 1]
    new_partials: Callable[[int, int, int], Partials]  # of max_work, num_heads, head_dim
    partials: dict[tuple[int, int], Partials] = field(default_factory=dict)

    @property
    def max_work(self) -> int:
        return self.work.shape[0]

    def partials_of(self, num_heads: int, head_dim: int) -> Partials:
        """The same for all layers of this shape: what they leave there is merged before the next begins."""
        found = self.partials.get((num_heads, head_dim))
        if found is None:
            found = self.partials[num_heads, head_dim] = self.new_partials(self.max_work, num_heads, head_dim)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """The sequences of a step that have one query each."""

    rows: slice | Tensor  # of q and out: one after another, or int64 indices
    block_tables: Tensor  # int32 [num_seqs, max_blocks]
    new_splits: Callable[[int], DecodeSplits]  # for a window
    splits: dict[int, DecodeSplits] = field(default_factory=dict)

    @property
    def num_seqs(self) -> int:
        return self.block_tables.shape[0]

    def splits_of(self, window: int | None) -> DecodeSplits:
        """Who does what, made for the first layer with that window."""
        key = NO_WINDOW if window is None else window
        found = self.splits.get(key)
        if found is None:
            found = self.splits[key] = self.new_splits(key)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class PrefillRows:
    """The sequences of a step that have several queries each; tables and lengths are those of all sequences."""

    cu_seqlens_q: NDArray[np.int32]  # on the host, as the others here
    seq_lens: NDArray[np.int32]
    selected: NDArray[np.bool_]  # [num_seqs]
    launcher: Launcher = field(repr=False)
    work: dict[tuple[PrefillVariant, int, int], Tensor] = field(default_factory=dict)

    def work_of(self, variant: PrefillVariant, group_size: int, window: int | None) -> Tensor:
        """int32 [num_work, 4] on the device (`PrefillPlan`), made for the first layer of that shape and window."""
        key = variant, group_size, NO_WINDOW if window is None else window
        found = self.work.get(key)
        if found is None:
            plan = prefill_plan(self.cu_seqlens_q, self.seq_lens, group_size, variant, key[2], self.selected)
            found = self.work[key] = send(self.launcher, {"work": plan.work})["work"]
        return found


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class CudaMetadata(AttentionMetadata):
    """One step's sequences; all of the base's tensors are on the device."""

    decode: DecodeRows | None  # None: no sequence has exactly one query
    prefill: PrefillRows | None  # None: no sequence has more than one
    host: AttentionMetadata | None  # the same on the CPU; None: nobody can check it

    def require_blocks(self, num_blocks: int, block_size: int) -> None:
        """Raises ValueError unless the tables hold blocks of this cache, enough for every sequence. Looks once."""
        if self.host is None or (num_blocks, block_size) in self.calls:
            return
        tables, needed = self.host.block_tables.numpy(), -(-self.host.seq_lens.numpy() // block_size)
        if needed.max(initial=0) > tables.shape[1]:
            raise ValueError("block_tables has fewer columns than seq_lens needs blocks")
        used = tables[np.arange(tables.shape[1]) < needed[:, None]]
        if used.size and not 0 <= used.min() <= used.max() < num_blocks:
            raise ValueError("block_tables names a block outside the cache")
        self.calls[num_blocks, block_size] = True


def new_partials(launcher: Launcher) -> Callable[[int, int, int], Partials]:
    """Memory for one step. It goes back to torch's allocator, which gives it out in the stream's order."""

    def make(max_work: int, num_heads: int, head_dim: int) -> Partials:
        out = launcher.empty((max_work, num_heads, head_dim), torch.float32)
        return Partials(out, launcher.empty((max_work, num_heads), torch.float32))

    return make


def cuda_metadata(
    launcher: Launcher, block_tables: Tensor, slot_mapping: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor
) -> CudaMetadata:
    """`numba_kernels.attention_metadata` on this launcher's device, from the same tensors on the CPU.

    Fastest where the sequences with one query follow one another. Raises ValueError also for contents that do not fit.
    """
    host = attention_metadata(block_tables, slot_mapping, cu_seqlens_q, seq_lens)
    bounds, lens = host.cu_seqlens_q.numpy().copy(), host.seq_lens.numpy().copy()
    num_queries = _check(bounds, lens, slot_mapping.numel())
    single, several = np.flatnonzero(num_queries == 1), num_queries > 1
    arrays = {
        "block_tables": host.block_tables.numpy(),
        "slot_mapping": host.slot_mapping.numpy(),
        "cu_seqlens_q": bounds,
        "seq_lens": lens,
    }
    scattered = len(single) > 0 and single[-1] - single[0] + 1 != len(single)
    if scattered:
        arrays |= {"single": single, "rows": bounds[single].astype(np.int64)}
    sent = send(launcher, arrays)
    decode = None
    if scattered:
        decode = DecodeRows(sent["rows"], sent["block_tables"][sent["single"]], _new_splits(launcher, lens[single]))
    elif len(single):
        first, last = single[0], single[-1] + 1
        rows = slice(int(bounds[first]), int(bounds[last]))
        decode = DecodeRows(rows, sent["block_tables"][first:last], _new_splits(launcher, lens[first:last]))
    return CudaMetadata(
        sent["block_tables"],
        sent["slot_mapping"],
        sent["cu_seqlens_q"],
        sent["seq_lens"],
        host.num_query_tokens,
        decode=decode,
        prefill=PrefillRows(bounds, lens, several, launcher) if several.any() else None,
        host=host,
    )


def _new_splits(launcher: Launcher, seq_lens: NDArray[np.int32]) -> Callable[[int], DecodeSplits]:
    def make(window: int) -> DecodeSplits:
        plan = decode_plan(seq_lens, window)
        sent = send(launcher, {"work": plan.work, "work_begin": plan.work_begin})
        return DecodeSplits(sent["work"], sent["work_begin"], new_partials(launcher))

    return make


def _check(bounds: NDArray[np.int32], lens: NDArray[np.int32], num_tokens: int) -> NDArray[np.int32]:
    """The sequences' numbers of queries. Raises ValueError if bounds and lengths make no batch."""
    num_queries = np.diff(bounds)
    if bounds[0] != 0 or bounds[-1] != num_tokens or (num_queries < 0).any():
        raise ValueError(f"cu_seqlens_q {bounds.tolist()} does not divide {num_tokens} tokens among the sequences")
    if (lens < 0).any() or ((num_queries > lens) & (lens > 0)).any():
        raise ValueError(f"seq_lens {lens.tolist()} are less than the queries: {num_queries.tolist()}")
    return num_queries
