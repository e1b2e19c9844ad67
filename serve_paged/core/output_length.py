"""How long outputs get, learned from those that ended, and how many blocks the running ones will need at their peak."""

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Iterable
from itertools import accumulate

from serve_paged.core.block_pool import num_blocks_for

MIN_SAMPLES = 16  # fewer say too little


class OutputLengths:
    """Lengths of the latest outputs that came to their own end (aborted ones say nothing about it)."""

    def __init__(self, max_samples: int = 512) -> None:
        self._max_samples = max_samples
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._sums: list[int] = [0]  # of the first i sorted lengths

    def record(self, num_output_tokens: int) -> None:
        """An output ended with this many tokens."""
        if len(self._recent) == self._max_samples:
            oldest = self._recent.popleft()
            del self._sorted[bisect_right(self._sorted, oldest) - 1]
        self._recent.append(num_output_tokens)
        insort(self._sorted, num_output_tokens)
        self._sums = [0, *accumulate(self._sorted)]

    @property
    def known(self) -> bool:
        """Whether there is enough to go by."""
        return len(self._sorted) >= MIN_SAMPLES

    def expected_remaining(self, num_produced: int) -> int:
        """Mean of what outputs longer than `num_produced` had still before them, in tokens.

        Where none was longer, as much again as there is already (Lindy's rule).
        """
        shorter = bisect_right(self._sorted, num_produced)
        longer = len(self._sorted) - shorter
        if not longer:
            return num_produced
        return (self._sums[-1] - self._sums[shorter]) // longer - num_produced


def peak_growth(sequences: Iterable[tuple[int, int]], block_size: int) -> int:
    """Blocks needed beyond those held now when need is greatest; sequences as (remaining tokens, blocks held).

    All grow a token a step and give their blocks back when they end, so need is greatest just before one of them does
    (as in the Past-Future scheduler, arXiv 2507.10150). The plain sum of remaining outputs would count
    together what is never held at one time.
    """
    by_end = sorted(sequences)
    peak = given_back = 0
    for index, (remaining, held) in enumerate(by_end):
        growing = len(by_end) - index
        peak = max(peak, growing * num_blocks_for(remaining, block_size) - given_back)
        given_back += held
    return peak
