"""Requests that arrive together, before any replica has reported: they must neither herd nor scatter.

With cost = own prefill + what it makes others wait + queue + barrier, and equal replicas, the rule for equal prompts
can be worked out. P is the prompt's prefill time, and the displacement is 1. The first request goes to some replica,
the holder. Another replica costs 2 P. The holder costs P (the queue: the prompt is being computed) plus a token's
prefill for each that is waiting there, plus its barrier b * k / (1 - k). So the holder is left when these exceed P:
    not before: a burst that fits comfortably stays together (no scattering);
    not later: its occupancy never passes k = P / (P + b) (no herding).
"""

from collections import Counter

import pytest

from serve_paged.core.routing import rank, select_and_reserve
from serve_paged.core.routing_decision import Outcome
from serve_paged.core.routing_table import RoutingTable
from tests.core.routing_fleet import CAPACITY, give_load, make_request, make_table

BARRIER_S = 0.15


def send(table: RoutingTable, num_requests: int, num_prompt_tokens: int) -> tuple[Counter[str], int]:
    """Equal prompts, one right after the other: requests by replica, and replicas that compute the whole prompt."""
    chosen: Counter[str] = Counter()
    num_computed = 0
    for number in range(num_requests):
        decision = select_and_reserve(table, make_request(f"{number}", range(num_prompt_tokens)), now=0.0)
        assert decision.outcome is Outcome.RESERVED
        assert decision.chosen is not None
        chosen[decision.chosen] += 1
        num_computed += decision.candidates[0].num_overlap_blocks == 0
    table.check()
    return chosen, num_computed


@pytest.mark.parametrize("num_prompt_tokens", [512, 1024, 4096])
def test_a_hundred_equal_prompts_do_not_herd(num_prompt_tokens: int):
    prefill_s = num_prompt_tokens * CAPACITY.token_s
    highest = prefill_s / (prefill_s + BARRIER_S)  # occupancy at which a holder is left
    table = make_table(4)
    chosen, _ = send(table, 100, num_prompt_tokens)
    assert max(chosen.values()) <= highest * CAPACITY.max_num_seqs + 1
    assert max(table.loads.occupancy) < 1.0


@pytest.mark.parametrize(("num_prompt_tokens", "max_holders"), [(1024, 3), (4096, 2)])
def test_a_hundred_equal_prompts_do_not_scatter(num_prompt_tokens: int, max_holders: int):
    """A replica takes some 50 of them (1024 tokens: k = 0.87, less what waiting costs) or 60: 2 would do, or nearly."""
    chosen, num_computed = send(make_table(4), 100, num_prompt_tokens)
    assert len(chosen) <= max_holders
    assert num_computed == len(chosen), "each holder computes the prompt once, not once per request"


def test_a_few_equal_long_prompts_stay_together():
    """10 of 64 sequences: k = 0.16 costs 0.03 s, and another prefill 1 s."""
    chosen, num_computed = send(make_table(4), 10, 1024)
    assert (len(chosen), num_computed) == (1, 1)


def test_short_prompts_spread_evenly_since_computing_one_again_costs_next_to_nothing():
    chosen, _ = send(make_table(4), 100, 16)
    assert len(chosen) == 4
    assert max(chosen.values()) - min(chosen.values()) <= 2


def test_different_prompts_that_arrive_together_spread_evenly():
    table = make_table(4)
    chosen: Counter[str | None] = Counter()
    for number in range(100):
        request = make_request(f"{number}", range(number * 1024, (number + 1) * 1024))
        chosen[select_and_reserve(table, request, now=0.0).chosen] += 1
    assert chosen == {f"r{number}": 25 for number in range(4)}


def test_a_shared_system_prompt_is_computed_by_few_replicas_and_its_conversations_spread_over_them():
    """Own parts are as long as the shared one: a holder saves half a prefill, and is left as soon as it is behind."""
    table = make_table(4)
    chosen: Counter[str | None] = Counter()
    num_computed_blocks = 0
    for number in range(40):
        own = range(10_000 + number * 512, 10_000 + (number + 1) * 512)
        decision = select_and_reserve(table, make_request(f"{number}", [*range(512), *own]), now=0.0)
        chosen[decision.chosen] += 1
        num_computed_blocks += 64 - decision.candidates[0].num_overlap_blocks
    assert num_computed_blocks <= 40 * 32 + 4 * 32, "the shared part once per replica"
    assert max(chosen.values()) <= 12, "10 each would be even"


def test_deciding_without_reserving_would_herd():
    """What the reservation is good for: the same burst, ranked only, finds the same replica best a hundred times."""
    table = make_table(4)
    give_load(table, "r0", num_tokens=5)
    give_load(table, "r1", num_tokens=5)
    give_load(table, "r2", num_tokens=5)
    costs = [rank(table, make_request(f"{number}", range(1024)), now=0.0).cost_s for number in range(100)]
    assert [cost.index(min(cost)) for cost in costs] == [3] * 100


def test_a_burst_beyond_what_all_can_hold_fills_every_replica_and_then_waits():
    table = make_table(4)
    outcomes = Counter(
        select_and_reserve(table, make_request(f"{number}", range(1024)), now=0.0).outcome for number in range(300)
    )
    assert outcomes == {Outcome.RESERVED: 4 * 64, Outcome.ALL_FULL: 300 - 4 * 64}
    table.release("0")
    assert select_and_reserve(table, make_request("late", range(1024)), now=0.0).outcome is Outcome.RESERVED
