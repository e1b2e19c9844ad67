"""A decode step at fixed addresses: what a captured graph reads, filled anew for every step by one copy."""

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_kernels.cuda.checks import describe
from numba_kernels.cuda.decode_plan import NO_WINDOW, SPLIT_TOKENS, max_work, write_decode_plan
from numba_kernels.cuda.launcher import Event, Launcher
from numba_kernels.cuda.metadata import CudaMetadata, DecodeRows, DecodeSplits, Partials
from numba_kernels.cuda.sampled_ids import NUM_THREADS, take_sampled_kernel
from numba_kernels.cuda.staging import Field, Packing
from numba_kernels.cuda.target import Index3

# Of host memory that steps are written into in turn. The host may be one step ahead of the device: while the copy of
# the step before may still be reading one, it writes the other. Before it writes one again it waits for the event
# behind that one's last copy, two steps back, which has come long ago unless the device is far behind.
_NUM_STAGED = 2


class Workspace:
    """Memory for partial results that all buckets share, as their graphs run one after another.

    It only grows, and what it has outgrown is kept: a graph may have been captured with its address. Ask for the
    largest bucket's first.
    """

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._memory: list[Tensor] = []  # float32, each larger than the one before

    def partials(self, num_work: int, num_heads: int, head_dim: int) -> Partials:
        """For this many splits."""
        num_out, num_lse = num_work * num_heads * head_dim, num_work * num_heads
        if not self._memory or self._memory[-1].numel() < num_out + num_lse:
            self._memory.append(self._launcher.empty((num_out + num_lse,), torch.float32))
        memory = self._memory[-1]
        out = memory[:num_out].view(num_work, num_heads, head_dim)
        return Partials(out, memory[num_out : num_out + num_lse].view(num_work, num_heads))


