"""The scheduler when there is room for all: budget, chunks, order, prefix hits, resuming."""

from serve_paged.core.block_hash import extend_chain
from serve_paged.core.sequence import FinishReason, SequenceStatus
from tests.core.simulated_engine import SimulatedEngine, make_sequence, sampled_token


def tokens_of(out) -> dict[str, int]:
    return {entry.seq.request_id: entry.num_new_tokens for entry in out.scheduled}


def test_a_prompt_within_the_budget_is_computed_in_one_step_and_then_decoded():
    engine = SimulatedEngine()
    seq = engine.add("a", 10, max_tokens=3)
    assert [tokens_of(engine.step()) for _ in range(3)] == [{"a": 10}, {"a": 1}, {"a": 1}]
    assert seq.finish_reason is FinishReason.LENGTH
    assert seq.output_token_ids == [sampled_token(seq.seed, 0, position) for position in range(3)]
    assert engine.pool.num_free == engine.num_blocks


def test_a_long_prompt_is_computed_in_chunks_of_the_budget():
    engine = SimulatedEngine(max_num_batched_tokens=8)
    engine.add("a", 19, max_tokens=1)
    outputs = [engine.step() for _ in range(3)]
    assert [tokens_of(out) for out in outputs] == [{"a": 8}, {"a": 8}, {"a": 3}]
    assert [out.scheduled[0].needs_token for out in outputs] == [False, False, True]


def test_decoding_goes_on_beside_the_chunks_of_a_later_prompt():
    engine = SimulatedEngine(max_num_batched_tokens=8)
    engine.add("a", 4, max_tokens=10)
    engine.step()
    engine.add("b", 12, max_tokens=2)
    assert tokens_of(engine.step()) == {"a": 1, "b": 7}
    assert tokens_of(engine.step()) == {"a": 1, "b": 5}
    assert tokens_of(engine.step()) == {"a": 1, "b": 1}


def test_prompts_share_the_budget_in_order_of_arrival():
    engine = SimulatedEngine(max_num_batched_tokens=10)
    engine.add("late", 6, arrival_time=2.0)
    engine.add("early", 7, arrival_time=1.0)
    assert list(tokens_of(engine.step()).items()) == [("early", 7), ("late", 3)]


def test_a_lower_priority_number_goes_first():
    engine = SimulatedEngine(max_num_batched_tokens=6)
    engine.add("usual", 6)
    engine.add("urgent", 6, priority=-1)
    assert tokens_of(engine.step()) == {"urgent": 6}


def test_no_more_sequences_run_than_there_are_seats():
    engine = SimulatedEngine(max_num_seqs=2)
    for name in "abc":
        engine.add(name, 4, max_tokens=2)
    assert list(tokens_of(engine.step())) == ["a", "b"]
    assert (engine.scheduler.num_running, engine.scheduler.num_waiting) == (2, 1)
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["a", "b", "c"]


def test_a_common_prefix_is_found_while_its_first_owner_runs():
    engine = SimulatedEngine()
    first = engine.add("a", list(range(10)), max_tokens=8)
    engine.step()
    second = engine.add("b", [*range(9), 77, 78], max_tokens=2)
    assert tokens_of(engine.step()) == {"a": 1, "b": 3}
    assert second.block_table[:2] == first.block_table[:2]
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 8)
    assert engine.scheduler.stats.num_cached_tokens == 8
    assert engine.scheduler.stats.num_queried_tokens == 21


def test_a_common_prefix_is_found_after_its_owner_has_ended():
    engine = SimulatedEngine()
    engine.add("a", list(range(10)), max_tokens=1)
    engine.run()
    engine.add("b", list(range(10)), max_tokens=1)
    assert tokens_of(engine.step()) == {"b": 2}


def test_output_tokens_are_part_of_what_is_found():
    engine = SimulatedEngine()
    first = engine.add("a", list(range(10)), max_tokens=8)
    engine.run()
    engine.add("b", [*range(10), *first.output_token_ids, 5], max_tokens=1)
    assert tokens_of(engine.step()) == {"b": 3}  # 16 of 19: the last token of a was never computed


