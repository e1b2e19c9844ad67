"""The index under an unreliable network, against real pools: batches lost, repeated and out of order, replicas that
come and go, requests that are sent, computed and given up."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from serve_paged.core.block_index import UNKNOWN, BlockIndex
from serve_paged.core.block_pool import BlockPool
from serve_paged.core.kv_events import BlockEventRecorder, BlockEvents, BlockSnapshot

CHAINS = [[bytes([chain, index]) for index in range(5)] for chain in range(3)]


class Replica:
    """A pool, and what its cache held after every batch."""

    def __init__(self) -> None:
        self.slot = -1
        self.pool = BlockPool(7)
        self.recorder = BlockEventRecorder(self.pool)
        self.history: list[set[bytes]] = [set()]

    def compute(self, hashes: list[bytes]) -> None:
        """Prefill a chain and end."""
        hits = self.pool.match_prefix(hashes)
        table, _ = self.pool.take_prefix(hashes, hits)
        for block, name in zip(self.pool.allocate(len(hashes) - len(table)), hashes[len(table) :], strict=True):
            self.pool.register(block, name)
            table.append(block)
        self.pool.release(table)

    def flush(self) -> BlockEvents | None:
        events = self.recorder.flush()
        if events:
            self.history.append(set(self.pool.registered_hashes()))
        return events


class IndexMachine(RuleBasedStateMachine):
    """Messages lie in `mail` until they are delivered, in any order, as often as one likes, or never."""

    def __init__(self) -> None:
        super().__init__()
        self.index = BlockIndex(max_held_back=2)
        self.replicas: dict[str, Replica] = {}
        self.known: dict[str, int] = {}  # by replica: the highest batch number that has reached the index
        self.mail: list[tuple[str, BlockEvents | BlockSnapshot]] = []
        self.requests: dict[str, tuple[str, list[bytes]]] = {}
        self.covered_by: dict[str, int] = {}
        self.num_replicas_ever = 0
        self.num_requests_ever = 0
        self.times_degraded = 0
        self.times_healed = 0

    def pick(self, number: int) -> str:
        return sorted(self.replicas)[number % len(self.replicas)]

    @rule(used=st.booleans())
    @precondition(lambda self: len(self.replicas) < 3)
    def a_replica_comes(self, used: bool) -> None:
        replica_id = f"r{self.num_replicas_ever}"
        self.num_replicas_ever += 1
        self.replicas[replica_id] = Replica()
        if used:  # the router is younger than the replica
            self.replicas[replica_id].compute(CHAINS[0])
            self.replicas[replica_id].flush()
        self.replicas[replica_id].slot = self.index.add_replica(replica_id)
        self.known[replica_id] = UNKNOWN

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: len(self.replicas) == 3)
    def a_replica_goes(self, number: int) -> None:
        replica_id = self.pick(number)
        self.index.remove_replica(replica_id)
        del self.replicas[replica_id], self.known[replica_id]
        self.mail = [(sender, message) for sender, message in self.mail if sender != replica_id]

    @rule(number=st.integers(0, 5), chains=st.lists(st.sampled_from(CHAINS), min_size=1, max_size=4))
    @precondition(lambda self: self.replicas)
    def somebody_else_computes(self, number: int, chains: list[list[bytes]]) -> None:
        """Requests of another router, with a batch after each."""
        for chain in chains:
            self.replicas[self.pick(number)].compute(chain)
            self.flush_one(self.pick(number))

    @rule(number=st.integers(0, 5), chain=st.sampled_from(CHAINS), length=st.integers(1, 5))
    @precondition(lambda self: self.replicas)
    def send_a_request(self, number: int, chain: list[bytes], length: int) -> None:
        request_id = f"request {self.num_requests_ever}"
        self.num_requests_ever += 1
        self.requests[request_id] = (self.pick(number), chain[:length])
        self.index.expect(request_id, self.pick(number), chain[:length])

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.requests)
    def a_request_is_computed(self, number: int) -> None:
        request_id = sorted(self.requests)[number % len(self.requests)]
        replica_id, hashes = self.requests[request_id]
        if replica_id in self.replicas and request_id not in self.covered_by:
            self.replicas[replica_id].compute(hashes)
            self.covered_by[request_id] = self.replicas[replica_id].recorder.cover()
            self.index.confirm(request_id, self.covered_by[request_id])

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.requests)
    def a_request_ends(self, number: int) -> None:
        request_id = sorted(self.requests)[number % len(self.requests)]
        self.index.withdraw(request_id)
        if request_id not in self.covered_by:
            del self.requests[request_id]

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: self.replicas)
    def flush(self, number: int) -> None:
        self.flush_one(self.pick(number))

    def flush_one(self, replica_id: str) -> None:
        if events := self.replicas[replica_id].flush():
            self.mail.append((replica_id, events))

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: self.replicas)
    def answer_with_a_snapshot(self, number: int) -> None:
        self.mail.append((self.pick(number), self.replicas[self.pick(number)].recorder.snapshot()))

    @rule(number=st.integers(0, 5))
    @precondition(lambda self: self.replicas)
    def announce(self, number: int) -> None:
        replica_id = self.pick(number)
        seq_no = self.replicas[replica_id].recorder.seq_no
        self.known[replica_id] = max(self.known[replica_id], seq_no)
        was_exact = self.index.is_exact(replica_id)
        exact = self.index.announce(replica_id, seq_no)
        self.times_degraded += was_exact and not exact

    @rule(number=st.integers(0, 20), keep=st.booleans())
    @precondition(lambda self: self.mail)
    def deliver(self, number: int, keep: bool) -> None:
        position = number % len(self.mail)
        replica_id, message = self.mail[position] if keep else self.mail.pop(position)
        was_exact = self.index.is_exact(replica_id)
        if isinstance(message, BlockSnapshot):
            exact = self.index.resynchronise(replica_id, message)
        else:
            exact = self.index.apply(replica_id, message)
        self.known[replica_id] = max(self.known[replica_id], message.seq_no)
        self.times_degraded += was_exact and not exact
        self.times_healed += exact and not was_exact

    @rule(number=st.integers(0, 20))
    @precondition(lambda self: self.mail)
    def lose(self, number: int) -> None:
        self.mail.pop(number % len(self.mail))

    @invariant()
    def every_book_is_the_cache_as_of_one_batch_and_exact_only_if_no_later_one_is_known(self) -> None:
        self.index.check()
        for replica_id, replica in self.replicas.items():
            applied = self.index.applied(replica_id)
            held = replica.history[applied] if applied != UNKNOWN else set()
            expected = self.expected(replica_id, applied)
            for chain in CHAINS:
                for block_hash in chain:
                    assert self.index_has(replica_id, block_hash) == (block_hash in held | expected)
            if self.index.is_exact(replica_id):
                assert applied == self.known[replica_id]

    def expected(self, replica_id: str, applied: int) -> set[bytes]:
        """What requests are still about to bring, by the plain definition."""
        return {
            block_hash
            for request_id, (owner, hashes) in self.requests.items()
            if owner == replica_id and (request_id not in self.covered_by or self.covered_by[request_id] > applied)
            for block_hash in hashes
        }

    def index_has(self, replica_id: str, block_hash: bytes) -> bool:
        bit = 1 << self.replicas[replica_id].slot
        return self.index.overlaps([block_hash], bit) == [(1, bit)]

    def teardown(self) -> None:
        for replica_id, replica in self.replicas.items():
            self.index.resynchronise(replica_id, replica.recorder.snapshot())
            assert self.index.is_exact(replica_id), "a snapshot heals"
            self.index.remove_replica(replica_id)
        assert (self.index.num_blocks, self.index.num_expectations) == (0, 0), "something leaks"


def run(num_examples: int, num_steps: int) -> tuple[int, int]:
    """How often a book was degraded, and healed."""
    degraded = healed = 0

    class CountedMachine(IndexMachine):
        def teardown(self) -> None:
            nonlocal degraded, healed
            degraded += self.times_degraded
            healed += self.times_healed
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
    return degraded, healed


def test_whatever_the_network_does_the_index_knows_what_it_knows():
    degraded, healed = run(num_examples=100, num_steps=40)
    assert degraded > 0
    assert healed > 0


@pytest.mark.slow
def test_whatever_the_network_does_for_long_the_index_knows_what_it_knows():
    degraded, healed = run(num_examples=1000, num_steps=80)
    assert degraded > 0
    assert healed > 0
