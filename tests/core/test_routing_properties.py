"""Reservations over the life of many requests: whatever happens to them, all that was taken is given back."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from serve_paged.core.kv_events import BlockEvents
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.routing import RoutingRequest, select_and_reserve
from serve_paged.core.routing_decision import Outcome
from serve_paged.core.routing_table import RoutingConfig, RoutingTable

CHAINS = [[bytes([chain, index]) for index in range(6)] for chain in range(3)]
CAPACITY = ReplicaCapacity(num_blocks=20, max_num_seqs=5, token_s=0.01)


class RoutingMachine(RuleBasedStateMachine):
    """A router, and for each replica the plain list of requests that it has and that it does not have yet."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RoutingTable(RoutingConfig(block_size=4))
        self.now = 0.0
        self.num_ever = 0
        self.owner: dict[str, str] = {}  # of requests that have not ended
        self.cost: dict[str, tuple[int, int, int]] = {}  # blocks, sequences, tokens reserved
        self.included: set[str] = set()
        self.last_report: dict[str, LoadReport] = {}
        self.num_batches: dict[str, int] = {}
        self.reports_sent: list[tuple[str, LoadReport]] = []
        self.outcomes: set[Outcome] = set()

    def pick(self, number: int) -> str:
        return sorted(self.num_batches)[number % len(self.num_batches)]

    @rule()
    @precondition(lambda self: len(self.num_batches) < 3)
    def a_replica_comes(self) -> None:
        replica_id = f"r{self.num_ever}"
        self.num_ever += 1
        self.table.add_replica(replica_id, CAPACITY, self.now)
        self.num_batches[replica_id] = 0

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: len(self.num_batches) > 1)
    def a_replica_dies(self, number: int) -> None:
        replica_id = self.pick(number)
        self.table.remove_replica(replica_id)
        del self.num_batches[replica_id]
        self.last_report.pop(replica_id, None)
        self.reports_sent = [(sender, report) for sender, report in self.reports_sent if sender != replica_id]
        lost = [name for name, owner in self.owner.items() if owner == replica_id]
        for name in lost:
            del self.owner[name]
            assert not self.table.release(name), "it went with its replica"

    @rule(chain=st.sampled_from(CHAINS), length=st.integers(0, 6), extra=st.integers(0, 3), choices=st.integers(1, 2))
    def a_request_arrives(self, chain: list[bytes], length: int, extra: int, choices: int) -> None:
        name = f"request {self.num_ever}"
        self.num_ever += 1
        request = RoutingRequest(name, chain[:length], 4 * length + extra, 5, choices)
        decision = select_and_reserve(self.table, request, self.now)
        self.outcomes.add(decision.outcome)
        if decision.chosen is None:
            assert self.table.loads.reservation(name) is None
            return
        reserved = self.table.loads.reservation(name)
        assert reserved is not None
        self.owner[name] = decision.chosen
        self.cost[name] = (reserved.num_blocks, reserved.num_seqs, reserved.num_tokens)

    @rule(number=st.integers(0, 5), load=st.integers(0, 10), share=st.integers(0, 2), arrives=st.booleans())
    @precondition(lambda self: self.num_batches)
    def a_replica_reports(self, number: int, load: int, share: int, arrives: bool) -> None:
        """The report may not include requests still on their way, and may be lost or come later."""
        replica_id = self.pick(number)
        own = sorted(name for name, owner in self.owner.items() if owner == replica_id)
        seq_no = 1 + max((report.seq_no for sender, report in self.reports_sent if sender == replica_id), default=0)
        report = LoadReport(seq_no, load, load % 4, 3 * load, 0.01, frozenset(own[: len(own) * share // 2]))
        self.reports_sent.append((replica_id, report))
        if arrives:
            self.take_in(replica_id, report)

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.reports_sent)
    def a_report_arrives(self, number: int) -> None:
        """Any of those sent: late, again, or after a newer one."""
        self.take_in(*self.reports_sent[number % len(self.reports_sent)])

    def take_in(self, replica_id: str, report: LoadReport) -> None:
        last = self.last_report.get(replica_id)
        newer = last is None or report.seq_no > last.seq_no
        assert self.table.report(replica_id, report, self.now) == newer
        if newer:
            self.last_report[replica_id] = report
            self.included |= report.request_ids & self.owner.keys()

    @rule(number=st.integers(0, 20), chain=st.sampled_from(CHAINS))
    @precondition(lambda self: self.owner)
    def a_prompt_is_computed(self, number: int, chain: list[bytes]) -> None:
        name = sorted(self.owner)[number % len(self.owner)]
        replica_id = self.owner[name]
        self.num_batches[replica_id] += 1
        self.table.prefilled(name, self.num_batches[replica_id])
        self.table.blocks.apply(replica_id, BlockEvents(self.num_batches[replica_id], tuple(chain), ()))

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.owner)
    def a_request_ends(self, number: int) -> None:
        name = sorted(self.owner)[number % len(self.owner)]
        del self.owner[name]
        assert self.table.release(name)
        assert not self.table.release(name)

    @rule(seconds=st.floats(0.0, 5.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def every_load_is_the_last_report_and_what_it_does_not_include(self) -> None:
        self.table.check()
        for replica_id, slot in self.table.slot_of.items():
            open_ones = [
                self.cost[name]
                for name, owner in self.owner.items()
                if owner == replica_id and name not in self.included
            ]
            report = self.last_report.get(replica_id)
            reported = (report.num_demanded_blocks, report.num_seqs, report.num_backlog_tokens) if report else (0, 0, 0)
            blocks, seqs, tokens = (sum(column) for column in zip(reported, *open_ones, strict=True))
            assert self.table.loads.num_free_blocks[slot] == max(0, 20 - blocks)
            assert self.table.loads.num_free_seqs[slot] == max(0, 5 - seqs)
            assert self.table.loads.queue_s[slot] == pytest.approx(tokens * 0.01)

    def teardown(self) -> None:
        for name in list(self.owner):
            assert self.table.release(name)
        loads = self.table.loads
        assert loads.num_reservations == 0
        assert self.table.blocks.num_expectations == 0, "every confirmed batch has been applied"
        for replica_id, slot in self.table.slot_of.items():
            seq_no = 1 + max((report.seq_no for _, report in self.reports_sent), default=0)
            self.table.report(replica_id, LoadReport(seq_no, 0, 0, 0, 0.01, frozenset()), self.now)
            assert (loads.num_free_blocks[slot], loads.num_free_seqs[slot]) == (20, 5), "something leaks"
            assert (loads.occupancy[slot], loads.queue_s[slot]) == (0.0, 0.0)
        for replica_id in self.table.replica_ids:
            self.table.remove_replica(replica_id)
        assert self.table.blocks.num_blocks == 0


def run(num_examples: int, num_steps: int) -> set[Outcome]:
    """The outcomes met."""
    outcomes: set[Outcome] = set()

    class CountedMachine(RoutingMachine):
        def teardown(self) -> None:
            outcomes.update(self.outcomes)
            super().teardown()

    profile = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CountedMachine, settings=profile)
    return outcomes


def test_whatever_happens_to_requests_nothing_is_counted_twice_and_nothing_leaks():
    assert run(num_examples=100, num_steps=40) == set(Outcome)


@pytest.mark.slow
def test_whatever_happens_to_requests_for_long_nothing_is_counted_twice_and_nothing_leaks():
    assert run(num_examples=1000, num_steps=80) == set(Outcome)
