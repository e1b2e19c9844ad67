"""The scheduler out of blocks."""

import pytest

from serve_paged.core.preemption import PreemptionCosts
from serve_paged.core.sequence import SequenceStatus
from tests.core.simulated_engine import SimulatedEngine, sampled_token


def crowded(num_host_blocks: int = 0, **options) -> SimulatedEngine:
    """Two sequences that start in 6 blocks and want 10 in the end."""
    engine = SimulatedEngine(
        num_blocks=6, num_host_blocks=num_host_blocks, options={"watermark": 0.0, "preemption": "recompute"} | options
    )
    engine.add("a", 9, max_tokens=11)
    engine.add("b", 9, max_tokens=11)
    return engine


def step_to_preemption(engine: SimulatedEngine):
    for _ in range(50):
        out = engine.step()
        if out.preempted:
            return out
    raise AssertionError("nothing was preempted")


def test_the_last_in_order_is_preempted():
    engine = crowded()
    out = step_to_preemption(engine)
    assert [seq.request_id for seq in out.preempted] == ["b"]
    assert [entry.seq.request_id for entry in out.scheduled] == ["a"]
    assert out.preempted[0].status is SequenceStatus.PREEMPTED
    assert out.preempted[0].block_table == []


def test_a_lower_priority_is_preempted_even_if_it_came_first():
    engine = SimulatedEngine(num_blocks=6, options={"watermark": 0.0, "preemption": "recompute"})
    engine.add("first", 9, max_tokens=11, priority=1)
    engine.add("second", 9, max_tokens=11, priority=0)
    assert [seq.request_id for seq in step_to_preemption(engine).preempted] == ["first"]


def test_a_preempted_sequence_ends_with_the_same_tokens():
    engine = crowded()
    engine.run()
    for seq in engine.finished:
        assert seq.output_token_ids == [sampled_token(seq.seed, 0, position) for position in range(11)]
    assert sum(seq.num_preemptions for seq in engine.finished) == engine.scheduler.stats.num_preemptions_recompute > 0


def test_the_preempted_do_not_return_in_the_step_that_preempted_them():
    engine = SimulatedEngine(num_blocks=6, options={"watermark": 0.0, "preemption": "recompute"})
    for name in "ab":  # computed twice; without its copy, b finds a's and would fit again at once
        engine.add(name, list(range(9)), max_tokens=11)
    out = step_to_preemption(engine)
    assert [entry.seq.request_id for entry in out.scheduled] == ["a"]
    assert [entry.seq.request_id for entry in engine.step().scheduled] == ["a", "b"]


def test_by_recompute_nothing_is_copied():
    engine = crowded(num_host_blocks=10)
    out = step_to_preemption(engine)
    assert out.swap_out == []
    engine.run()
    assert engine.scheduler.stats.num_swapped_in_blocks == 0


def test_by_swap_full_blocks_are_copied_out_and_come_back_as_a_prefix_hit():
    engine = crowded(num_host_blocks=10, preemption="swap")
    out = step_to_preemption(engine)
    victim = out.preempted[0]
    assert len(out.swap_out) == 3  # 12 tokens computed in full blocks
    while victim.status is not SequenceStatus.RUNNING:
        out = engine.step()
    returned = next(entry for entry in out.scheduled if entry.seq is victim)
    assert len(out.swap_in) > 0
    assert returned.num_new_tokens <= victim.num_tokens - 12
    engine.run()


def test_blocks_on_the_host_already_are_not_copied_out_again():
    engine = SimulatedEngine(
        num_blocks=9, num_host_blocks=20, options={"watermark": 0.0, "preemption": "swap"}, max_num_seqs=3
    )
    for name in "abc":
        engine.add(name, 9, max_tokens=24)
    engine.run()
    stats = engine.scheduler.stats
    preempted_often = max(seq.num_preemptions for seq in engine.finished)
    assert preempted_often >= 2
    assert stats.num_swapped_out_blocks <= 3 * 8  # each block of each sequence once


def test_a_host_tier_too_small_for_all_keeps_what_it_can():
    engine = crowded(num_host_blocks=2, preemption="swap")
    out = step_to_preemption(engine)
    assert len(out.swap_out) == 2
    engine.run()
    assert engine.scheduler.stats.num_preemptions_swap > 0


def test_without_a_host_tier_swap_means_recompute():
    engine = crowded(num_host_blocks=0, preemption="swap")
    engine.run()
    assert engine.scheduler.stats.num_preemptions_swap == 0
    assert engine.scheduler.stats.num_preemptions_recompute > 0


