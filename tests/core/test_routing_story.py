"""Two routers and two replicas with real block pools, from a first request to a lost batch and a death."""

import pytest

from serve_paged.core.block_pool import BlockPool, num_blocks_for
from serve_paged.core.kv_events import BlockEventRecorder
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.routing import RoutingRequest, select_and_reserve
from serve_paged.core.routing_table import RoutingConfig, RoutingTable
from tests.core.routing_fleet import make_request


class Replica:
    """A pool, its recorder, and the requests that it is serving."""

    def __init__(self, num_blocks: int = 200) -> None:
        self.pool = BlockPool(num_blocks)
        self.recorder = BlockEventRecorder(self.pool)
        self.tables: dict[str, list[int]] = {}
        self.num_reports = 0

    def prefill(self, request: RoutingRequest) -> tuple[int, int]:
        """Start serving: blocks found in the cache, and the batch that covers the prompt."""
        hits = self.pool.match_prefix(request.block_hashes)
        table, _ = self.pool.take_prefix(request.block_hashes, hits)
        table += self.pool.allocate(num_blocks_for(request.num_tokens, 16) - len(hits))
        for block, name in list(zip(table, request.block_hashes, strict=False))[len(hits) :]:
            self.pool.register(block, name)
        self.tables[request.reservation_id] = table
        return len(hits), self.recorder.cover()

    def finish(self, request_id: str) -> None:
        self.pool.release(self.tables.pop(request_id))

    def report(self) -> LoadReport:
        self.num_reports += 1
        num_blocks = self.pool.num_usable - self.pool.num_free
        return LoadReport(self.num_reports, num_blocks, len(self.tables), 0, 0.001, frozenset(self.tables))


class Fleet:
    """What reaches the routers, and when, is up to the test."""

    def __init__(self) -> None:
        self.replicas = {"r0": Replica(), "r1": Replica()}
        self.routers = [RoutingTable(RoutingConfig()) for _ in range(2)]
        for router in self.routers:
            for replica_id in self.replicas:
                router.add_replica(replica_id, ReplicaCapacity(199, 16, 0.001), now=0.0)
                router.blocks.announce(replica_id, 0)

    def serve(self, router: int, request: RoutingRequest) -> tuple[str, int]:
        """Route a request and start serving it: the replica, and the blocks it found there."""
        chosen = select_and_reserve(self.routers[router], request, now=0.0).chosen
        assert chosen is not None
        num_hits, covered_by = self.replicas[chosen].prefill(request)
        self.routers[router].prefilled(request.reservation_id, covered_by)
        return chosen, num_hits

    def broadcast(self, *, lost_by: int | None = None) -> None:
        """One reporting period: events and load go to every router, except events that one of them loses."""
        for replica_id, replica in self.replicas.items():
            events = replica.recorder.flush()
            for number, router in enumerate(self.routers):
                if events is not None and number != lost_by:
                    router.blocks.apply(replica_id, events)
                router.blocks.announce(replica_id, replica.recorder.seq_no)
                router.report(replica_id, replica.report(), now=0.0)


TURN = list(range(500))
NEXT_TURN = [*TURN, *range(1000, 1300)]


def test_the_next_turn_of_a_conversation_finds_its_blocks_through_either_router():
    fleet = Fleet()
    first, num_hits = fleet.serve(0, make_request("turn 1", TURN))
    assert num_hits == 0
    fleet.broadcast()
    assert fleet.serve(1, make_request("turn 2", NEXT_TURN)) == (first, len(TURN) // 16)


def test_routers_agree_on_load_and_blocks_after_one_reporting_period():
    fleet = Fleet()
    for number in range(6):
        fleet.serve(number % 2, make_request(f"{number}", range(number * 100, number * 100 + 300)))
    fleet.broadcast()
    one, other = fleet.routers
    for figures in ("num_free_blocks", "num_free_seqs", "occupancy", "queue_s", "barrier_s"):
        assert getattr(one.loads, figures) == getattr(other.loads, figures)
    assert one.blocks.num_expectations == other.blocks.num_expectations == 0
    for number in range(6):
        hashes = make_request("", range(number * 100, number * 100 + 300)).block_hashes
        assert one.blocks.overlaps(hashes, one.slots) == other.blocks.overlaps(hashes, other.slots)


@pytest.mark.parametrize("resynchronised", [False, True])
def test_a_router_that_lost_a_batch_says_so_and_is_right_again_after_a_snapshot(resynchronised: bool):
    fleet = Fleet()
    first, _ = fleet.serve(0, make_request("turn 1", TURN))
    fleet.broadcast(lost_by=1)
    other = fleet.routers[1]
    assert other.blocks.degraded() == [first]
    if resynchronised:
        assert other.blocks.resynchronise(first, fleet.replicas[first].recorder.snapshot())
    decision = select_and_reserve(other, make_request("turn 2", NEXT_TURN), now=0.0)
    [entry] = [entry for entry in decision.candidates if entry.replica_id == first]
    assert entry.exact == resynchronised
    assert entry.num_overlap_blocks == (len(TURN) // 16 if resynchronised else 0)


def test_evicted_blocks_are_no_longer_counted_on():
    fleet = Fleet()
    first, _ = fleet.serve(0, make_request("old", TURN))
    fleet.replicas[first].finish("old")
    fleet.routers[0].release("old")
    pool = fleet.replicas[first].pool
    pool.release(pool.allocate(pool.num_free))
    fleet.broadcast()
    assert all(router.blocks.num_blocks == 0 for router in fleet.routers)


def test_the_requests_of_a_dead_replica_go_to_the_other_and_leave_nothing_behind():
    fleet = Fleet()
    first, _ = fleet.serve(0, make_request("attempt 1", TURN))
    for router in fleet.routers:
        router.remove_replica(first)
    assert not fleet.routers[0].release("attempt 1")
    second, num_hits = fleet.serve(0, make_request("attempt 2", [*TURN, 7, 7, 7]))
    assert (second, num_hits) == ("r1" if first == "r0" else "r0", 0)
    fleet.replicas[second].finish("attempt 2")
    del fleet.replicas[first]
    fleet.broadcast()
    assert fleet.routers[0].release("attempt 2")
    fleet.routers[0].check()
    assert fleet.routers[0].loads.num_reservations == fleet.routers[0].blocks.num_expectations == 0