class DecodeBuffers:
    """One bucket: up to `num_seqs` sequences of one query each, the rest padding that reads and writes nothing.

    `input_ids`, `positions` (int64 [num_seqs]) and `metadata` are on the device, at the same addresses for good;
    `update` says what they hold when later work on the stream reads them.

    The kernels' strides are captured, so a step's block tables are sent with as many columns as `max_seq_len` has
    blocks, however few are used: 4 bytes x num_seqs x max_seq_len / block_size, which is 8.4 MB for 256 sequences of up
    to 131,072 tokens in blocks of 16, some 0.2 to 0.4 ms of a step that reads gigabytes of keys. The host writes
    only the columns used. Where sequences are never that long, a smaller max_model_len saves it.
    """

    def __init__(
        self,
        launcher: Launcher,
        workspace: Workspace,
        num_seqs: int,
        max_seq_len: int,
        block_size: int,
        *,
        windows: Collection[int | None] = (None,),
        max_splits: int | None = None,
    ) -> None:
        """`max_seq_len`: tokens of the longest sequence that will come. `windows`: those of the model's layers.

        `max_splits`: how many splits the sequences may have together, where not all can be longest at a time: each
        takes 4 x (head_dim + 1) x num_heads bytes of partial results, shared with the other buckets.
        """
        self.num_seqs, self.max_seq_len = num_seqs, max_seq_len
        self.max_splits = max_work(num_seqs, max_seq_len) if max_splits is None else max_splits
        self._launcher = launcher
        self._windows = sorted({NO_WINDOW if window is None else window for window in windows})
        packing = Packing(self._fields(-(-max_seq_len // block_size)))
        self._staged = [_Staged(launcher, packing) for _ in range(_NUM_STAGED)]
        self._memory = launcher.empty((packing.num_bytes,), torch.uint8)
        here = packing.tensors(self._memory)
        self.input_ids, self.positions = here["input_ids"], here["positions"]
        self._sampled_rows = here["sampled_rows"]
        splits = {w: DecodeSplits(here[f"work {w}"], here[f"begin {w}"], workspace.partials) for w in self._windows}
        self.metadata = CudaMetadata(
            here["block_tables"],
            here["slot_mapping"],
            here["cu_seqlens_q"],
            here["seq_lens"],
            num_seqs,
            decode=DecodeRows(slice(0, num_seqs), here["block_tables"], _refuse_window, splits),
            prefill=None,
            host=None,
        )
        nothing, none = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int32)
        self.update(none.view(0, 0), nothing, none, nothing, nothing)  # a capture's first runs find padding

    def fits(self, seq_lens: Tensor) -> bool:
        """Whether a step of sequences with so many tokens, int32 [num_seqs] on the CPU, can go through here."""
        lens = seq_lens.numpy()
        longest, num_splits = lens.max(initial=0), (-(-lens // SPLIT_TOKENS)).sum()
        return bool(len(lens) <= self.num_seqs and longest <= self.max_seq_len and num_splits <= self.max_splits)

    def update(
        self,
        block_tables: Tensor,
        slot_mapping: Tensor,
        seq_lens: Tensor,
        positions: Tensor,
        input_ids: Tensor,
        sampled_rows: Tensor | None = None,
    ) -> None:
        """The next step's batch: tensors on the CPU as in `attention_metadata`, int64 positions and input_ids.

        `sampled_rows` int32 [num_seqs]: where not negative, `take_sampled` puts that row of the last samples in the
        place of the input id. One copy, in the stream's order: nothing that was launched before sees it, and nobody
        waits. Raises ValueError for a step that does not fit.
        """
        num_seqs, width = block_tables.shape
        if not self.fits(seq_lens) or width > self.metadata.block_tables.shape[1]:
            raise ValueError(
                f"{seq_lens.tolist()} tokens, {width} blocks do not fit: at most {self.num_seqs} sequences of "
                f"{self.max_seq_len} tokens, {self.max_splits} splits"
            )
        self._staged.append(self._staged.pop(0))
        staged = self._staged[-1]
        to = staged.begin()
        for name, padding, values in (
            ("input_ids", 0, input_ids),
            ("positions", 0, positions),
            ("slot_mapping", -1, slot_mapping),
            ("sampled_rows", -1, sampled_rows),
            ("seq_lens", 0, seq_lens),
        ):
            to[name].fill(padding)
            if values is not None:
                to[name][:num_seqs] = values.numpy()
        to["block_tables"][:num_seqs, :width] = block_tables.numpy()
        for window in self._windows:
            write_decode_plan(to["seq_lens"], to[f"work {window}"], to[f"begin {window}"], window=window)
        staged.send(self._memory)

    def take_sampled(self, sampled: Tensor) -> None:
        """Put what the step before sampled where `update` asked for it; `sampled` int64 [any], on the device.

        A launch: part of the captured graph, with `sampled` at an address that stays.
        """
        if sampled.dtype != torch.int64 or sampled.device != self._launcher.device or not sampled.is_contiguous():
            raise ValueError(f"sampled must be int64 on {self._launcher.device}, contiguous: got {describe(sampled)}")
        self._launcher.launch(
            take_sampled_kernel(),
            Index3(-(-self.num_seqs // NUM_THREADS)),
            NUM_THREADS,
            (self.input_ids.data_ptr(), self._sampled_rows.data_ptr(), sampled.data_ptr(), self.num_seqs),
            (self._memory, sampled),
        )

    def _fields(self, max_blocks: int) -> dict[str, Field]:
        per_seq = (self.num_seqs,)
        fields = {name: Field(torch.int64, per_seq) for name in ("input_ids", "positions", "slot_mapping")}
        fields |= {name: Field(torch.int32, per_seq) for name in ("sampled_rows", "seq_lens")}
        fields["cu_seqlens_q"] = Field(torch.int32, (self.num_seqs + 1,))
        fields["block_tables"] = Field(torch.int32, (self.num_seqs, max_blocks))
        for window in self._windows:
            in_window = max_work(1, window + SPLIT_TOKENS - 1)  # one more, as it begins in the middle of a split
            fields[f"work {window}"] = Field(torch.int32, (min(self.max_splits, self.num_seqs * in_window), 4))
            fields[f"begin {window}"] = Field(torch.int32, (self.num_seqs + 1,))
        return fields


class _Staged:
    """One of the host's copies, and whether the device may still be reading it."""

    def __init__(self, launcher: Launcher, packing: Packing) -> None:
        self._launcher = launcher
        self._memory = launcher.staging(packing.num_bytes)
        self._memory.zero_()  # what lies behind a sequence's blocks is sent too
        self._event: Event = launcher.event()
        self._arrays = packing.arrays(self._memory)
        self._arrays["cu_seqlens_q"][:] = np.arange(len(self._arrays["cu_seqlens_q"]))

    def begin(self) -> dict[str, NDArray[Any]]:
        """The arrays to write, once nothing reads them any more."""
        self._event.synchronize()
        return self._arrays

    def send(self, memory: Tensor) -> None:
        """On its way."""
        self._launcher.upload(self._memory, memory)
        self._event.record()


def _refuse_window(window: int) -> DecodeSplits:
    raise ValueError(f"these decode buffers were made without a sliding window of {window}")