def test_of_a_fully_cached_prompt_the_last_block_is_computed_for_its_logits():
    engine = SimulatedEngine()
    engine.add("a", list(range(8)), max_tokens=1)
    engine.run()
    engine.add("b", list(range(8)), max_tokens=1)
    assert tokens_of(engine.step()) == {"b": 4}


def test_prompt_logprobs_are_computed_and_not_taken_from_the_cache():
    engine = SimulatedEngine()
    engine.add("a", list(range(10)), max_tokens=1)
    engine.run()
    seq = engine.add("b", list(range(10)), max_tokens=1, prompt_logprobs=0)
    assert tokens_of(engine.step()) == {"b": 10}
    assert seq.num_cached_tokens == 0


def test_another_root_finds_nothing():
    engine = SimulatedEngine()
    engine.add("a", list(range(10)), max_tokens=1)
    engine.run()
    engine.add("b", list(range(10)), max_tokens=1, root=b"salted")
    assert tokens_of(engine.step()) == {"b": 10}


def test_without_prefix_caching_nothing_is_shared():
    engine = SimulatedEngine(options={"prefix_caching": False})
    for name in "ab":
        engine.add(name, list(range(10)), max_tokens=1)
        assert tokens_of(engine.step()) == {name: 10}


def test_hashes_handed_in_are_of_no_use_without_prefix_caching():
    engine = SimulatedEngine(options={"prefix_caching": False})
    for name in "ab":
        seq = make_sequence(name, list(range(10)), max_tokens=1)
        extend_chain(seq.block_hashes, seq.cache_root, seq.prompt_token_ids, engine.block_size)
        engine.scheduler.add(seq)
        assert tokens_of(engine.step()) == {name: 10}


def test_equal_prompts_in_one_step_are_both_computed_and_both_right():
    engine = SimulatedEngine()
    for name in "ab":
        engine.add(name, list(range(10)), max_tokens=9)
    assert tokens_of(engine.step()) == {"a": 10, "b": 10}
    engine.run()


def test_a_resumed_sequence_catches_up_with_its_output_and_goes_on():
    engine = SimulatedEngine()
    whole = engine.add("whole", list(range(10)), max_tokens=9)
    engine.run()
    resumed = engine.add("again", list(range(10)), max_tokens=9, output=whole.output_token_ids[:4], root=b"elsewhere")
    resumed.seed = whole.seed
    assert tokens_of(engine.step()) == {"again": 14}
    engine.run()
    assert resumed.output_token_ids == whole.output_token_ids


def test_choices_of_one_request_can_be_resumed_one_by_one():
    engine = SimulatedEngine()
    first = engine.add("a", 6, choice=0, output=[1, 2], max_tokens=4)
    third = engine.add("a", 6, choice=2, output=[5], max_tokens=4)
    engine.run()
    assert first.output_token_ids[:2] == [1, 2]
    assert third.output_token_ids[:1] == [5]
    assert len(engine.finished) == 2


def test_a_step_without_work_is_empty():
    engine = SimulatedEngine()
    assert not engine.scheduler.has_unfinished()
    assert engine.step().scheduled == []


def test_the_first_schedule_time_is_noted():
    engine = SimulatedEngine(max_num_seqs=1)
    engine.add("a", 4, max_tokens=2)
    waiting = engine.add("b", 4, max_tokens=2)
    engine.step()
    assert waiting.first_scheduled_time is None
    engine.step()
    engine.clock.now = 7.5
    engine.step()
    assert waiting.first_scheduled_time == 7.5
    assert waiting.status is SequenceStatus.RUNNING


def test_a_sequence_has_one_hash_for_each_full_block_of_its_tokens():
    engine = SimulatedEngine()
    seq = engine.add("a", 10, max_tokens=8)
    for _ in range(7):
        engine.step()
    expected: list[bytes] = []
    extend_chain(expected, seq.cache_root, seq.tokens(0, seq.num_tokens), engine.block_size)
    assert seq.block_hashes == expected
    assert len(expected) == 4
