"""Who does what in a step's prefill: a list of row tiles, made on the host once per step and per distinct window."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from numba_kernels.cuda.decode_plan import NO_WINDOW
from numba_kernels.cuda.prefill_variant import PrefillVariant

_MAX_WORK = 65535  # the grid's second extent


@dataclass(frozen=True, slots=True, eq=False)
class PrefillPlan:
    """The row tiles of a step, those with the most keys first: what begins last is then over soon."""

    work: NDArray[np.int32]  # [num_work, 4]: sequence, first row, first tile of keys, last tile + 1

    @property
    def num_work(self) -> int:
        return len(self.work)

    def padded(self, num_work: int) -> NDArray[np.int32]:
        """`work` with empty entries up to a fixed length, as a captured graph needs."""
        if num_work < len(self.work):
            raise ValueError(f"{len(self.work)} row tiles do not fit into {num_work}")
        return np.concatenate((self.work, np.zeros((num_work - len(self.work), 4), np.int32)))


def prefill_plan(
    cu_seqlens_q: NDArray[np.int32],
    seq_lens: NDArray[np.int32],
    group_size: int,
    variant: PrefillVariant,
    window: int = NO_WINDOW,
    selected: NDArray[np.bool_] | None = None,
) -> PrefillPlan:
    """Cut the queries of `selected` sequences (of all, where None) into row tiles; without queries there is no work.

    cu_seqlens_q [num_seqs + 1], seq_lens [num_seqs] (queries included), `window`: how many tokens a query sees, its own
    included. Where a row tile begins depends on its chunk, its keys' tiles only on their positions. Raises ValueError
    for a sequence shorter than its queries, an empty window, or more row tiles than a grid takes.
    """
    bounds = cu_seqlens_q.astype(np.int64)
    num_queries = bounds[1:] - bounds[:-1]
    context = seq_lens.astype(np.int64) - num_queries
    if window <= 0 or group_size <= 0 or (num_queries < 0).any() or (context[num_queries > 0] < 0).any():
        raise ValueError(f"cannot cut {num_queries.tolist()} queries of {seq_lens.tolist()} tokens, window {window}")
    if selected is not None:
        num_queries = np.where(selected, num_queries, 0)
    num_rows = num_queries * group_size
    num_tiles = -(-num_rows // variant.tile_rows)
    seq = np.repeat(np.arange(len(num_rows)), num_tiles)
    first_row = (np.arange(len(seq)) - (num_tiles.cumsum() - num_tiles)[seq]) * variant.tile_rows
    last_row = np.minimum(first_row + variant.tile_rows, num_rows[seq]) - 1
    first_token = np.maximum(context[seq] + first_row // group_size - window + 1, 0)
    last_token = context[seq] + last_row // group_size
    first, end = first_token // variant.tile_tokens, last_token // variant.tile_tokens + 1
    if len(seq) > _MAX_WORK:
        raise ValueError(f"{len(seq)} row tiles, of which a launch takes {_MAX_WORK}")
    work = np.stack((seq, first_row, first, end), axis=1)[np.argsort(first - end, kind="stable")]
    return PrefillPlan(work.astype(np.int32))
