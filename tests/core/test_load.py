"""The load model: what a scheduler's live requests demand."""

from serve_paged.core.block_pool import BlockPool
from serve_paged.core.load import EXPECTED_OUTPUT_TOKENS, demand_of
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.scheduler import Scheduler
from serve_paged.core.sequence import Sequence

SIZE = 16


def scheduler(max_num_seqs: int = 8) -> Scheduler:
    return Scheduler(
        BlockPool(101), block_size=SIZE, max_num_seqs=max_num_seqs, max_num_batched_tokens=64, clock=lambda: 0.0
    )


def sequence(name: str, num_tokens: int, max_tokens: int = 1000, n: int = 1, first: int = 0) -> Sequence:
    prompt = list(range(first, first + num_tokens))
    made = [
        Sequence(name, prompt, SamplingParams(n=n), 0.0, 0, max_num_tokens=num_tokens + max_tokens, choice=choice)
        for choice in range(n)
    ]
    made[0].siblings = made[1:]
    return made[0]


def run_step(engine: Scheduler) -> None:
    for slot in engine.computed(engine.schedule()):
        engine.append_token(slot.seq, 0)


def test_an_idle_engine_demands_nothing() -> None:
    demand = demand_of(scheduler())
    assert (demand.num_blocks, demand.num_seqs, demand.num_backlog_tokens, demand.request_ids) == (0, 0, 0, frozenset())


def test_a_waiting_prompt_demands_its_blocks_and_those_of_its_expected_output() -> None:
    engine = scheduler()
    engine.add(sequence("a", 40))
    demand = demand_of(engine)
    assert demand.num_queued_blocks == 3
    assert demand.num_queued_blocks + demand.num_remaining_blocks == -(-(40 + EXPECTED_OUTPUT_TOKENS) // SIZE)
    assert (demand.num_backlog_tokens, demand.num_seqs, demand.request_ids) == (40, 1, {"a"})


def test_no_more_output_is_expected_than_the_limit_allows() -> None:
    engine = scheduler()
    engine.add(sequence("a", 32, max_tokens=16))
    assert demand_of(engine).num_blocks == 3


def test_every_choice_counts() -> None:
    engine = scheduler()
    engine.add(sequence("a", 32, max_tokens=16, n=3))
    demand = demand_of(engine)
    assert (demand.num_queued_blocks, demand.num_remaining_blocks, demand.num_seqs) == (2, 3, 3)


def test_what_runs_is_resident_and_its_prefill_no_longer_backlog() -> None:
    engine = scheduler()
    engine.add(sequence("a", 100, max_tokens=28))
    run_step(engine)
    assert demand_of(engine).num_backlog_tokens == 100 - 64 - 1
    run_step(engine)
    demand = demand_of(engine)
    assert (demand.num_resident_blocks, demand.num_remaining_blocks, demand.num_backlog_tokens) == (7, 1, 0)


def test_blocks_in_the_prefix_cache_are_not_queued() -> None:
    engine = scheduler(max_num_seqs=1)
    engine.add(sequence("a", 48))
    run_step(engine)
    engine.add(sequence("b", 48))  # the same prompt, waiting for a seat
    demand = demand_of(engine)
    assert demand.num_queued_blocks == 1
    assert demand.num_backlog_tokens == 48 - 2 * SIZE
