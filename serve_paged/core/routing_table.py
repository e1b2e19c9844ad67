"""All that a router knows of its replicas: the blocks they hold, their load, and what is on its way to them."""

from dataclasses import dataclass
from hashlib import blake2b

from serve_paged.core.block_index import BlockIndex
from serve_paged.core.load_view import LoadReport, LoadView, ReplicaCapacity


@dataclass(frozen=True, slots=True)
class RoutingConfig:
    """Settings of the cost; all times in seconds.

    displacement: seconds that a second of prefill costs others, who wait behind it. Without it, waiting for a prefix
        that a replica is just computing costs the same as computing it a second time elsewhere, and a burst of equal
        prompts scatters. With it, a second replica computes it once the first costs a further prefill's time more.
    barrier_s: weight of k / (1 - k), i.e. the cost of a replica that is half full (SMG's `least_load` has 0.15).
    tie_s: costs that differ by less are the same: below what the measured times are good for.
    max_hold_s: where every replica is too full, a request waits this long for room; then the least busy one queues it.
    report_grace_s: a replica may be silent this long. Each second beyond costs a second: that much may have come to it.
    max_explained: candidates that a decision describes.
    """

    block_size: int = 16
    displacement: float = 1.0
    barrier_s: float = 0.15
    tie_s: float = 1e-3
    report_grace_s: float = 2.0
    max_hold_s: float = 1.0
    max_explained: int = 8

    def __post_init__(self) -> None:
        if self.block_size < 1 or self.max_explained < 2:
            raise ValueError(
                "block_size must be at least 1 and max_explained at least 2 (the chosen and the runner-up)"
            )
        if min(self.displacement, self.barrier_s, self.tie_s, self.report_grace_s, self.max_hold_s) < 0:
            raise ValueError("costs must not be negative")


class RoutingTable:
    """The state that `select_and_reserve` reads and writes. Belongs to one thread; takes no clock, no I/O."""

    def __init__(self, config: RoutingConfig) -> None:
        self.config = config
        self.blocks = BlockIndex()
        self.loads = LoadView(config.barrier_s)
        self.slot_of: dict[str, int] = {}
        self.id_at: list[str | None] = []  # by slot
        self.salts: list[int] = []  # by slot: 64 bits made of the replica's id
        self.slots = 0  # those in use, as a bit set

    @property
    def replica_ids(self) -> list[str]:
        """The replicas that requests may go to."""
        return list(self.slot_of)

    def add_replica(self, replica_id: str, capacity: ReplicaCapacity, now: float) -> None:
        """A replica has come. An id stands for one process: a replacement has another."""
        slot = self.blocks.add_replica(replica_id)
        self.loads.add_replica(slot, capacity, now)
        if slot == len(self.id_at):
            self.id_at.append(None)
            self.salts.append(0)
        self.slot_of[replica_id] = slot
        self.id_at[slot] = replica_id
        self.salts[slot] = int.from_bytes(blake2b(replica_id.encode(), digest_size=8).digest(), "little")
        self.slots |= 1 << slot

    def remove_replica(self, replica_id: str) -> None:
        """A replica is dead or draining: never chosen again, nothing reserved there any more."""
        slot = self.slot_of.pop(replica_id)
        self.blocks.remove_replica(replica_id)
        self.loads.remove_replica(slot)
        self.id_at[slot] = None
        self.slots ^= 1 << slot

    def report(self, replica_id: str, report: LoadReport, now: float) -> bool:
        """A replica has told its load; False if it had told a newer one before."""
        return self.loads.report(self.slot_of[replica_id], report, now)

    def prefilled(self, reservation_id: str, events_seq_no: int) -> None:
        """A request's first token is there; `events_seq_no`: the batch that covers the blocks of its prompt."""
        self.blocks.confirm(reservation_id, events_seq_no)

    def release(self, reservation_id: str) -> bool:
        """A request has ended in whatever way; False if its replica is gone or it was released before."""
        self.blocks.withdraw(reservation_id)
        return self.loads.release(reservation_id)

    def check(self) -> None:
        """Assert every invariant."""
        self.blocks.check()
        self.loads.check()
        assert self.slots == sum(1 << slot for slot in self.slot_of.values())
        assert {replica_id for replica_id in self.id_at if replica_id is not None} == set(self.slot_of)
