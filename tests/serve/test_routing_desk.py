"""The ingress's side of routing, between Ray's router, the replicas' reports and the streams."""

from dataclasses import replace

from serve_paged.core.block_hash import extend_chain
from serve_paged.core.kv_events import BlockEvents, BlockSnapshot
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.replica_report import ReplicaReport
from serve_paged.core.routing_decision import Outcome
from serve_paged.core.routing_table import RoutingConfig
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.routing_desk import RoutingDesk

CAPACITY = ReplicaCapacity(num_blocks=100, max_num_seqs=8, token_s=0.01)
PROMPT = list(range(64))
CHAIN: list[bytes] = []
extend_chain(CHAIN, b"root", PROMPT, 16)


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def report(
    replica_id: str,
    seq_no: int = 1,
    *,
    blocks: int = 0,
    events: BlockEvents | None = None,
    latest: int = 0,
    snapshot: BlockSnapshot | None = None,
) -> ReplicaReport:
    load = LoadReport(seq_no, blocks, 0, 0, 0.01, frozenset())
    return ReplicaReport(replica_id, CAPACITY, load, events, latest if events is None else events.seq_no, snapshot)


def request(request_id: str = "r") -> EngineRequest:
    params = SamplingParams(max_tokens=16, seed=0)
    return EngineRequest(request_id, PROMPT, params, cache_root=b"root", block_hashes=tuple(CHAIN))


def desk(*replica_ids: str, clock: Clock | None = None) -> RoutingDesk:
    """A desk whose replicas have reported once."""
    made = RoutingDesk(RoutingConfig(), clock=clock or Clock())
    made.set_replicas(replica_ids)
    for replica_id in replica_ids:
        assert not made.report(report(replica_id))
    return made


def chosen(at: RoutingDesk, request_id: str = "r") -> str | None:
    decision = at.choose(request(request_id))
    at.check()
    assert decision is not None
    return decision.chosen


def test_a_request_goes_where_its_blocks_are() -> None:
    at = desk("a", "b", "c")
    at.report(report("b", 2, events=BlockEvents(1, tuple(CHAIN), ())))
    assert chosen(at) == "b"


def test_blocks_that_were_evicted_attract_nobody() -> None:
    at = desk("a", "b")
    at.report(report("b", 2, events=BlockEvents(1, tuple(CHAIN), ())))
    at.report(report("b", 3, events=BlockEvents(2, (), tuple(CHAIN)), blocks=10))
    assert chosen(at) == "a"


def test_before_any_report_there_is_nothing_to_go_by() -> None:
    at = RoutingDesk(RoutingConfig())
    at.set_replicas(["a"])
    assert at.choose(request()) is None


def test_a_report_of_a_replica_that_ray_does_not_route_to_is_ignored() -> None:
    at = desk("a")
    at.report(report("draining"))
    assert at.choose(request()).candidates[0].replica_id == "a"  # type: ignore[union-attr]
    at.check()


def test_a_missed_batch_is_noticed_and_a_snapshot_heals_it() -> None:
    at = desk("a")
    assert at.report(report("a", 2, events=BlockEvents(2, (b"x",), ())))
    assert at.degraded() == ["a"]
    assert not at.report(report("a", 3, latest=2, snapshot=BlockSnapshot(2, (b"x", b"y"))))
    assert at.degraded() == []


def test_a_request_refused_by_its_replica_goes_to_another() -> None:
    at = desk("a", "b")
    first = chosen(at)
    assert chosen(at) == ({"a", "b"} - {first}).pop()


def test_an_ended_request_leaves_nothing_behind() -> None:
    at = desk("a", "b")
    for number in range(20):
        chosen(at, f"r{number}")
        at.prefilled(f"r{number}", 0)
        at.ended(f"r{number}", num_output_tokens=None)
    assert at._table.loads.num_reservations == 0
    assert at._table.blocks.num_expectations == 0


def test_a_dead_replica_is_never_chosen_again_though_ray_still_names_it() -> None:
    at = desk("a", "b")
    at.died("a")
    at.set_replicas(["a", "b"])
    at.report(report("a", 9))
    assert {chosen(at, f"r{n}") for n in range(5)} == {"b"}


def test_an_unreachable_replica_is_chosen_again_once_it_reports() -> None:
    at = desk("a", "b")
    lost = chosen(at)
    at.lost("r")
    at.ended("r", None)
    other = ({"a", "b"} - {lost}).pop()
    assert {chosen(at, f"r{n}") for n in range(3)} == {other}
    assert lost is not None
    at.report(report(other, 9, blocks=99))
    at.report(report(lost, 9))
    assert chosen(at, "again") == lost


def test_requests_on_a_departing_replica_are_told_once() -> None:
    told: list[str] = []
    at = desk("a", "b")
    leaving = chosen(at)
    at.on_departure("r", lambda: told.append("r"))
    at.set_replicas({"a", "b"} - {leaving})
    at.set_replicas({"a", "b"} - {leaving})
    assert told == ["r"]


def test_a_request_whose_replica_has_left_meanwhile_is_told_at_once() -> None:
    told: list[str] = []
    at = desk("a", "b")
    leaving = chosen(at)
    at.set_replicas({"a", "b"} - {leaving})
    at.on_departure("r", lambda: told.append("r"))
    assert told == ["r"]


def test_where_all_are_full_a_request_waits_and_then_queues_at_a_replica() -> None:
    clock = Clock()
    at = desk("a", "b", clock=clock)
    for replica_id in ("a", "b"):
        at.report(report(replica_id, 2, blocks=99))
    decision = at.choose(request())
    assert decision is not None
    assert decision.outcome is Outcome.ALL_FULL
    clock.now = 0.9
    assert at.choose(request()) is not None
    clock.now = 1.0
    assert at.choose(request()) is None  # Ray's own order: the shortest queue
    at.ended("r", None)
    at.check()


def test_room_ends_the_wait() -> None:
    at = desk("a", "b")
    for replica_id in ("a", "b"):
        at.report(report(replica_id, 2, blocks=99))
    assert chosen(at) is None
    at.report(report("b", 3, blocks=10))
    assert chosen(at) == "b"


def test_a_lone_replica_queues_what_it_has_no_room_for() -> None:
    at = desk("a")
    at.report(report("a", 2, blocks=99))
    assert at.choose(request()) is None


def test_a_resumed_request_brings_what_it_has_and_asks_for_what_is_left() -> None:
    at = desk("a")
    resumed = replace(request(), output_token_ids={0: [7] * 10})
    decision = at.choose(resumed)
    assert decision is not None
    assert decision.candidates[0].num_new_blocks == -(-(64 + 10 + 6) // 16)


def test_decisions_are_remembered_by_request() -> None:
    at = desk("a", "b")
    where = chosen(at)
    at.choose(request("r-1"))
    assert [decision.reservation_id for decision in at.decisions("r")] == ["r", "r-1"]
    assert at.decisions("r")[0].chosen == where
    assert at.decisions("unknown") == []
