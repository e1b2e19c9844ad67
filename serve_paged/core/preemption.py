"""What preempting a sequence costs: copying its blocks to the host and back, or computing its tokens again."""

from enum import StrEnum
from typing import Literal

PreemptionPolicy = Literal["auto", "recompute", "swap"]


class PreemptionKind(StrEnum):
    """How a preempted sequence gets its K and V back."""

    RECOMPUTE = "recompute"
    SWAP = "swap"


class PreemptionCosts:
    """Moving averages of measured seconds per copied block and per computed token.

    Until something was measured, a prior stands in: 0.2 ms per block (0.4 to 2 MB at memcpy speed) and 1 ms per token
    (a 135M model on two CPU cores), i.e. swapping 16 tokens out and in is some 40 times cheaper than computing them.
    """

    def __init__(self, *, prior_block_s: float = 2e-4, prior_token_s: float = 1e-3, smoothing: float = 0.1) -> None:
        self.block_s = prior_block_s  # seconds to copy one block, either way
        self.token_s = prior_token_s  # seconds to compute one token in a prefill
        self._smoothing = smoothing  # weight of the newest measurement
        self._swaps_measured = False
        self._prefills_measured = False

    def record_swap(self, num_blocks: int, seconds: float) -> None:
        """A step copied this many blocks, out or in, in this time."""
        if num_blocks:
            self.block_s = self._blend(self.block_s, seconds / num_blocks, self._swaps_measured)
            self._swaps_measured = True

    def record_compute(self, num_tokens: int, seconds: float) -> None:
        """A forward pass over this many tokens took this long. Tell it prefills: recomputing a sequence is one."""
        if num_tokens:
            self.token_s = self._blend(self.token_s, seconds / num_tokens, self._prefills_measured)
            self._prefills_measured = True

    def cheaper(self, num_tokens: int, num_blocks: int) -> PreemptionKind:
        """The cheaper of computing `num_tokens` again and `num_blocks` block copies (those out plus those back in)."""
        swap = num_blocks * self.block_s < num_tokens * self.token_s
        return PreemptionKind.SWAP if swap else PreemptionKind.RECOMPUTE

    def _blend(self, average: float, newest: float, measured: bool) -> float:
        return average + self._smoothing * (newest - average) if measured else newest
