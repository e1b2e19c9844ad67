"""How full and how busy each replica is, as far as a router knows: its last report, plus what was sent there since.

A reservation is counted until a report includes the request it stands for, and never both: reports name the requests
that they count. A report that comes late, after a newer one, is ignored.

Figures lie in one list per quantity, with a replica's slot as the index: a decision goes through a thousand replicas
in one comprehension.
"""

from dataclasses import dataclass, field
from math import inf


@dataclass(frozen=True, slots=True)
class ReplicaCapacity:
    """What a replica says of itself when it starts."""

    num_blocks: int  # that sequences can hold
    max_num_seqs: int
    token_s: float  # seconds to prefill one token; reports bring measured ones


@dataclass(frozen=True, slots=True)
class LoadReport:
    """A replica's load at one moment. Live requests are waiting, running and preempted ones."""

    seq_no: int  # 1, 2, 3 ... per replica
    num_demanded_blocks: int  # referenced + queued prompts less their prefix hits + expected remaining output
    num_seqs: int
    num_backlog_tokens: int  # of live requests, still to be prefilled
    token_s: float  # seconds to prefill one token, measured
    request_ids: frozenset[str]  # the live requests


@dataclass(slots=True)
class Reservation:
    """What a request will take of the replica it was sent to."""

    reservation_id: str  # the request's id at the replica
    slot: int
    num_blocks: int
    num_seqs: int
    num_tokens: int  # to prefill
    included_in: int | None = None  # number of the first report that counts it


@dataclass(slots=True)
class _Load:
    """The state behind one slot's figures."""

    capacity: ReplicaCapacity
    token_s: float
    report: LoadReport | None = None
    num_blocks: int = 0  # these three: of reservations that no report includes
    num_seqs: int = 0
    num_tokens: int = 0
    reservation_ids: set[str] = field(default_factory=set)


class LoadView:
    """Reported and reserved load of every replica. An empty slot has room for nothing."""

    def __init__(self, barrier_s: float) -> None:
        self._barrier_s = barrier_s  # what a replica that is half full costs
        self._loads: dict[int, _Load] = {}
        self._reservations: dict[str, Reservation] = {}
        self.num_free_blocks: list[int] = []
        self.num_free_seqs: list[int] = []
        self.occupancy: list[float] = []  # the larger of the shares of blocks and of sequences; may exceed 1
        self.token_s: list[float] = []
        self.queue_s: list[float] = []  # to prefill what is ahead
        self.barrier_s: list[float] = []  # barrier_s * k / (1 - k); infinite from k = 1 on
        self.reported_at: list[float] = []  # by this process's clock; infinite where the slot is empty

    @property
    def num_reservations(self) -> int:
        """Reservations of requests that have not ended."""
        return len(self._reservations)

    def add_replica(self, slot: int, capacity: ReplicaCapacity, now: float) -> None:
        """A replica without load, as of now: this stands for its first report."""
        if capacity.num_blocks < 1 or capacity.max_num_seqs < 1 or capacity.token_s <= 0:
            raise ValueError(f"a replica needs blocks, sequences and a prefill time, got {capacity}")
        assert slot not in self._loads, f"slot {slot} is taken"
        while len(self.token_s) <= slot:
            self._append_empty()
        self._loads[slot] = _Load(capacity, capacity.token_s)
        self.reported_at[slot] = now
        self._refresh(slot)

    def remove_replica(self, slot: int) -> None:
        """The replica is gone, and what was reserved there with it."""
        for reservation_id in self._loads.pop(slot).reservation_ids:
            del self._reservations[reservation_id]
        self.num_free_blocks[slot] = self.num_free_seqs[slot] = -1
        self.reported_at[slot] = inf

    def report(self, slot: int, report: LoadReport, now: float) -> bool:
        """Take in a report; False if a newer one has been."""
        load = self._loads[slot]
        if load.report is not None and report.seq_no <= load.report.seq_no:
            return False
        load.report, load.token_s = report, report.token_s
        self.reported_at[slot] = now
        for reservation_id in load.reservation_ids & report.request_ids:
            reservation = self._reservations[reservation_id]
            if reservation.included_in is None:
                reservation.included_in = report.seq_no
                self._count(load, reservation, -1)
        self._refresh(slot)
        return True

    def reserve(self, reservation: Reservation) -> None:
        """Count what a request will take, until a report does."""
        assert reservation.reservation_id not in self._reservations, f"{reservation.reservation_id} is reserved already"
        load = self._loads[reservation.slot]
        self._reservations[reservation.reservation_id] = reservation
        load.reservation_ids.add(reservation.reservation_id)
        self._count(load, reservation, 1)
        self._refresh(reservation.slot)

    def release(self, reservation_id: str) -> bool:
        """The request has ended, or never reached the replica; False if nothing is reserved for it (any more)."""
        reservation = self._reservations.pop(reservation_id, None)
        if reservation is None:
            return False
        load = self._loads[reservation.slot]
        load.reservation_ids.remove(reservation_id)
        if reservation.included_in is None:
            self._count(load, reservation, -1)
            self._refresh(reservation.slot)
        return True

    def reservation(self, reservation_id: str) -> Reservation | None:
        """What is reserved for a request."""
        return self._reservations.get(reservation_id)

    def check(self) -> None:
        """Assert every invariant."""
        for slot, load in self._loads.items():
            own = [self._reservations[reservation_id] for reservation_id in load.reservation_ids]
            assert all(reservation.slot == slot for reservation in own)
            open_ones = [reservation for reservation in own if reservation.included_in is None]
            assert load.num_blocks == sum(reservation.num_blocks for reservation in open_ones), "blocks leak"
            assert load.num_seqs == sum(reservation.num_seqs for reservation in open_ones), "sequences leak"
            assert load.num_tokens == sum(reservation.num_tokens for reservation in open_ones), "tokens leak"
        assert sum(len(load.reservation_ids) for load in self._loads.values()) == len(self._reservations)

    @staticmethod
    def _count(load: _Load, reservation: Reservation, sign: int) -> None:
        load.num_blocks += sign * reservation.num_blocks
        load.num_seqs += sign * reservation.num_seqs
        load.num_tokens += sign * reservation.num_tokens

    def _append_empty(self) -> None:
        self.num_free_blocks.append(-1)
        self.num_free_seqs.append(-1)
        self.reported_at.append(inf)
        for figures in (self.occupancy, self.token_s, self.queue_s, self.barrier_s):
            figures.append(0.0)

    def _refresh(self, slot: int) -> None:
        """Compute a slot's figures anew."""
        load, report = self._loads[slot], self._loads[slot].report
        num_blocks, num_seqs, num_tokens = load.num_blocks, load.num_seqs, load.num_tokens
        if report is not None:
            num_blocks += report.num_demanded_blocks
            num_seqs += report.num_seqs
            num_tokens += report.num_backlog_tokens
        capacity = load.capacity
        occupancy = max(num_blocks / capacity.num_blocks, num_seqs / capacity.max_num_seqs)
        self.num_free_blocks[slot] = max(0, capacity.num_blocks - num_blocks)
        self.num_free_seqs[slot] = max(0, capacity.max_num_seqs - num_seqs)
        self.occupancy[slot] = occupancy
        self.token_s[slot] = load.token_s
        self.queue_s[slot] = num_tokens * load.token_s
        self.barrier_s[slot] = self._barrier_s * occupancy / (1.0 - occupancy) if occupancy < 1.0 else inf
