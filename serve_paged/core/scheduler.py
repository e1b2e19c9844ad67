"""Which sequences take part in the next step, and with how many tokens. Knows token ids and block ids, no tensors.

There are no phases: every sequence catches up from `num_computed_tokens` to its length under one token budget.
Prefill, chunked prefill, decode, and resuming after preemption or on another replica are all the same thing.

All unfinished sequences stand in one fixed order (core/priority.py), and each step walks down it: a running sequence
gets its tokens, a waiting one is admitted if it fits. Without priorities that is "running first, then waiting".
- Waiting sequences never overtake each other, so a large one at the head is not passed for ever by small ones.
- A sequence short of blocks preempts the last one in the order, be it itself. Whoever is preempted has therefore not
  been scheduled in this step, and its full blocks were computed in earlier ones: nothing needs to be taken back.
- So the first in the order, once running, is never preempted; alone it fits, as `add` checked. Every step with
  unfinished sequences computes at least one token, and no livelock is possible.
- A waiting sequence that comes before running ones (its priority says so) preempts those if that lets it in.

A step may be planned before the tokens of the step before it are known (`Sequence.pending_sample`). Such a token has
its place, position and block; only its id comes later, straight from the samples that the step before left on the
device. The cycle is `schedule` step N+1, launch it, `append_token` what step N sampled, `computed` step N+1. So:
- A sequence has at most one pending token, and it is not computed. All blocks up to `num_computed_tokens` hold known
  tokens, so whatever is registered, or swapped out on preemption, has its hash.
- A sequence that turns out to have ended, or is aborted, is passed over by `computed`: what step N+1 samples for it is
  never looked at, and the block that step N+1 writes for it is never registered.
- Its blocks are free at once although step N+1 may still write into them. Whoever gets them writes in step N+2 or
  later, which runs after step N+1 (`SchedulerOutput`). The same holds for blocks of preempted sequences, and for
  prefix hits in blocks that step N+1 has yet to fill.
- A preempted sequence gets its pending token while it waits, and is not admitted before.
- One whose pending token is the last it may have is not scheduled again. So a step is wasted only on one that ends
  for what the token turns out to be.
"""

import time
from collections.abc import Callable

from serve_paged.core.admission import AdmissionGuard
from serve_paged.core.block_hash import private_root
from serve_paged.core.block_pool import BlockPool, num_blocks_for
from serve_paged.core.lines import Lines
from serve_paged.core.preemption import PreemptionCosts, PreemptionPolicy
from serve_paged.core.priority import place_in_line
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput, SchedulerStats, TokenSlot
from serve_paged.core.sequence import FinishReason, Sequence, SequenceStatus
from serve_paged.core.sequence_blocks import SequenceBlocks


