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
"""

import time
from bisect import insort
from collections.abc import Callable
from operator import attrgetter

from serve_paged.core.admission import AdmissionGuard
from serve_paged.core.block_hash import private_root
from serve_paged.core.block_pool import BlockPool, num_blocks_for
from serve_paged.core.errors import InvalidRequest
from serve_paged.core.preemption import PreemptionCosts, PreemptionPolicy
from serve_paged.core.priority import place_in_line
from serve_paged.core.schedule_output import ScheduledSequence, SchedulerOutput, SchedulerStats, TokenSlot
from serve_paged.core.sequence import FinishReason, Sequence, SequenceStatus
from serve_paged.core.sequence_blocks import SequenceBlocks

_order = attrgetter("order")


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
        self.running: list[Sequence] = []  # in order
        self.stats = SchedulerStats()
        self.guard = AdmissionGuard(
            block_size=block_size, max_num_seqs=max_num_seqs, num_usable_blocks=pool.num_usable, watermark=watermark
        )
        self.blocks = SequenceBlocks(pool, self.stats, block_size=block_size, policy=preemption, costs=costs)
        self._block_size = block_size
        self._max_num_batched_tokens = max_num_batched_tokens
        self._ageing_s = ageing_s
        self._prefix_caching = prefix_caching
        self._clock = clock
        self._waiting: list[Sequence] = []  # in order
        self._requests: dict[str, list[Sequence]] = {}  # every live sequence
        self._num_added = 0

    @property
    def num_running(self) -> int:
        """Running sequences, choices not forked yet included."""
        return sum(1 + len(seq.siblings) for seq in self.running)

    @property
    def num_waiting(self) -> int:
        """Waiting and preempted sequences, choices not forked yet included."""
        return sum(1 + len(seq.siblings) for seq in self._waiting)

    def has_unfinished(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.running or self._waiting)

    def add(self, seq: Sequence) -> None:
        """Queue a new sequence. Raises `InvalidRequest` or `RequestTooLong` if it could not be served even alone."""
        self.guard.check_possible(seq)
        live = self._requests.get(seq.request_id, [])
        if {other.choice for other in live} & {seq.choice, *(sibling.choice for sibling in seq.siblings)}:
            raise InvalidRequest(f"request {seq.request_id!r} is already being served", "request_id")
        self._num_added += 1
        if not self._prefix_caching:  # its own blocks may still come back from the host
            seq.cache_root = private_root(seq.cache_root, self._num_added)
            seq.block_hashes.clear()
        for choice in (seq, *seq.siblings):
            choice.order = place_in_line(
                seq.priority, seq.arrival_time, self._ageing_s, serial=self._num_added, choice=choice.choice
            )
        self.blocks.extend_hashes(seq)
        self._requests[seq.request_id] = [*live, seq, *seq.siblings]
        insort(self._waiting, seq, key=_order)

    def abort(self, request_id: str) -> list[Sequence]:
        """End every live sequence of a request; those that were live. An unknown id is one that has ended: none."""
        live = list(self._requests.get(request_id, ()))
        for seq in live:
            self.finish(seq, FinishReason.ABORT)
        return live

    def finish(self, seq: Sequence, reason: FinishReason) -> None:
        """End a sequence, and choices not forked from it yet, and give its blocks back. The first reason stays."""
        if seq.finished:
            return
        for sibling in seq.siblings:
            self._end(sibling, reason)
        seq.siblings = []
        if seq.status is SequenceStatus.RUNNING:
            self.running.remove(seq)
            self.blocks.release(seq)
        else:
            self._leave_line(seq)
        if reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.guard.output_lengths.record(seq.num_output_tokens)
        self._end(seq, reason)

    def schedule(self) -> SchedulerOutput:
        """Plan the next step. Blocks are handed out here; the copies it lists and the forward pass must follow."""
        out = SchedulerOutput()
        budget = self._max_num_batched_tokens
        running, waiting = self.running, self._waiting
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
            num_new = min(num_tokens - seq.num_computed_tokens, budget)
            if not self._make_room(seq, num_new, out):
                break  # it was the last, and had to go
            if num_new:
                needs_token = seq.num_computed_tokens + num_new == num_tokens
                out.scheduled.append(ScheduledSequence(seq, num_new, needs_token))
                budget -= num_new
            index += 1
        self.pool.end_step()
        return out

    def computed(self, output: SchedulerOutput) -> list[TokenSlot]:
        """Take note that a step has run; who samples a token from it, in order.

        Choices whose prompt is now computed are forked. Sequences that ended since `schedule` are passed over.
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
        return slots

    def append_token(self, seq: Sequence, token_id: int) -> None:
        """A sampled token joins the sequence."""
        seq.output_token_ids.append(token_id)
        if seq.num_tokens % self._block_size == 0:
            self.blocks.extend_hashes(seq)

    def check(self) -> None:
        """Assert every invariant of the lines and of the pool; between steps."""
        self.pool.check([seq.block_table for seq in self.running])
        for line in (self.running, self._waiting):
            assert line == sorted(line, key=_order), "a line is out of order"
        live = [seq for seqs in self._requests.values() for seq in seqs]
        unforked = [sibling for seq in (*self.running, *self._waiting) for sibling in seq.siblings]
        assert {id(seq) for seq in live} == {id(seq) for seq in (*self.running, *self._waiting, *unforked)}
        assert len(live) == len(self.running) + len(self._waiting) + len(unforked), "a sequence stands in line twice"
        assert all(self._requests.values()), "an ended request is remembered"
        for seq in self.running:
            assert seq.status is SequenceStatus.RUNNING
            assert len(seq.block_hashes) == seq.num_tokens // self._block_size
            assert num_blocks_for(seq.num_computed_tokens, self._block_size) <= len(seq.block_table)
        for seq in (*self._waiting, *unforked):
            assert seq.status in (SequenceStatus.WAITING, SequenceStatus.PREEMPTED)
            assert not seq.block_table, "a waiting sequence holds blocks"
            assert seq.num_computed_tokens == 0
        assert self.guard.seats_left(self.running) >= 0, "more sequences than seats"

    def _admit(self, seq: Sequence, index: int, out: SchedulerOutput) -> bool:
        """Let the head of the waiting line run, as `running[index]`; false if it has to wait."""
        hits = self.blocks.match_prefix(seq)
        if not self._fits(seq, hits, expected=True):
            if not self._clear_the_way(seq, hits, index, out):
                return False
            hits = self.blocks.match_prefix(seq)  # preempting may have moved cached blocks
        self.blocks.start(seq, hits, out)
        seq.status = SequenceStatus.RUNNING
        del self._waiting[0]
        self.running.insert(index, seq)
        if seq.first_scheduled_time is None:
            seq.first_scheduled_time = self._clock()
            seq.num_cached_tokens = min(seq.num_computed_tokens, seq.num_prompt_tokens)
            self.stats.num_queried_tokens += seq.num_prompt_tokens
            self.stats.num_cached_tokens += seq.num_cached_tokens
        return True

    def _fits(self, seq: Sequence, hits: list[int], *, expected: bool) -> bool:
        """Whether it fits beside all that run now; `expected`: and beside what they are expected to write."""
        num_needed = self.guard.num_known_blocks(seq) - self.pool.num_referenced(hits)
        fits = self.guard.fits_now(seq, num_needed, self.running, self.pool.num_free)
        if fits and expected:
            return self.guard.fits_later(seq, num_needed, self.running, self.pool.num_free)
        return fits

    def _clear_the_way(self, seq: Sequence, hits: list[int], index: int, out: SchedulerOutput) -> bool:
        """Preempt those after `seq` in the order, the last first, until it fits; none if that would not be enough."""
        before = self.running[:index]
        if index == len(self.running):
            return False
        held = {block for other in before for block in other.block_table}
        num_needed = self.guard.num_known_blocks(seq) - sum(block in held for block in hits)
        if not self.guard.fits_now(seq, num_needed, before, self.pool.num_usable - len(held)):
            return False
        while index < len(self.running) and not self._fits(seq, self.blocks.match_prefix(seq), expected=False):
            self._preempt_last(out)
        return self._fits(seq, self.blocks.match_prefix(seq), expected=False)

    def _make_room(self, seq: Sequence, num_new: int, out: SchedulerOutput) -> bool:
        """Give a running sequence blocks for its next tokens; false if it was preempted itself for want of them."""
        while not self.blocks.grow(seq, num_new, out):
            if self._preempt_last(out) is seq:
                return False
        return True

    def _preempt_last(self, out: SchedulerOutput) -> Sequence:
        """Take all blocks from the last running sequence, which waits again."""
        seq = self.running.pop()
        self.blocks.give_up(seq, out)
        seq.num_preemptions += 1
        seq.status = SequenceStatus.PREEMPTED
        insort(self._waiting, seq, key=_order)
        out.preempted.append(seq)
        return seq

    def _fork(self, parent: Sequence) -> list[Sequence]:
        """Let the other choices run on the parent's blocks; whoever writes into a shared tail first copies it."""
        children, parent.siblings = parent.siblings, []
        for child in children:
            self.blocks.share(parent, child)
            child.num_cached_tokens = parent.num_cached_tokens
            child.first_scheduled_time = parent.first_scheduled_time
            child.status = SequenceStatus.RUNNING
            insort(self.running, child, key=_order)
        return children

    def _leave_line(self, seq: Sequence) -> None:
        for other in self._requests[seq.request_id]:
            if seq in other.siblings:  # not forked yet: it stands in line with its parent
                other.siblings.remove(seq)
                return
        self._waiting.remove(seq)

    def _end(self, seq: Sequence, reason: FinishReason) -> None:
        seq.status = SequenceStatus.FINISHED
        seq.finish_reason = reason
        self.stats.num_finished[reason.value] = self.stats.num_finished.get(reason.value, 0) + 1
        live = self._requests[seq.request_id]
        live.remove(seq)
        if not live:
            del self._requests[seq.request_id]
