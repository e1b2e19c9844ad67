"""What a router believes of its replicas' load: the last report and what it has sent since, each counted once."""

from math import inf

import pytest

from serve_paged.core.load_view import LoadReport, LoadView, ReplicaCapacity, Reservation

CAPACITY = ReplicaCapacity(num_blocks=100, max_num_seqs=10, token_s=0.001)


def make_view() -> LoadView:
    view = LoadView(barrier_s=0.2)
    view.add_replica(0, CAPACITY, now=0.0)
    return view


def reservation(name: str, *, num_blocks: int = 10, num_tokens: int = 160) -> Reservation:
    return Reservation(name, 0, num_blocks, 1, num_tokens)


def report(seq_no: int, *request_ids: str, num_blocks: int = 0, num_tokens: int = 0) -> LoadReport:
    return LoadReport(seq_no, num_blocks, len(request_ids), num_tokens, 0.001, frozenset(request_ids))


def test_a_new_replica_is_empty():
    view = make_view()
    assert (view.num_free_blocks, view.num_free_seqs) == ([100], [10])
    assert (view.occupancy, view.queue_s, view.barrier_s) == ([0.0], [0.0], [0.0])


def test_a_reservation_counts_at_once():
    view = make_view()
    view.reserve(reservation("a", num_blocks=50))
    assert (view.num_free_blocks, view.num_free_seqs) == ([50], [9])
    assert view.queue_s == [pytest.approx(0.16)]
    assert view.barrier_s == [pytest.approx(0.2)], "half full costs barrier_s"


def test_a_report_that_includes_a_request_takes_the_place_of_its_reservation():
    view = make_view()
    view.reserve(reservation("a"))
    view.reserve(reservation("b"))
    view.report(0, report(1, "a", num_blocks=12, num_tokens=100), now=1.0)
    assert view.num_free_blocks == [100 - 12 - 10], "b is not in the report"
    assert view.queue_s == [pytest.approx(0.1 + 0.16)]
    included = view.reservation("a")
    assert included is not None
    assert included.included_in == 1


def test_a_request_once_included_is_not_counted_again_when_it_ends_before_we_hear_of_it():
    view = make_view()
    view.reserve(reservation("a"))
    view.report(0, report(1, "a", num_blocks=12), now=1.0)
    view.report(0, report(2), now=2.0)
    assert view.num_free_blocks == [100]
    assert view.release("a")
    assert view.num_free_blocks == [100]


def test_a_request_that_many_reports_include_is_given_up_once():
    view = make_view()
    view.reserve(reservation("a"))
    view.reserve(reservation("b"))
    view.report(0, report(1, "a", num_blocks=12), now=1.0)
    view.report(0, report(2, "a", num_blocks=13), now=2.0)
    assert view.num_free_blocks == [100 - 13 - 10]
    included = view.reservation("a")
    assert included is not None
    assert included.included_in == 1
    view.check()


def test_a_late_report_is_ignored():
    view = make_view()
    view.reserve(reservation("a"))
    assert view.report(0, report(2, num_blocks=5), now=1.0)
    assert not view.report(0, report(1, "a", num_blocks=70), now=1.1)
    assert view.num_free_blocks == [100 - 5 - 10]
    assert view.reported_at == [1.0]


def test_the_requests_of_other_routers_are_in_the_report_alone():
    view = make_view()
    view.report(0, report(1, "of another router", num_blocks=30), now=1.0)
    assert view.num_free_blocks == [70]
    assert not view.release("of another router")


def test_occupancy_is_the_larger_share_and_nothing_is_free_beyond_it():
    view = make_view()
    view.report(0, report(1, *"abcdefgh", num_blocks=20), now=1.0)
    assert view.occupancy == [0.8]
    view.report(0, report(2, *"abcdefgh", num_blocks=120), now=1.0)
    assert view.occupancy == [1.2]
    assert view.num_free_blocks == [0]
    assert view.barrier_s == [inf]


def test_a_report_brings_the_measured_speed():
    view = make_view()
    view.report(0, LoadReport(1, 0, 0, 100, 0.01, frozenset()), now=1.0)
    assert view.queue_s == [pytest.approx(1.0)]


def test_a_released_reservation_leaves_nothing_and_can_be_released_once():
    view = make_view()
    view.reserve(reservation("a"))
    assert view.release("a")
    assert not view.release("a")
    assert (view.num_free_blocks, view.num_free_seqs, view.queue_s) == ([100], [10], [0.0])


def test_a_removed_replica_takes_its_reservations_along_and_has_no_room():
    view = make_view()
    view.reserve(reservation("a"))
    view.remove_replica(0)
    assert view.num_reservations == 0
    assert not view.release("a")
    assert (view.num_free_blocks, view.num_free_seqs) == ([-1], [-1])
    view.add_replica(0, CAPACITY, now=5.0)
    assert view.num_free_blocks == [100]


@pytest.mark.parametrize("capacity", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)])
def test_a_replica_without_capacity_is_refused(capacity: tuple[int, int, float]):
    with pytest.raises(ValueError, match="a replica needs"):
        LoadView(0.2).add_replica(0, ReplicaCapacity(*capacity), now=0.0)
