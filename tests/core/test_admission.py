"""What is refused, what waits, and what is let in."""

import pytest

from serve_paged.core.admission import AdmissionGuard
from serve_paged.core.errors import InvalidRequest, RequestTooLong
from tests.core.simulated_engine import SimulatedEngine, make_sequence


def guard(**changes) -> AdmissionGuard:
    settings = {"block_size": 4, "max_num_seqs": 4, "num_usable_blocks": 10, "watermark": 0.0}
    return AdmissionGuard(**(settings | changes))


def test_a_request_larger_than_the_cache_is_refused_with_the_numbers():
    with pytest.raises(RequestTooLong, match=r"12 \+ 30 tokens and needs 11 blocks of 4 tokens.* has 10") as caught:
        guard().check_possible(make_sequence("a", 12, max_tokens=30))
    assert caught.value.param == "max_tokens"


def test_a_prompt_larger_than_the_cache_is_refused_as_a_prompt():
    with pytest.raises(RequestTooLong) as caught:
        guard().check_possible(make_sequence("a", 50, max_tokens=1))
    assert caught.value.param == "prompt"


def test_a_request_of_exactly_the_cache_is_accepted():
    guard().check_possible(make_sequence("a", 12, max_tokens=28))


def test_a_prompt_that_leaves_no_room_for_output_is_refused():
    seq = make_sequence("a", 8, max_tokens=1)
    seq.max_num_tokens = 8
    with pytest.raises(RequestTooLong, match="no room"):
        guard().check_possible(seq)


def test_more_choices_than_seats_are_refused():
    with pytest.raises(InvalidRequest, match="n = 5") as caught:
        guard().check_possible(make_sequence("a", 4, n=5))
    assert caught.value.param == "n"


def test_an_empty_prompt_is_refused():
    with pytest.raises(InvalidRequest) as caught:
        guard().check_possible(make_sequence("a", 0))
    assert caught.value.param == "prompt"


def test_a_refused_request_leaves_no_trace():
    engine = SimulatedEngine(num_blocks=4)
    with pytest.raises(RequestTooLong):
        engine.add("a", 100)
    assert not engine.scheduler.has_unfinished()
    engine.check()
    engine.add("a", 4)
    engine.run()


def test_a_request_id_in_use_is_refused_and_free_again_after_the_end():
    engine = SimulatedEngine()
    engine.add("a", 4)
    with pytest.raises(InvalidRequest) as caught:
        engine.add("a", 4)
    assert caught.value.param == "request_id"
    engine.run()
    engine.add("a", 4)
    engine.run()
    assert len(engine.finished) == 2


def test_a_prompt_waits_until_all_of_it_fits_above_the_watermark():
    engine = SimulatedEngine(num_blocks=10, options={"watermark": 0.2})
    engine.add("a", 15, max_tokens=9)  # 4 blocks, then 6
    engine.add("b", 17, max_tokens=2)  # 5 blocks: 10 - 4 - 5 is below the watermark of 2
    assert [entry.seq.request_id for entry in engine.step().scheduled] == ["a"]
    engine.run()
    assert [seq.request_id for seq in engine.finished] == ["a", "b"]


def test_blocks_for_the_copies_that_forks_will_make_are_not_given_away():
    engine = SimulatedEngine(num_blocks=8, options={"watermark": 0.0})
    engine.add("a", 6, n=3, max_tokens=2)  # 2 blocks, and the tail twice more
    engine.add("b", 17, max_tokens=2)  # 5 blocks
    assert [entry.seq.request_id for entry in engine.step().scheduled] == ["a"]
    engine.run()
    assert not any(seq.num_preemptions for seq in engine.finished)


def test_a_prompt_that_is_mostly_cached_needs_only_the_rest():
    engine = SimulatedEngine(num_blocks=10, options={"watermark": 0.0})
    engine.add("a", list(range(21)), max_tokens=8)
    engine.step()
    engine.add("b", list(range(23)), max_tokens=2)  # 6 blocks, of which 5 are shared with a
    assert [entry.seq.request_id for entry in engine.step().scheduled] == ["a", "b"]


def test_anything_possible_is_let_in_when_nothing_runs():
    engine = SimulatedEngine(num_blocks=10, options={"watermark": 0.9})
    engine.add("a", 36, max_tokens=4)
    assert engine.step().num_tokens == 36
    engine.run()


def test_without_experience_only_the_watermark_guards():
    running, newcomer = make_sequence("a", 8, max_tokens=100), make_sequence("b", 8, max_tokens=100)
    assert guard().fits_later(newcomer, 2, [running], 2)


def test_expected_outputs_keep_a_newcomer_waiting():
    experienced = guard()
    for _ in range(20):
        experienced.output_lengths.record(12)
    running, newcomer = make_sequence("a", 8, max_tokens=100), make_sequence("b", 8, max_tokens=100)
    assert not experienced.fits_later(newcomer, 2, [running], 7)  # 2 now, then 3 more for each
    assert experienced.fits_later(newcomer, 2, [running], 8)


def test_the_length_of_every_output_that_came_to_its_end_is_learned():
    engine = SimulatedEngine()
    for index in range(20):
        engine.add(f"r{index}", 4, max_tokens=5)
    engine.run()
    assert engine.scheduler.guard.output_lengths.known
    assert engine.scheduler.guard.output_lengths.expected_remaining(0) == 5


def test_nothing_is_learned_from_aborted_outputs():
    engine = SimulatedEngine()
    for index in range(20):
        engine.add(f"r{index}", 4, max_tokens=5)
        engine.step()
        engine.scheduler.abort(f"r{index}")
    assert not engine.scheduler.guard.output_lengths.known


def test_expectations_are_cut_at_max_tokens():
    experienced = guard()
    for _ in range(20):
        experienced.output_lengths.record(100)
    running, newcomer = make_sequence("a", 8, max_tokens=4), make_sequence("b", 8, max_tokens=4)
    assert experienced.fits_later(newcomer, 2, [running], 4)


def test_every_choice_is_expected_to_write():
    experienced = guard()
    for _ in range(20):
        experienced.output_lengths.record(4)
    running = make_sequence("a", 8, max_tokens=100)
    assert experienced.fits_later(make_sequence("b", 8, max_tokens=4, n=1), 2, [running], 4)
    assert not experienced.fits_later(make_sequence("b", 8, max_tokens=4, n=3), 2, [running], 4)


def test_experience_prevents_preemptions():
    def num_preemptions(experience: int) -> int:
        engine = SimulatedEngine(num_blocks=24, options={"preemption": "recompute"})
        for _ in range(experience):
            engine.scheduler.guard.output_lengths.record(32)
        for index in range(12):
            engine.add(f"r{index}", 8, max_tokens=32)
        engine.run()
        return engine.scheduler.stats.num_preemptions_recompute

    assert num_preemptions(experience=0) > 0
    assert num_preemptions(experience=20) == 0
