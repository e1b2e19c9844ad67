"""Several choices of one prompt."""

from serve_paged.core.sequence import FinishReason, SequenceStatus
from tests.core.simulated_engine import SimulatedEngine, sampled_token


def test_choices_are_forked_when_the_prompt_is_computed_and_sample_from_its_logits():
    engine = SimulatedEngine()
    parent = engine.add("a", 6, n=3)
    children = list(parent.siblings)
    out = engine.scheduler.schedule()
    assert [entry.seq for entry in out.scheduled] == [parent]
    engine.execute(out)
    slots = engine.scheduler.computed(out)
    assert [(slot.seq, slot.row) for slot in slots] == [(parent, 0), (children[0], 0), (children[1], 0)]
    assert all(child.block_table == parent.block_table for child in children)
    assert all(child.status is SequenceStatus.RUNNING for child in children)
    assert parent.siblings == []


def test_choices_are_not_forked_before_the_last_chunk():
    engine = SimulatedEngine(max_num_batched_tokens=4)
    parent = engine.add("a", 6, n=2)
    engine.step()
    assert len(parent.siblings) == 1
    engine.step()
    assert parent.siblings == []


def test_full_blocks_stay_shared_and_the_tail_is_copied_by_all_but_the_last_to_write():
    engine = SimulatedEngine()
    parent = engine.add("a", 6, n=3, max_tokens=4)
    children = list(parent.siblings)
    engine.step()
    out = engine.step()
    assert len(out.copies) == 2
    assert len({seq.block_table[0] for seq in (parent, *children)}) == 1
    assert len({seq.block_table[1] for seq in (parent, *children)}) == 3
    engine.run()
    assert engine.scheduler.stats.num_copied_blocks == 2


def test_a_prompt_of_whole_blocks_is_forked_without_copies():
    engine = SimulatedEngine()
    engine.add("a", 8, n=3)
    engine.run()
    assert engine.scheduler.stats.num_copied_blocks == 0


def test_each_choice_gets_its_own_tokens():
    engine = SimulatedEngine()
    engine.add("a", 6, n=3, max_tokens=7)
    engine.run()
    assert len(engine.finished) == 3
    for seq in engine.finished:
        assert seq.output_token_ids == [sampled_token(seq.seed, seq.choice, position) for position in range(7)]
    assert engine.pool.num_free == engine.num_blocks


def test_choices_not_forked_yet_take_their_seats():
    engine = SimulatedEngine(max_num_seqs=4, max_num_batched_tokens=4)
    engine.add("a", 6, n=3)
    engine.add("b", 6, n=2)
    engine.step()
    assert engine.scheduler.num_running == 3
    assert engine.scheduler.num_waiting == 2
    engine.run()


def test_choices_not_forked_yet_are_preempted_with_their_parent():
    engine = SimulatedEngine(num_blocks=8, max_num_batched_tokens=3, options={"watermark": 0.0})
    engine.add("a", 3, max_tokens=24)
    engine.step()
    parent = engine.add("b", 20, n=2, max_tokens=2)
    while not (out := engine.step()).preempted:
        pass
    assert out.preempted == [parent]
    assert len(parent.siblings) == 1
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (1, 2)
    engine.run()
    assert sorted(seq.choice for seq in engine.finished) == [0, 0, 1]


def test_a_forked_choice_is_preempted_and_returns_on_its_own():
    engine = SimulatedEngine(num_blocks=6, options={"watermark": 0.0, "preemption": "recompute"})
    engine.add("a", 9, n=3, max_tokens=11)
    engine.run()
    assert engine.scheduler.stats.num_preemptions_recompute > 0
    for seq in engine.finished:
        assert seq.output_token_ids == [sampled_token(seq.seed, seq.choice, position) for position in range(11)]


def test_a_choice_that_fills_the_whole_pool_gets_it_from_its_siblings():
    engine = SimulatedEngine(num_blocks=5, options={"watermark": 0.0})
    engine.add("a", 9, n=4, max_tokens=11)  # each alone needs all 5 blocks
    engine.run()
    assert len(engine.finished) == 4


def test_a_copy_source_freed_by_preemption_is_not_overwritten_before_it_is_copied():
    engine = SimulatedEngine(num_blocks=6, num_host_blocks=8, options={"watermark": 0.0, "preemption": "swap"})
    engine.add("a", 9, n=2, max_tokens=8)
    engine.add("b", 9, max_tokens=8)
    sources = 0
    while engine.scheduler.has_unfinished():
        out = engine.step()  # checks the memory
        written = {block for _, block in out.swap_in}
        sources += len(out.copies)
        assert not written & {source for source, _ in out.copies}
    assert sources > 0


def test_the_finished_parent_leaves_its_children_running():
    engine = SimulatedEngine()
    parent = engine.add("a", 6, n=2, max_tokens=9)
    child = parent.siblings[0]
    engine.step()
    engine.scheduler.finish(parent, FinishReason.STOP)
    engine.run()
    assert parent.finish_reason is FinishReason.STOP
    assert child.finish_reason is FinishReason.LENGTH
    assert child.num_output_tokens == 9


def test_ending_a_parent_before_the_fork_ends_its_choices():
    engine = SimulatedEngine(max_num_batched_tokens=4)
    parent = engine.add("a", 6, n=2)
    child = parent.siblings[0]
    engine.step()
    engine.scheduler.finish(parent, FinishReason.ERROR)
    assert (parent.finish_reason, child.finish_reason) == (FinishReason.ERROR, FinishReason.ERROR)
    assert not engine.scheduler.has_unfinished()
    engine.check()


def test_one_choice_ended_before_the_fork_is_left_out_of_it():
    engine = SimulatedEngine(max_num_batched_tokens=4)
    parent = engine.add("a", 6, n=3)
    dropped, kept = parent.siblings
    engine.step()
    engine.scheduler.finish(dropped, FinishReason.ERROR)
    engine.check()
    engine.run()
    assert kept in engine.finished
    assert dropped.output_token_ids == []
