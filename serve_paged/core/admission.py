"""Whether a sequence may leave the waiting line: what can never fit, what fits now, what will still fit later."""

import math

from serve_paged.core.block_pool import num_blocks_for
from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.output_length import OutputLengths, peak_growth
from serve_paged.core.sequence import Sequence


class AdmissionGuard:
    """Keeps a watermark free, and room for what the running sequences are expected still to write."""

    def __init__(self, *, block_size: int, max_num_seqs: int, num_usable_blocks: int, watermark: float) -> None:
        self.output_lengths = OutputLengths()
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._num_usable_blocks = num_usable_blocks
        self._num_watermark_blocks = math.ceil(watermark * num_usable_blocks)

    def check_possible(self, seq: Sequence) -> None:
        """Raise `InvalidRequest` if the sequence could not be served even alone."""
        num_choices = 1 + len(seq.siblings)
        if not seq.prompt_token_ids:
            raise InvalidRequest("the prompt must have at least one token", "prompt")
        if num_choices > self._max_num_seqs:
            raise InvalidRequest(f"n = {num_choices} exceeds the {self._max_num_seqs} sequences of one step", "n")
        if seq.num_tokens >= seq.max_num_tokens:
            raise RequestTooLong(
                f"{seq.num_prompt_tokens} prompt and {seq.num_output_tokens} output tokens leave no room "
                f"for another within {seq.max_num_tokens} tokens",
                "prompt",
            )
        num_blocks = num_blocks_for(seq.max_num_tokens, self._block_size)
        if num_blocks > self._num_usable_blocks:
            num_new = seq.max_num_tokens - seq.num_prompt_tokens
            raise RequestTooLong(
                f"prompt + max_tokens is {seq.num_prompt_tokens} + {num_new} tokens and needs {num_blocks} blocks "
                f"of {self._block_size} tokens; the KV cache has {self._num_usable_blocks}",
                "max_tokens" if seq.num_prompt_tokens < self._num_usable_blocks * self._block_size else "prompt",
            )

    def has_seats_for(self, seq: Sequence, running: list[Sequence]) -> bool:
        """Whether a sequence may run as well; a choice not forked yet takes its seat with its parent."""
        return sum(1 + len(other.siblings) for other in running) + 1 + len(seq.siblings) <= self._max_num_seqs

    def num_known_blocks(self, seq: Sequence) -> int:
        """Blocks for the tokens known now, and for the copies of the tail that its forks will make."""
        return num_blocks_for(seq.num_tokens, self._block_size) + len(seq.siblings)

    def fits_now(
        self, seq: Sequence, num_needed: int, running: list[Sequence], num_free: int, *, first: int | None = None
    ) -> bool:
        """Whether there are seats, and blocks above the watermark for all tokens known now.

        `num_needed` is what the sequence would take from the free queue; what the `first` of the running ones (all, if
        not told) will take for their known tokens is promised to them. Anything possible fits when nothing runs.
        """
        if not running:
            return True
        if not self.has_seats_for(seq, running):
            return False
        promised = sum(self.num_known_blocks(other) - len(other.block_table) for other in running[:first])
        return num_needed + promised + self._num_watermark_blocks <= num_free

    def fits_later(self, seq: Sequence, num_needed: int, running: list[Sequence], num_free: int) -> bool:
        """Whether it would still fit when the expected outputs of all are at their peak; true while little is known."""
        if not running or not self.output_lengths.known:
            return True
        demands = [demand for other in running for demand in self._demands(other, len(other.block_table))]
        demands += self._demands(seq, num_needed)
        return num_needed + peak_growth(demands, self._block_size) + self._num_watermark_blocks <= num_free

    def _demands(self, seq: Sequence, num_held: int) -> list[tuple[int, int]]:
        """(expected remaining tokens, blocks it will give back) of each of its choices; an estimate.

        Blocks found in the prefix cache, and a fork's prompt, are taken to stay with the others that share them.
        """
        remaining = self.output_lengths.expected_remaining(seq.num_output_tokens)
        remaining = min(remaining, seq.max_num_tokens - seq.num_tokens)
        shared = seq.num_cached_tokens if seq.choice == 0 else seq.num_prompt_tokens
        own = max(0, num_held - shared // self._block_size)
        return [(remaining, own), *((remaining, 0) for _ in seq.siblings)]
