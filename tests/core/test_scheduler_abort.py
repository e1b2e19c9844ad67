"""Ending sequences at any time."""

import pytest

from serve_paged.core.sequence import FinishReason, SequenceStatus
from tests.core.simulated_engine import SimulatedEngine


def test_a_waiting_request_is_aborted():
    engine = SimulatedEngine(max_num_seqs=1)
    engine.add("a", 4)
    waiting = engine.add("b", 4, n=1)
    engine.step()
    assert engine.scheduler.abort("b") == [waiting]
    assert waiting.finish_reason is FinishReason.ABORT
    assert waiting.status is SequenceStatus.FINISHED
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["a"]


def test_a_running_request_is_aborted_and_its_blocks_are_free():
    engine = SimulatedEngine()
    seq = engine.add("a", 9)
    engine.step()
    engine.scheduler.abort("a")
    assert seq.block_table == []
    assert engine.pool.num_free == engine.num_blocks
    assert not engine.scheduler.has_unfinished()
    engine.check()


def test_a_preempted_request_is_aborted():
    engine = SimulatedEngine(num_blocks=6, options={"watermark": 0.0})
    engine.add("a", 9, max_tokens=11)
    engine.add("b", 9, max_tokens=11)
    while not (out := engine.step()).preempted:
        pass
    assert engine.scheduler.abort("b") == out.preempted
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["a"]


def test_all_choices_of_a_request_are_aborted_whether_forked_or_not():
    for num_steps in (1, 2):
        engine = SimulatedEngine(max_num_batched_tokens=4)
        parent = engine.add("a", 6, n=3)
        choices = [parent, *parent.siblings]
        for _ in range(num_steps):
            engine.step()
        assert engine.scheduler.abort("a") == choices
        assert {seq.finish_reason for seq in choices} == {FinishReason.ABORT}
        assert engine.pool.num_free == engine.num_blocks
        engine.check()


def test_only_live_choices_are_reported_as_aborted():
    engine = SimulatedEngine()
    parent = engine.add("a", 6, n=2, max_tokens=9)
    child = parent.siblings[0]
    engine.step()
    engine.scheduler.finish(parent, FinishReason.STOP)
    assert engine.scheduler.abort("a") == [child]
    assert parent.finish_reason is FinishReason.STOP


def test_aborting_an_unknown_request_does_nothing():
    assert SimulatedEngine().scheduler.abort("nobody") == []


@pytest.mark.parametrize("chunk", [4, 64])
def test_a_sequence_aborted_between_scheduling_and_computing_is_passed_over(chunk: int):
    engine = SimulatedEngine(max_num_batched_tokens=chunk)
    engine.add("a", 3, max_tokens=9)
    engine.step()
    engine.add("b", 6, n=2)
    out = engine.scheduler.schedule()
    engine.execute(out)
    engine.scheduler.abort("b")
    slots = engine.scheduler.computed(out)
    assert [(slot.seq.request_id, slot.row) for slot in slots] == [("a", 0)]
    engine.scheduler.append_token(slots[0].seq, 1)
    engine.check()


def test_a_row_keeps_its_number_when_one_before_it_is_gone():
    engine = SimulatedEngine()
    engine.add("a", 3)
    engine.add("b", 3)
    out = engine.scheduler.schedule()
    engine.execute(out)
    engine.scheduler.abort("a")
    assert [(slot.seq.request_id, slot.row) for slot in engine.scheduler.computed(out)] == [("b", 1)]


def test_blocks_of_an_aborted_sequence_cannot_be_found_if_their_step_was_not_counted():
    engine = SimulatedEngine()
    engine.add("a", list(range(10)))
    out = engine.scheduler.schedule()
    engine.scheduler.abort("a")
    engine.scheduler.computed(out)
    second = engine.add("b", list(range(10)))
    engine.step()
    assert second.num_cached_tokens == 0


def test_the_first_reason_stays():
    engine = SimulatedEngine()
    seq = engine.add("a", 4)
    engine.step()
    engine.scheduler.finish(seq, FinishReason.STOP)
    engine.scheduler.finish(seq, FinishReason.ERROR)
    assert seq.finish_reason is FinishReason.STOP
    assert engine.scheduler.stats.num_finished == {"stop": 1}


def test_ends_are_counted_by_reason():
    engine = SimulatedEngine()
    engine.add("a", 4, max_tokens=1)
    engine.run()
    engine.add("b", 4, n=2)
    engine.scheduler.abort("b")
    assert engine.scheduler.stats.num_finished == {"length": 1, "abort": 2}
