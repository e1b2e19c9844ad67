"""One decision: what it weighs, what it leaves out, how it breaks ties and what it says of itself."""

import json

import pytest

from serve_paged.core.routing import select_and_reserve, slots_in
from serve_paged.core.routing_decision import Candidate, Decision, Outcome, Verdict
from serve_paged.core.routing_table import RoutingConfig
from tests.core.routing_fleet import CAPACITY, give_blocks, give_load, make_request, make_table

PROMPT = range(160)  # 10 blocks, 0.16 s


def candidate(decision: Decision, replica_id: str) -> Candidate:
    [found] = [entry for entry in decision.candidates if entry.replica_id == replica_id]
    return found


def test_the_replica_that_holds_the_prompt_is_chosen():
    table = make_table(3)
    request = make_request("a", PROMPT)
    give_blocks(table, "r1", request, 6)
    give_blocks(table, "r2", request, 9)
    decision = select_and_reserve(table, request, now=0.0)
    assert (decision.outcome, decision.chosen, decision.runner_up) == (Outcome.RESERVED, "r2", "r1")
    assert [entry.num_overlap_blocks for entry in decision.candidates] == [9, 6, 0]


def test_a_long_queue_outweighs_held_blocks():
    table = make_table(2)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 10)
    give_load(table, "r0", num_tokens=250)  # 0.25 s ahead, for 0.16 s of prefill saved twice (here and for others)
    assert select_and_reserve(table, request, now=0.0).chosen == "r0"
    table.release("a")
    give_load(table, "r0", num_tokens=350, seq_no=2)
    assert select_and_reserve(table, request, now=0.0).chosen == "r1"


def test_a_nearly_full_replica_outweighs_held_blocks():
    table = make_table(2)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 10)
    give_load(table, "r0", num_blocks=1000)
    assert select_and_reserve(table, request, now=0.0).chosen == "r0"
    table.release("a")
    give_load(table, "r0", num_blocks=1600, seq_no=2)  # 0.15 * 0.8 / 0.2 = 0.6 s
    assert select_and_reserve(table, request, now=0.0).chosen == "r1"


def test_the_cost_is_the_sum_of_the_terms_it_is_explained_by():
    table = make_table(1)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 4)
    give_load(table, "r0", num_blocks=1000, num_tokens=50)
    [entry] = select_and_reserve(table, request, now=3.0).candidates
    assert entry.prefill_s == pytest.approx(0.096)
    assert entry.displaced_s == pytest.approx(0.096)
    assert entry.queue_s == pytest.approx(0.05)
    assert entry.barrier_s == pytest.approx(0.15)
    assert entry.stale_s == pytest.approx(1.0), "silent for 3 s where 2 are allowed"
    assert entry.cost_s == pytest.approx(0.096 + 0.096 + 0.05 + 0.15 + 1.0)
    assert entry.occupancy == 0.5
    assert entry.num_new_blocks == 10 - 4 + 8


def test_a_prompt_that_is_held_in_full_still_computes_its_last_token():
    table = make_table(1)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 10)
    [entry] = select_and_reserve(table, request, now=0.0).candidates
    assert entry.prefill_s == pytest.approx(0.001)


def test_what_the_request_will_take_is_reserved_and_held_blocks_are_not():
    table = make_table(1)
    request = make_request("a", PROMPT, num_output_tokens=100, num_choices=2)
    give_blocks(table, "r0", request, 4)
    select_and_reserve(table, request, now=0.0)
    reserved = table.loads.reservation("a")
    assert reserved is not None
    assert reserved.num_blocks == (10 - 4 + 7) + 7, "260 tokens are 17 blocks; the other choice shares the prompt"
    assert (reserved.num_seqs, reserved.num_tokens) == (2, 160 - 64)


def test_a_replica_with_too_few_blocks_is_left_out():
    table = make_table(2)
    request = make_request("a", PROMPT)  # 10 blocks and 8 of output
    give_blocks(table, "r0", request, 3)
    give_load(table, "r0", num_blocks=2000 - 14)
    decision = select_and_reserve(table, request, now=0.0)
    assert decision.chosen == "r1"
    assert (decision.num_full, decision.runner_up) == (1, None)
    assert candidate(decision, "r0").verdict is Verdict.FULL
    assert candidate(decision, "r0").cost_s is None


def test_held_blocks_let_a_request_fit():
    table = make_table(1)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 3)
    give_load(table, "r0", num_blocks=2000 - 15)
    assert select_and_reserve(table, request, now=0.0).chosen == "r0"


def test_a_replica_with_too_few_free_sequences_is_left_out():
    table = make_table(2)
    give_load(table, "r0", num_seqs=62)
    assert select_and_reserve(table, make_request("a", PROMPT, num_choices=3), now=0.0).chosen == "r1"
    give_load(table, "r1", num_seqs=61, seq_no=1)
    decision = select_and_reserve(table, make_request("b", PROMPT, num_choices=3), now=0.0)
    assert decision.outcome is Outcome.ALL_FULL, "r1 has 61 reported and 3 reserved"


def test_where_none_fits_the_caller_is_told_and_nothing_is_reserved():
    table = make_table(2)
    for replica_id in ("r0", "r1"):
        give_load(table, replica_id, num_blocks=1995)
    decision = select_and_reserve(table, make_request("a", PROMPT), now=0.0)
    assert (decision.outcome, decision.chosen, decision.num_full) == (Outcome.ALL_FULL, None, 2)
    assert table.loads.num_reservations == table.blocks.num_expectations == table.blocks.num_blocks == 0


