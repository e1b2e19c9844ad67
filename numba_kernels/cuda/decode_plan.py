"""Who does what in a decode step: a list of splits, made on the host once per step and per distinct window.

Splits begin at multiples of `split_tokens`, so where a sequence is cut, and in which order it is added up, depends on
nothing but the sequence.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from numba_kernels.cpu.jit import kernel

# A split costs group_size x head_dim x 8 bytes of partial results, written and read, against 4 x split_tokens x
# head_dim of keys and values: 3 % for 4 heads a group. Not yet tuned on a GPU.
SPLIT_TOKENS = 256
NO_WINDOW = 2**31 - 1
NOT_PARTIAL = -1
_TOKENS_PER_TILE = 16


@dataclass(frozen=True, slots=True, eq=False)
class DecodePlan:
    """The splits of a step, those of a sequence one after another."""

    work: NDArray[np.int32]  # [num_work, 4]: sequence, its first token, its last + 1, row of the partial result
    work_begin: NDArray[np.int32]  # [num_seqs + 1]: sequence s owns work_begin[s] .. work_begin[s + 1]

    @property
    def num_work(self) -> int:
        return len(self.work)


def max_work(num_seqs: int, max_seq_len: int, split_tokens: int = SPLIT_TOKENS) -> int:
    """The most splits that so many sequences of at most so many tokens have: what fixed buffers hold."""
    return num_seqs * -(-max_seq_len // split_tokens)


def write_decode_plan(
    seq_lens: NDArray[np.int32],
    work: NDArray[np.int32],
    work_begin: NDArray[np.int32],
    *,
    window: int = NO_WINDOW,
    split_tokens: int = SPLIT_TOKENS,
) -> int:
    """Cut sequences of these lengths (0: padding, no work) into splits, in buffers of the caller's; returns num_work.

    seq_lens int32 [num_seqs]; work int32 [capacity, 4] and work_begin int32 [num_seqs + 1] as in `DecodePlan`: rows of
    `work` from num_work on stay as they are, and work_begin[num_seqs] is num_work, where the kernel reads it. `window`:
    how many tokens the query sees, its own included. Two microseconds for 64 sequences.

    Raises ValueError for a negative length, an empty window, splits that are not whole tiles of 16 tokens, or buffers
    that are too small; what they hold is then undefined.
    """
    if window <= 0 or split_tokens <= 0 or split_tokens % _TOKENS_PER_TILE:
        raise ValueError(f"cannot cut with window {window} into splits of {split_tokens}")
    if work_begin.shape != (len(seq_lens) + 1,):
        raise ValueError(f"work_begin of shape {work_begin.shape} for {len(seq_lens)} sequences")
    num_work = int(_cut(seq_lens, window, split_tokens, work, work_begin))
    if num_work < 0:
        raise ValueError(f"a negative length among {seq_lens.tolist()}")
    if num_work > len(work):
        raise ValueError(f"{num_work} splits do not fit into {len(work)}")
    return num_work


def decode_plan(seq_lens: NDArray[np.int32], window: int = NO_WINDOW, split_tokens: int = SPLIT_TOKENS) -> DecodePlan:
    """`write_decode_plan` into new buffers, as large as needed."""
    capacity = int((seq_lens // split_tokens + 1).sum()) if split_tokens > 0 else 0
    work = np.empty((max(capacity, 0), 4), np.int32)
    work_begin = np.empty(len(seq_lens) + 1, np.int32)
    num_work = write_decode_plan(seq_lens, work, work_begin, window=window, split_tokens=split_tokens)
    return DecodePlan(work[:num_work], work_begin)


@kernel()
def _cut(seq_lens: Any, window: int, split_tokens: int, work: Any, work_begin: Any) -> Any:
    """The number of splits, of which those that fit are in `work`; -1 if a length is negative."""
    num_work = 0
    for seq in range(len(seq_lens)):
        work_begin[seq] = num_work
        seq_len = np.int64(seq_lens[seq])
        if seq_len < 0:
            return -1
        first_token: Any = max(seq_len - window, 0)
        begin = first_token - first_token % split_tokens
        is_only = seq_len - begin <= split_tokens
        while begin < seq_len:
            if num_work < len(work):
                work[num_work, 0] = seq
                work[num_work, 1] = max(begin, first_token)
                work[num_work, 2] = min(begin + split_tokens, seq_len)
                work[num_work, 3] = NOT_PARTIAL if is_only else num_work
            num_work += 1
            begin += split_tokens
    work_begin[len(seq_lens)] = num_work
    return num_work
