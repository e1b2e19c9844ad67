"""Steps planned before the tokens of the one before them are known."""

from serve_paged.core.schedule_output import SchedulerOutput
from serve_paged.core.sequence import FinishReason, Sequence, SequenceStatus
from tests.core.simulated_engine import SimulatedEngine, sampled_token


def ahead(**settings) -> SimulatedEngine:
    return SimulatedEngine(run_ahead=True, **settings)


def token_at(seq: Sequence, position: int) -> int:
    return sampled_token(seq.seed, seq.choice, position)


def test_a_step_is_planned_for_a_token_that_is_not_known_yet():
    engine = ahead()
    seq = engine.add("a", 6)
    engine.step()
    assert (seq.output_token_ids, seq.pending_sample, seq.num_tokens) == ([], 0, 7)
    [entry] = engine.scheduler.schedule().scheduled
    assert (entry.num_new_tokens, entry.needs_token, entry.pending_sample) == (1, True, 0)
    assert seq.tokens(6, 7) == []


def test_a_pending_token_has_its_block():
    engine = ahead()
    seq = engine.add("a", 8)
    engine.step()
    assert len(seq.block_table) == 2
    engine.scheduler.schedule()
    assert len(seq.block_table) == 3


def test_each_pending_token_is_found_by_its_place_among_the_samples():
    engine = ahead()
    engine.add("a", 6, n=3)
    engine.add("b", 6)
    engine.step()
    out = engine.step()
    assert [(entry.seq.request_id, entry.seq.choice, entry.pending_sample) for entry in out.scheduled] == [
        ("a", 0, 0),
        ("a", 1, 1),
        ("a", 2, 2),
        ("b", 0, 3),
    ]


def test_no_step_is_run_for_a_sequence_whose_last_token_is_in_flight():
    engine = ahead()
    seq = engine.add("a", 6, max_tokens=3)
    assert [engine.step().num_tokens for _ in range(4)] == [6, 1, 1, 0]
    assert seq.finish_reason is FinishReason.LENGTH
    assert engine.num_wasted_tokens == 0
    assert not engine.busy


def test_an_end_seen_late_wastes_one_token_of_computing_and_none_is_added():
    engine = ahead()
    seq = engine.add("a", 6, max_tokens=9)
    engine.stop_tokens = frozenset([token_at(seq, 2)])
    engine.run()
    assert seq.output_token_ids == [token_at(seq, position) for position in range(3)]
    assert seq.finish_reason is FinishReason.STOP
    assert engine.num_wasted_tokens == 1
    assert engine.pool.num_free == engine.num_blocks


def test_a_block_with_a_pending_token_is_not_found_before_the_token_is_known():
    engine = ahead()
    seq = engine.add("a", 6, max_tokens=9)
    engine.step()
    engine.step()  # the second block lacks its last token, which is pending
    out = engine.scheduler.schedule()
    engine.launch(out)  # it is full now
    assert len(engine.pool.registered_hashes()) == 1
    engine.end_step(out)
    assert engine.pool.registered_hashes() == seq.block_hashes
    assert len(seq.block_hashes) == 2


def test_the_block_that_a_step_in_flight_fills_for_an_ended_sequence_is_never_found():
    engine = ahead()
    seq = engine.add("a", 6, max_tokens=9)
    engine.stop_tokens = frozenset([token_at(seq, 1)])  # the last token of its second block
    engine.run()
    assert seq.num_tokens == 8
    assert engine.pool.registered_hashes() == seq.block_hashes[:1]


def test_blocks_that_a_step_in_flight_still_writes_are_handed_out_and_stay_right():
    engine = ahead(num_blocks=3, options={"watermark": 0.0})
    engine.add("a", 6, max_tokens=6)
    engine.step()
    out = engine.scheduler.schedule()
    engine.launch(out)
    engine.scheduler.abort("a")  # the launched step has not run yet
    engine.add("b", 9, max_tokens=3)
    engine.end_step(out)
    assert engine.step().num_tokens == 9  # checks the memory when it runs
    assert engine.stream, "it should not have run by now"
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["b"]


def test_an_aborted_sequence_gets_no_token():
    engine = ahead()
    seq = engine.add("a", 6)
    engine.step()
    engine.scheduler.abort("a")
    engine.collect()
    assert (seq.output_token_ids, seq.pending_sample) == ([], None)


def preempted_with_a_pending_token(**settings) -> tuple[SimulatedEngine, Sequence, SchedulerOutput]:
    """A sequence that lost its blocks to an urgent one after its fourth token was launched and before it was read."""
    engine = ahead(num_blocks=5, num_host_blocks=5, **settings)
    seq = engine.add("a", 6, max_tokens=9)
    for _ in range(4):
        engine.step()
    engine.add("b", 16, max_tokens=3, priority=-9)
    out = engine.scheduler.schedule()
    assert out.preempted == [seq]
    engine.launch(out)
    assert (seq.status, seq.num_output_tokens, seq.pending_sample) == (SequenceStatus.PREEMPTED, 3, 0)
    return engine, seq, out


def test_a_preempted_sequence_receives_its_pending_token_and_goes_on():
    for policy in ("swap", "recompute"):
        engine, seq, out = preempted_with_a_pending_token(options={"preemption": policy, "watermark": 0.0})
        engine.end_step(out)
        assert (seq.status, seq.num_output_tokens, seq.pending_sample) == (SequenceStatus.PREEMPTED, 4, None)
        engine.run()
        assert seq.output_token_ids == [token_at(seq, position) for position in range(9)]


def test_a_preempted_sequence_may_end_with_its_pending_token():
    engine, seq, _ = preempted_with_a_pending_token()
    engine.stop_tokens = frozenset([token_at(seq, 3)])
    engine.collect()
    assert seq.finish_reason is FinishReason.STOP
    assert engine.scheduler.num_waiting == 0


def test_a_preempted_sequence_is_not_admitted_before_its_token_is_known():
    engine, seq, _ = preempted_with_a_pending_token()
    engine.scheduler.abort("b")
    assert engine.scheduler.schedule().scheduled == []
    engine.collect()
    assert [entry.seq for entry in engine.scheduler.schedule().scheduled] == [seq]


def test_only_one_token_of_a_sequence_may_be_pending():
    engine = ahead()
    seq = engine.add("a", 6)
    engine.step()
    engine.step()
    assert (seq.num_output_tokens, seq.pending_sample, seq.num_computed_tokens) == (1, 0, 7)