def test_without_replicas_there_is_nothing_to_wait_for_but_a_replica():
    assert select_and_reserve(make_table(0), make_request("a", PROMPT), now=0.0).outcome is Outcome.NO_REPLICA
    everywhere = make_request("a", PROMPT, excluded=frozenset({"r0", "unknown"}))
    decision = select_and_reserve(make_table(1), everywhere, now=0.0)
    assert (decision.outcome, decision.num_excluded) == (Outcome.NO_REPLICA, 1)


def test_a_replica_that_refused_can_be_excluded():
    table = make_table(2)
    request = make_request("a", PROMPT, excluded=frozenset({"r0"}))
    give_blocks(table, "r0", request, 10)
    decision = select_and_reserve(table, request, now=0.0)
    assert decision.chosen == "r1"
    assert candidate(decision, "r0").verdict is Verdict.EXCLUDED


def test_a_removed_replica_is_never_chosen_again():
    table = make_table(3)
    request = make_request("a", PROMPT)
    give_blocks(table, "r1", request, 10)
    table.remove_replica("r1")
    decision = select_and_reserve(table, request, now=0.0)
    assert decision.chosen in {"r0", "r2"}
    assert decision.num_replicas == 2
    assert {entry.replica_id for entry in decision.candidates} == {"r0", "r2"}
    assert decision.num_full == 0, "an empty slot is not a full replica"


def test_a_silent_replica_gets_dearer_but_stays_in_the_race():
    table = make_table(2)
    request = make_request("a", PROMPT)
    give_blocks(table, "r0", request, 10)
    give_load(table, "r1", now=9.0)
    assert select_and_reserve(table, request, now=9.0).chosen == "r1"
    table.remove_replica("r1")
    assert select_and_reserve(table, make_request("b", PROMPT), now=9.0).chosen == "r0"


def test_a_session_stays_with_one_of_the_replicas_that_cost_the_same_and_sessions_spread():
    homes = []
    for session in range(40):
        chosen = set()
        for attempt in range(3):  # another prompt each, on idle replicas
            request = make_request("a", range(attempt, attempt + 160), session_id=f"session {session}")
            decision = select_and_reserve(make_table(4), request, now=0.0)
            assert decision.tie_broken_by == "session"
            chosen.add(decision.chosen)
        assert len(chosen) == 1
        homes += chosen
    assert all(homes.count(f"r{number}") >= 4 for number in range(4)), "10 each are expected"


def test_a_session_does_not_outweigh_cost():
    table = make_table(2)
    request = make_request("a", PROMPT, session_id="session")
    first = select_and_reserve(table, request, now=0.0).chosen
    table.release("a")
    other = "r1" if first == "r0" else "r0"
    give_blocks(table, other, request, 1)
    decision = select_and_reserve(table, request, now=0.0)
    assert (decision.chosen, decision.tie_broken_by) == (other, None)


def test_routers_that_do_not_know_of_each_other_send_a_new_prompt_to_the_same_replica():
    table, other = make_table(5), make_table(0)
    for number in (3, 1, 0, 4, 2):  # it has met them in another order
        other.add_replica(f"r{number}", CAPACITY, now=0.0)
    choices = []
    for start in range(0, 200, 10):
        request = make_request(f"{start}", range(start, start + 160))
        decisions = [select_and_reserve(each, request, now=0.0) for each in (table, other)]
        assert decisions[0].chosen == decisions[1].chosen
        assert decisions[0].tie_broken_by in {"prompt", None}
        choices.append(decisions[0].chosen)
    assert len(set(choices)) == 5


def test_a_replica_whose_events_have_a_gap_is_marked_in_the_explanation():
    table = make_table(2)
    table.blocks.announce("r1", 4)
    decision = select_and_reserve(table, make_request("a", PROMPT), now=0.0)
    assert candidate(decision, "r0").exact
    assert not candidate(decision, "r1").exact


def test_a_decision_is_one_json_object():
    table = make_table(3)
    give_load(table, "r2", num_blocks=2500)
    decision = json.loads(select_and_reserve(table, make_request("a", PROMPT), now=0.0).to_json())
    assert decision["outcome"] == "reserved"
    assert decision["num_prompt_blocks"] == 10
    assert [entry["verdict"] for entry in decision["candidates"]] == ["chosen", "tied", "full"]
    assert decision["candidates"][2]["cost_s"] is None


def test_only_as_many_candidates_are_described_as_asked_for_and_the_chosen_one_is_among_them():
    table = make_table(40, RoutingConfig(max_explained=3))
    for start in range(0, 100, 10):
        decision = select_and_reserve(table, make_request(f"{start}", range(start, start + 160)), now=0.0)
        assert len(decision.candidates) == 3
        assert decision.candidates[0].replica_id == decision.chosen
        assert decision.candidates[1].replica_id == decision.runner_up
        assert decision.num_replicas == 40


@pytest.mark.parametrize("slots", [[], [0], [0, 1, 2], [3, 999], list(range(0, 1000, 3)), [1000]])
def test_the_slots_of_a_mask_are_found_dense_or_sparse(slots: list[int]):
    assert slots_in(sum(1 << slot for slot in slots)) == slots


@pytest.mark.parametrize("wrong", [{"block_size": 0}, {"max_explained": 1}, {"barrier_s": -0.1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="must"):
        RoutingConfig(**wrong)