class Scheduler:
    """The sequences of one engine: waiting in line, or running with blocks of `pool`."""

    def __init__(
        self,
        pool: BlockPool,
        *,
        block_size: int,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        watermark: float = 0.01,
        ageing_s: float = 10.0,
        preemption: PreemptionPolicy = "auto",
        prefix_caching: bool = True,
        clock: Callable[[], float] = time.monotonic,
        costs: PreemptionCosts | None = None,
    ) -> None:
        self.pool = pool
        self.stats = SchedulerStats()
        self.guard = AdmissionGuard(
            block_size=block_size, max_num_seqs=max_num_seqs, num_usable_blocks=pool.num_usable, watermark=watermark
        )
        self.blocks = SequenceBlocks(pool, self.stats, block_size=block_size, policy=preemption, costs=costs)
        self._lines = Lines()
        self._block_size = block_size
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._ageing_s = ageing_s
        self._prefix_caching = prefix_caching
        self._clock = clock
        self._num_added = 0

    @property
    def running(self) -> list[Sequence]:
        """Running sequences, in order of service. Not to be changed."""
        return self._lines.running

    @property
    def waiting(self) -> list[Sequence]:
        """Waiting and preempted sequences, in order of service. Not to be changed."""
        return self._lines.waiting

    @property
    def block_size(self) -> int:
        """Tokens per block."""
        return self._block_size

    @property
    def max_num_seqs(self) -> int:
        """Sequences that may run at a time."""
        return self._max_num_seqs

    @property
    def num_running(self) -> int:
        """Running sequences, choices not forked yet included."""
        return self._lines.num_running

    @property
    def num_waiting(self) -> int:
        """Waiting and preempted sequences, choices not forked yet included."""
        return self._lines.num_waiting

    def has_unfinished(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._lines.running or self._lines.waiting)

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence. Raises `InvalidRequest` or `RequestTooLong` if it could not be served even alone."""
        self.guard.check_possible(seq)
        self._num_added += 1
        for choice in (seq, *seq.siblings):
            choice.order = place_in_line(
                seq.priority, seq.arrival_time, self._ageing_s, serial=self._num_added, choice=choice.choice
            )
        self._lines.join(seq)
        if not self._prefix_caching:  # its own blocks may still come back from the host
            seq.cache_root = private_root(seq.cache_root, self._num_added)
            seq.block_hashes.clear()
        self.blocks.extend_hashes(seq)

    def abort(self, request_id: str) -> list[Sequence]:
        """End every live sequence of a request; those that were live. An unknown id is one that has ended: none."""
        live = self._lines.of_request(request_id)
        for seq in live:
            self.finish(seq, FinishReason.ABORT)
        return live

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence, and choices not forked from it yet, and give its blocks back. The first reason stays."""
        if seq.finished:
            return
        for ended in self._lines.leave(seq):
            self.blocks.release(ended)
            ended.status = SequenceStatus.FINISHED
            ended.finish_reason = reason
            ended.pending_sample = None
            self.stats.num_finished[reason.value] = self.stats.num_finished.get(reason.value, 0) + 1
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.guard.output_lengths.record(seq.num_output_tokens)

    def schedule(self) -> SchedulerOutput:
        """Plan the next step. Blocks are handed out here; the copies it lists and the forward pass must follow."""
        out = SchedulerOutput()
        budget = self._max_num_batched_tokens
        running, waiting = self._lines.running, self._lines.waiting
        admitting = True
        index = 0
        while budget:
            head = waiting[0] if admitting and waiting and not out.preempted else None
            if head is not None and (index == len(running) or head.order < running[index].order):
                admitting = self._admit(head, index, out)  # it is now running[index], and next
                continue
            if index == len(running):
                break
            seq = running[index]
            num_tokens = seq.num_tokens
            complete = num_tokens >= seq.max_num_tokens  # it ends as soon as its pending token is known
            num_new = 0 if complete else min(num_tokens - seq.num_computed_tokens, budget)
            if not self._make_room(seq, num_new, out):
                break  # it was the last, and had to go
            if num_new:
                needs_token = seq.num_computed_tokens + num_new == num_tokens
                out.scheduled.append(ScheduledSequence(seq, num_new, needs_token, seq.pending_sample))
                budget -= num_new
            index += 1
        self.pool.end_step()
        return out

    def computed(self, output: SchedulerOutput) -> list[TokenSlot]:
        """Take note that a step has been launched; who samples a token from it, in order, each now pending.

        Choices whose prompt is now computed are forked. Sequences that ended since `schedule` are passed over. No
        token of an earlier step may be pending any more.
        """
        slots: list[TokenSlot] = []
        for row, entry in enumerate(output.scheduled):
            seq = entry.seq
            if seq.status is not SequenceStatus.RUNNING:
                continue
            self.blocks.filled(seq, entry.num_new_tokens)
            if entry.needs_token:
                slots.append(TokenSlot(seq, row))
                if seq.siblings:
                    slots += [TokenSlot(child, row) for child in self._fork(seq)]
        for index, slot in enumerate(slots):
            slot.seq.pending_sample = index
        return slots

    def append_token(self, seq: Sequence, token_id: int) -> None:
        """The pending token of a sequence is known."""
        assert seq.pending_sample is not None, "this sequence samples nothing"
        seq.pending_sample = None
        seq.output_token_ids.append(token_id)
        if seq.num_tokens % self._block_size == 0:
            self.blocks.extend_hashes(seq)

    def check(self) -> None:
        """Assert every invariant of the lines and of the pool; between steps."""
        self.pool.check([seq.block_table for seq in self.running])
        self._lines.check()
        for seq in self.running:
            num_known = seq.num_prompt_tokens + seq.num_output_tokens
            assert len(seq.block_hashes) == num_known // self._block_size
            assert seq.pending_sample is None or seq.num_computed_tokens == num_known, "computed past what is pending"
            assert num_blocks_for(seq.num_computed_tokens, self._block_size) <= len(seq.block_table)
        assert self.num_running <= self._max_num_seqs, "more sequences than seats"

    def _admit(self, seq: Sequence, index: int, out: SchedulerOutput) -> bool:
        """Let the head of the waiting line run, as `running[index]`; false if it has to wait."""
        if index == len(self.running) and not self.guard.has_seats_for(seq, self.running):
            return False  # the usual reason, found out before anything dear
        if seq.pending_sample is not None:
            return False
        hits = self.blocks.match_prefix(seq)
        if not self._fits(seq, hits):
            if not self._clear_the_way(seq, hits, index, out):
                return False
            hits = self.blocks.match_prefix(seq)  # preempting may have moved cached blocks
        self.blocks.start(seq, hits, out)
        self._lines.start_first(index)
        if seq.first_scheduled_time is None:
            seq.first_scheduled_time = self._clock()
            seq.num_cached_tokens = min(seq.num_computed_tokens, seq.num_prompt_tokens)
            self.stats.num_queried_tokens += seq.num_prompt_tokens
            self.stats.num_cached_tokens += seq.num_cached_tokens
        return True

    def _fits(self, seq: Sequence, hits: list[int]) -> bool:
        """Whether it fits beside all that run, and still will when they have written what they are expected to."""
        num_needed = self.guard.num_known_blocks(seq) - self.pool.num_taken(hits)
        num_free = self.pool.num_free
        return self.guard.fits_now(seq, num_needed, self.running, num_free) and self.guard.fits_later(
            seq, num_needed, self.running, num_free
        )

    def _fits_before(self, seq: Sequence, index: int) -> bool:
        """Whether it fits now as `running[index]`; nothing is promised to those after it, who can be preempted."""
        num_needed = self.guard.num_known_blocks(seq) - self.pool.num_taken(self.blocks.match_prefix(seq))
        return self.guard.fits_now(seq, num_needed, self.running, self.pool.num_free, first=index)

    def _clear_the_way(self, seq: Sequence, hits: list[int], index: int, out: SchedulerOutput) -> bool:
        """Preempt those after `seq` in the order, the last first, until it fits; none if that would not be enough."""
        before = self.running[:index]
        if index == len(self.running):
            return False
        held = {block for other in before for block in other.block_table}
        num_needed = self.guard.num_known_blocks(seq) - sum(block in held for block in hits)
        if not self.guard.fits_now(seq, num_needed, before, self.pool.num_usable - len(held)):
            return False
        while index < len(self.running) and not self._fits_before(seq, index):
            self._preempt_last(out)
        return self._fits_before(seq, index)

    def _make_room(self, seq: Sequence, num_new: int, out: SchedulerOutput) -> bool:
        """Give a running sequence blocks for its next tokens; false if it was preempted itself for want of them."""
        while not self.blocks.grow(seq, num_new, out):
            if self._preempt_last(out) is seq:
                return False
        return True

    def _preempt_last(self, out: SchedulerOutput) -> Sequence:
        """Take all blocks from the last running sequence, which waits again."""
        seq = self._lines.stop_last()
        self.blocks.give_up(seq, out)
        seq.num_preemptions += 1
        out.preempted.append(seq)
        return seq

    def _fork(self, parent: Sequence) -> list[Sequence]:
        """Let the other choices run on the parent's blocks; whoever writes into a shared tail first copies it."""
        children = self._lines.fork(parent)
        for child in children:
            self.blocks.share(parent, child)
            child.num_cached_tokens = parent.num_cached_tokens
            child.first_scheduled_time = parent.first_scheduled_time
        return children
