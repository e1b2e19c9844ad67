"""The load model: what an engine's live requests demand, in blocks and in tokens still to be prefilled.

Occupancy alone says little: a replica that is busy with prefills saturates at few blocks, and one whose running
sequences have most of their output before them is fuller than it looks. Admission, the router, the autoscaler and the
simulator all read this.
"""

from dataclasses import dataclass

from serve_paged.core.block_pool import num_blocks_for
from serve_paged.core.scheduler import Scheduler
from serve_paged.core.sequence import Sequence

EXPECTED_OUTPUT_TOKENS = 128  # of an output of which nothing is known yet: about ShareGPT's median


@dataclass(frozen=True, slots=True)
class Demand:
    """What one engine's live requests take now, and are expected to take."""

    num_resident_blocks: int  # referenced by running sequences
    num_queued_blocks: int  # of waiting prompts, less what the prefix cache holds of them
    num_remaining_blocks: int  # expected remaining output of running sequences, and the output of waiting ones
    num_seqs: int  # choices: waiting, running, not forked yet
    num_backlog_tokens: int  # still to be prefilled; the one token that a decode step computes is none
    request_ids: frozenset[str]

    @property
    def num_blocks(self) -> int:
        """All of it."""
        return self.num_resident_blocks + self.num_queued_blocks + self.num_remaining_blocks


def demand_of(scheduler: Scheduler) -> Demand:
    """The demand of a scheduler's sequences between two steps. Reads only."""
    size, pool = scheduler.block_size, scheduler.pool
    queued = remaining = backlog = 0
    for seq in scheduler.running:
        held = len(seq.block_table) * size
        remaining += sum(num_blocks_for(max(0, n - held), size) for n in _expected_ends(scheduler, seq))
        backlog += seq.num_tokens - seq.num_computed_tokens - 1
    for seq in scheduler.waiting:
        num_hits, num_blocks = len(scheduler.blocks.match_prefix(seq)), num_blocks_for(seq.num_tokens, size)
        queued += num_blocks - num_hits
        remaining += sum(num_blocks_for(n, size) - num_blocks for n in _expected_ends(scheduler, seq))
        backlog += seq.num_tokens - num_hits * size
    live = [*scheduler.running, *scheduler.waiting]
    return Demand(
        num_resident_blocks=pool.num_usable - pool.num_free,
        num_queued_blocks=queued,
        num_remaining_blocks=remaining,
        num_seqs=sum(1 + len(seq.siblings) for seq in live),
        num_backlog_tokens=backlog,
        request_ids=frozenset(seq.request_id for seq in live),
    )


def _expected_ends(scheduler: Scheduler, seq: Sequence) -> list[int]:
    """How many tokens a sequence, and each choice to be forked from it, are expected to have at their ends."""
    lengths = scheduler.guard.output_lengths
    left = lengths.expected_remaining(seq.num_output_tokens) if lengths.known else EXPECTED_OUTPUT_TOKENS
    return [min(seq.num_tokens + left, seq.max_num_tokens)] * (1 + len(seq.siblings))
