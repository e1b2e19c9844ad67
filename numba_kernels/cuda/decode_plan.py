"""Who does what in a decode step: a list of splits, made on the host once per step and per distinct window.

Splits begin at multiples of `split_tokens`, so where a sequence is cut, and in which order it is added up, depends on
nothing but the sequence.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# A split costs group_size x head_dim x 8 bytes of partial results, written and read, against 4 x split_tokens x
# head_dim of keys and values: 3 % for 4 heads a group. Not yet tuned on a GPU.
SPLIT_TOKENS = 256
NO_WINDOW = 2**31 - 1
_TOKENS_PER_TILE = 16


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """The splits of a step, those of a sequence one after another."""

    work: NDArray[np.int32]  # [num_work, 4]: sequence, first tile, last tile + 1, number of the sequence's splits
    work_begin: NDArray[np.int32]  # [num_seqs + 1]: sequence s owns work_begin[s] .. work_begin[s + 1]

    @property
    def num_work(self) -> int:
        return len(self.work)

    def padded(self, num_work: int) -> NDArray[np.int32]:
        """`work` with empty entries up to a fixed length, as a captured graph needs."""
        if num_work < len(self.work):
            raise ValueError(f"{len(self.work)} splits do not fit into {num_work}")
        return np.concatenate((self.work, np.zeros((num_work - len(self.work), 4), np.int32)))


def decode_plan(seq_lens: NDArray[np.int32], window: int = NO_WINDOW, split_tokens: int = SPLIT_TOKENS) -> DecodePlan:
    """Cut sequences of these lengths (0: padding, no work). `window`: how many tokens the query sees, its own included.

    Raises ValueError for a negative length, an empty window, or splits that are not whole tiles of 16 tokens.
    """
    if window <= 0 or split_tokens <= 0 or split_tokens % _TOKENS_PER_TILE or (seq_lens < 0).any():
        raise ValueError(f"cannot cut {seq_lens.tolist()}, window {window}, into splits of {split_tokens}")
    lens = seq_lens.astype(np.int64)
    begin = np.maximum(lens - window, 0)
    first_split = begin // split_tokens
    num_splits = -(-lens // split_tokens) - first_split
    work_begin = np.concatenate(([0], num_splits.cumsum()))
    seq = np.repeat(np.arange(len(lens)), num_splits)
    split = first_split[seq] + np.arange(len(seq)) - work_begin[seq]
    first = np.maximum(split * split_tokens, begin[seq]) // _TOKENS_PER_TILE
    last = -(-np.minimum((split + 1) * split_tokens, lens[seq]) // _TOKENS_PER_TILE)
    work = np.stack((seq, first, last, num_splits[seq]), axis=1)
    return DecodePlan(work.astype(np.int32), work_begin.astype(np.int32))
