"""Nobody starves and nothing locks."""

from tests.core.simulated_engine import SimulatedEngine


def test_a_large_request_is_not_passed_for_ever_by_small_ones():
    engine = SimulatedEngine(num_blocks=12, max_num_seqs=8)
    for index in range(4):
        engine.add(f"small {index}", 8, max_tokens=6)
    large = engine.add("large", 40, max_tokens=6)
    for index in range(40):
        engine.clock.now += 1.0
        engine.add(f"later {index}", 8, max_tokens=6)
        engine.step()
        if large.finished:
            break
    assert large.finished
    assert not any(seq.request_id.startswith("later") for seq in engine.finished)
    engine.run()


def test_a_low_priority_is_served_while_higher_ones_keep_arriving():
    engine = SimulatedEngine(max_num_seqs=1, options={"ageing_s": 5.0})
    low = engine.add("low", 4, max_tokens=2, priority=3)
    overtaking = 0
    for index in range(100):
        engine.add(f"high {index}", 4, max_tokens=2, priority=0)
        engine.clock.now += 1.0
        engine.step()
        if low.finished:
            break
    overtaking = len(engine.finished) - 1
    assert low.finished
    assert 0 < overtaking <= 15  # those that arrived within 3 * 5 s after it


def test_the_first_in_order_makes_progress_in_every_step_and_is_never_preempted():
    engine = SimulatedEngine(
        num_blocks=6, num_host_blocks=4, max_num_batched_tokens=5, options={"watermark": 0.0, "preemption": "swap"}
    )
    for index in range(6):
        engine.add(f"r{index}", 9, max_tokens=12, n=2)
    num_steps = 0
    while engine.scheduler.has_unfinished():
        first = engine.scheduler.running[0] if engine.scheduler.running else None
        out = engine.step()
        if first is not None:
            assert out.scheduled[0].seq is first
            assert first not in out.preempted
        num_steps += 1
        assert num_steps < 500
    assert len(engine.finished) == 12


def test_everything_ends_in_bounded_time_when_each_fills_the_whole_pool():
    engine = SimulatedEngine(num_blocks=4, options={"watermark": 0.5})
    for index in range(8):
        engine.add(f"r{index}", 5, max_tokens=11)
    assert engine.run() <= 8 * 11 * 2


def test_a_budget_smaller_than_the_number_of_running_sequences_serves_the_first_in_order():
    engine = SimulatedEngine(max_num_seqs=4, max_num_batched_tokens=2)
    for index in range(4):
        engine.add(f"r{index}", 1, max_tokens=5)
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["r0", "r1", "r2", "r3"]
