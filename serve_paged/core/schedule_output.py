"""What one step does: the value that goes from the scheduler to the model runner and back."""

from dataclasses import dataclass, field

from serve_paged.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next `num_new_tokens` of a running sequence, from its `num_computed_tokens` on, go through the model."""

    seq: Sequence
    num_new_tokens: int
    needs_token: bool  # it has caught up with its tokens after this step: sample from its last logits
    pending_sample: int | None = None  # its one new token is not known yet: it is this one of the step before's samples


@dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step. Execution order: swap_out, swap_in, copies, forward pass; all of it after all of the step before.

    A device block swapped out may be handed out again in this very step, and a host block written in it may be read
    in it. No host block that is read or written here is written a second time, and no source of a copy is a target of
    anything here but the forward pass.
    """

    scheduled: list[ScheduledSequence] = field(default_factory=list)  # in order of service
    preempted: list[Sequence] = field(default_factory=list)
    swap_out: list[tuple[int, int]] = field(default_factory=list)  # (device block, host block)
    swap_in: list[tuple[int, int]] = field(default_factory=list)  # (host block, device block)
    copies: list[tuple[int, int]] = field(default_factory=list)  # (device block, device block): copy-on-write

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the model."""
        return sum(entry.num_new_tokens for entry in self.scheduled)


@dataclass(frozen=True, slots=True)
class TokenSlot:
    """A sequence that samples its next token from the last logits of row `row` of `SchedulerOutput.scheduled`.

    The place of a slot among a step's slots is its sequence's `pending_sample` until the token is known.
    """

    seq: Sequence
    row: int


@dataclass(slots=True)
class SchedulerStats:
    """Counters of one scheduler. They only grow."""

    num_preemptions_recompute: int = 0
    num_preemptions_swap: int = 0
    num_queried_tokens: int = 0  # prompt tokens looked up in the prefix cache at first admission
    num_cached_tokens: int = 0  # of these, found
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_copied_blocks: int = 0  # copy-on-write
    num_finished: dict[str, int] = field(default_factory=dict)  # by finish reason