@pytest.mark.parametrize(("block_s", "kind"), [(1e-6, "swap"), (10.0, "recompute")])
def test_auto_takes_the_cheaper_by_measured_costs(block_s: float, kind: str):
    costs = PreemptionCosts()
    costs.record_swap(1, block_s)
    costs.record_compute(1, 1e-3)
    engine = crowded(num_host_blocks=10, preemption="auto", costs=costs)
    step_to_preemption(engine)
    assert engine.scheduler.stats.num_preemptions_swap == (kind == "swap")
    assert engine.scheduler.stats.num_preemptions_recompute == (kind == "recompute")


def test_a_device_block_swapped_out_is_reused_in_the_same_step():
    engine = crowded(num_host_blocks=10, preemption="swap")
    out = step_to_preemption(engine)
    assert {block for block, _ in out.swap_out} & set(out.scheduled[0].seq.block_table)
    engine.run()  # and what was swapped out is right when it comes back: memory is checked in every step
    assert engine.scheduler.stats.num_swapped_in_blocks > 0


def test_a_block_swapped_out_is_the_target_of_a_swap_in_of_the_same_step():
    engine = crowded(num_host_blocks=10, preemption="swap")
    host_only = step_to_preemption(engine).preempted[0]
    engine.scheduler.abort("b")
    engine.scheduler.abort("a")
    engine.add("filler", 21, max_tokens=3)
    engine.step()  # all 6 blocks are its own now
    engine.add("urgent", host_only.prompt_token_ids, max_tokens=2, priority=-1)
    out = engine.step()
    assert [seq.request_id for seq in out.preempted] == ["filler"]
    assert {block for block, _ in out.swap_out} & {block for _, block in out.swap_in}
    engine.run()


def test_prompt_logprobs_in_progress_are_recomputed():
    engine = SimulatedEngine(
        num_blocks=8, num_host_blocks=10, max_num_batched_tokens=4, options={"watermark": 0.0, "preemption": "swap"}
    )
    engine.add("a", 4, max_tokens=20)
    engine.step()
    seq = engine.add("b", 22, max_tokens=2, prompt_logprobs=1)
    out = step_to_preemption(engine)
    assert out.preempted == [seq]
    assert out.swap_out == []
    computed = 0
    while engine.scheduler.has_unfinished():
        computed += sum(entry.num_new_tokens for entry in engine.step().scheduled if entry.seq is seq)
    assert computed >= 22


def test_an_urgent_newcomer_takes_the_place_of_the_last():
    engine = SimulatedEngine(num_blocks=8, options={"watermark": 0.0, "preemption": "recompute"})
    engine.add("first", 11, max_tokens=4)
    engine.add("second", 11, max_tokens=4)
    engine.step()
    engine.add("urgent", 14, max_tokens=2, priority=-1)
    out = engine.step()
    assert [seq.request_id for seq in out.preempted] == ["second"]
    assert [entry.seq.request_id for entry in out.scheduled] == ["urgent", "first"]
    engine.run()


def test_an_urgent_newcomer_that_fits_now_preempts_nobody_for_their_future():
    engine = SimulatedEngine(num_blocks=10, max_num_batched_tokens=8, options={"watermark": 0.0})
    engine.add("long", 30, max_tokens=2)  # 8 blocks, of which the first chunk takes 2
    engine.step()
    engine.add("urgent", 11, max_tokens=1, priority=-1)  # 3 blocks
    out = engine.step()
    assert out.preempted == []
    assert [entry.seq.request_id for entry in out.scheduled] == ["urgent"]
    engine.run()
    assert not any(seq.num_preemptions for seq in engine.finished)


def test_an_urgent_newcomer_takes_a_seat():
    engine = SimulatedEngine(max_num_seqs=2)
    engine.add("first", 4, max_tokens=9)
    engine.add("second", 4, max_tokens=9)
    engine.step()
    engine.add("urgent", 4, max_tokens=2, priority=-1)
    out = engine.step()
    assert [seq.request_id for seq in out.preempted] == ["second"]
    assert [entry.seq.request_id for entry in out.scheduled] == ["urgent", "first"]
    engine.run()


def test_nobody_is_preempted_for_one_whom_it_would_not_let_in():
    engine = SimulatedEngine(num_blocks=8, options={"watermark": 0.0, "ageing_s": 10.0})
    engine.add("most urgent", 19, max_tokens=3, priority=-2)
    engine.add("usual", 7, max_tokens=3)
    engine.step()
    engine.add("urgent", 15, max_tokens=2, priority=-1)  # 4 blocks; without "usual" there would be 3
    out = engine.step()
    assert out.preempted == []
    assert [entry.seq.request_id for entry in out.scheduled] == ["most urgent", "usual"]
    engine.run()


def test_later_arrivals_of_equal_priority_preempt_nobody():
    engine = SimulatedEngine(num_blocks=8, max_num_seqs=1, options={"watermark": 0.0})
    engine.add("first", 11, max_tokens=4)
    engine.step()
    engine.clock.now = 1.0
    engine.add("second", 11, max_tokens=4)
    while engine.scheduler.has_unfinished():
        assert engine.step().preempted == []
