"""Where an ingress process decides on replicas: Ray's router asks, replicas report, streams tell how it went."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import count, takewhile

from serve_paged.core.load import EXPECTED_OUTPUT_TOKENS
from serve_paged.core.output_length import OutputLengths
from serve_paged.core.replica_report import ReplicaReport
from serve_paged.core.routing import RoutingRequest, select_and_reserve
from serve_paged.core.routing_decision import Decision
from serve_paged.core.routing_table import RoutingConfig, RoutingTable
from serve_paged.serve.engine_request import EngineRequest, attempt_id

MAX_DECISIONS = 10_000  # remembered for those who ask


@dataclass(slots=True)
class _Placement:
    """A request on its way to a replica, or there."""

    replica_id: str
    refused_by: frozenset[str]  # replicas that Ray could not hand it to
    on_departure: Callable[[], None] | None = None


class RoutingDesk:
    """The routing table of one ingress process, with what ties it to live replicas and requests.

    Replicas are eligible while Ray routes to them and they have reported; one that was seen dead never again. Safe to
    use from several threads: Ray may run its router in one of its own.
    """

    def __init__(self, config: RoutingConfig, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._config = config
        self._table = RoutingTable(config)
        self._clock = clock
        self._lock = threading.RLock()
        self._reachable: set[str] = set()  # replicas that Ray routes to
        self._departed: set[str] = set()  # those that it no longer routes to
        self._dead: set[str] = set()
        self._placements: dict[str, _Placement] = {}
        self._held_since: dict[str, float] = {}  # requests for which every replica was too full
        self._decisions: OrderedDict[str, Decision] = OrderedDict()
        self._output_lengths = OutputLengths()

    def configure(self, config: RoutingConfig) -> None:
        """Start anew with these settings: replicas come back with their next report."""
        with self._lock:
            self._config = config
            self._table = RoutingTable(config)
            self._placements.clear()

    # What Ray's router tells and asks.

    def set_replicas(self, replica_ids: Iterable[str]) -> None:
        """The replicas that requests may go to now. Those that left are dead, or drain: their requests are told."""
        with self._lock:
            reachable = set(replica_ids)
            departed = self._reachable - reachable
            self._departed = (self._departed | departed) - reachable
            self._reachable = reachable
            self._dead &= reachable
            for replica_id in departed:
                self._leave(replica_id)

    def died(self, replica_id: str) -> None:
        """A call found the replica dead."""
        with self._lock:
            self._dead.add(replica_id)
            self._leave(replica_id)

    def choose(self, request: EngineRequest) -> Decision | None:
        """Decide, and reserve. None where no replica has reported yet: there is nothing to go by.

        Asked again for the same request, the last choice has refused it, and is passed over. None also for a request
        that all replicas are too full for and that has waited `max_hold_s`, or where there is one replica alone: an
        engine queues in order and sees its blocks come free.
        """
        with self._lock:
            request_id, now = request.request_id, self._clock()
            placement = self._placements.pop(request_id, None)
            refused_by = frozenset() if placement is None else placement.refused_by | {placement.replica_id}
            self._table.release(request_id)
            if not self._table.replica_ids:
                return None
            decision = select_and_reserve(self._table, self._routing_request(request, refused_by), now)
            self._remember(request_id, decision)
            if decision.chosen is not None:
                self._placements[request_id] = _Placement(decision.chosen, refused_by)
                self._held_since.pop(request_id, None)
                return decision
            held_s = now - self._held_since.setdefault(request_id, now)
            return decision if held_s < self._config.max_hold_s and len(self._table.replica_ids) > 1 else None

    # What replicas tell.

    def report(self, report: ReplicaReport) -> bool:
        """Take in a report; True if the replica should send a snapshot, because something it told was missed."""
        with self._lock:
            replica_id, now = report.replica_id, self._clock()
            if replica_id not in self._reachable or replica_id in self._dead:
                return False
            if replica_id not in self._table.slot_of:
                self._table.add_replica(replica_id, report.capacity, now)
            self._table.report(replica_id, report.load, now)
            if report.snapshot is not None:
                self._table.blocks.resynchronise(replica_id, report.snapshot)
            if report.events is not None:
                self._table.blocks.apply(replica_id, report.events)
            return not self._table.blocks.announce(replica_id, report.events_seq_no)

    def has_left(self, replica_id: str) -> bool:
        """Whether Ray routed to this replica once and no longer does: it is being stopped."""
        with self._lock:
            return replica_id in self._departed

    # What streams tell.

    def prefilled(self, request_id: str, events_seq_no: int) -> None:
        """The first token is there; the replica's batch of events with this number covers the prompt's blocks."""
        with self._lock:
            if request_id in self._placements:
                self._table.prefilled(request_id, events_seq_no)

    def ended(self, request_id: str, num_output_tokens: int | None) -> None:
        """The attempt is over, in whatever way; the length of an output that came to its own end."""
        with self._lock:
            self._placements.pop(request_id, None)
            self._held_since.pop(request_id, None)
            self._table.release(request_id)
            if num_output_tokens is not None:
                self._output_lengths.record(num_output_tokens)

    def lost(self, request_id: str) -> None:
        """The attempt found its replica unreachable: it gets no more requests until it reports again."""
        with self._lock:
            if (placement := self._placements.get(request_id)) is not None:
                self._leave(placement.replica_id)

    def on_departure(self, request_id: str, call: Callable[[], None]) -> None:
        """Call this (from any thread) when the request's replica takes no more requests: it is dead, or drains."""
        with self._lock:
            placement = self._placements.get(request_id)
            if placement is None:
                return
            if placement.replica_id in self._reachable - self._dead:
                placement.on_departure = call
                return
        call()

    def decisions(self, request_id: str) -> list[Decision]:
        """The latest decision on a request, then those on its later attempts, as far as they are remembered."""
        with self._lock:
            attempts = (attempt_id(request_id, number) for number in count())
            return [self._decisions[attempt] for attempt in takewhile(self._decisions.__contains__, attempts)]

    def degraded(self) -> list[str]:
        """Replicas whose index is not exact now."""
        with self._lock:
            return self._table.blocks.degraded()

    def check(self) -> None:
        """Assert every invariant."""
        with self._lock:
            self._table.check()
            assert set(self._table.slot_of) <= self._reachable - self._dead

    def _leave(self, replica_id: str) -> None:
        if replica_id in self._table.slot_of:
            self._table.remove_replica(replica_id)
        for placement in list(self._placements.values()):
            if placement.replica_id == replica_id and placement.on_departure is not None:
                placement.on_departure()
                placement.on_departure = None

    def _remember(self, request_id: str, decision: Decision) -> None:
        self._decisions[request_id] = decision
        self._decisions.move_to_end(request_id)
        while len(self._decisions) > MAX_DECISIONS:
            self._decisions.popitem(last=False)

    def _routing_request(self, request: EngineRequest, excluded: frozenset[str]) -> RoutingRequest:
        outputs = [len(tokens) for tokens in request.output_token_ids.values()]
        produced = max(outputs, default=0)
        known = self._output_lengths.known
        expected = self._output_lengths.expected_remaining(produced) if known else EXPECTED_OUTPUT_TOKENS
        if request.params.max_tokens is not None:
            expected = min(expected, request.params.max_tokens - produced)
        return RoutingRequest(
            reservation_id=request.request_id,
            block_hashes=request.block_hashes,
            num_tokens=len(request.prompt_token_ids) + produced,
            num_output_tokens=max(1, expected),
            num_choices=len(outputs) or request.params.n,
            session_id=request.session_id,
            excluded=excluded,
        )
