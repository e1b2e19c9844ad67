"""Which replica holds which KV blocks, as far as a router knows.

Two sources. *Reported*: numbered batches of events. The book of a replica always equals that replica's cache as of
batch `applied`: a batch that comes too early is held back, one that comes twice is ignored. So reordering heals by
itself, and a lost batch leaves an old but consistent book, which is called exact only while no later batch is known
to exist. *Expected*: the blocks of a request just sent there, from its selection until the replica's events cover it.

A block's holders are an int with one bit per replica: the overlap of a chain with all replicas at once is an AND per
block, whatever their number.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from serve_paged.core.kv_events import BlockEvents, BlockSnapshot

UNKNOWN = -1  # nothing is known of a replica's cache: it may be older than this router


@dataclass(slots=True)
class _Book:
    """What is known of one replica."""

    slot: int
    bit: int  # 1 << slot, the one object that all blocks held by this replica alone share
    applied: int = UNKNOWN  # the batch as of which `stored` is right
    latest: int = UNKNOWN  # the highest number heard of
    stored: set[bytes] = field(default_factory=set)
    held_back: dict[int, BlockEvents] = field(default_factory=dict)  # batches after a gap, by number
    num_expecting: dict[bytes, int] = field(default_factory=dict)  # expectations that name a block
    expectations: set[str] = field(default_factory=set)

    @property
    def exact(self) -> bool:
        return self.applied != UNKNOWN and self.applied == self.latest


@dataclass(slots=True)
class _Expectation:
    """Blocks that a replica will hold once a request is computed."""

    book: _Book
    hashes: tuple[bytes, ...]
    until: int | None = None  # the batch that tells how it went; None: not computed yet


class BlockIndex:
    """Reported and expected blocks of every replica. A replica id stands for one pool: a new pool needs a new id."""

    def __init__(self, max_held_back: int = 64) -> None:
        self._max_held_back = max_held_back  # batches kept after a gap; of those beyond, only the number is kept
        self._holders: dict[bytes, int] = {}
        self._books: dict[str, _Book] = {}
        self._expectations: dict[str, _Expectation] = {}
        self._free_slots: list[int] = []

    def __contains__(self, replica_id: str) -> bool:
        return replica_id in self._books

    @property
    def num_blocks(self) -> int:
        """Distinct blocks that somebody holds or is expected to hold."""
        return len(self._holders)

    @property
    def num_expectations(self) -> int:
        """Expectations that are neither fulfilled nor withdrawn."""
        return len(self._expectations)

    def add_replica(self, replica_id: str) -> int:
        """A replica of which nothing is known yet; its slot, i.e. its bit in `overlaps`. Freed slots are used again."""
        assert replica_id not in self._books, f"replica {replica_id} is there already"
        slot = heappop(self._free_slots) if self._free_slots else len(self._books)
        self._books[replica_id] = _Book(slot, 1 << slot)
        return slot

    def remove_replica(self, replica_id: str) -> None:
        """The replica is gone, and its blocks with it."""
        book = self._books.pop(replica_id)
        for expectation_id in book.expectations:
            del self._expectations[expectation_id]
        for block_hash in book.stored | book.num_expecting.keys():
            self._clear(block_hash, book)
        heappush(self._free_slots, book.slot)

    def is_exact(self, replica_id: str) -> bool:
        """Whether every batch that is known to exist has been applied. If not, ask the replica for a snapshot."""
        return self._books[replica_id].exact

    def applied(self, replica_id: str) -> int:
        """The batch as of which the book is right; `UNKNOWN` before the first."""
        return self._books[replica_id].applied

    def degraded(self) -> list[str]:
        """The replicas that need a resynchronisation, unless a missing batch is still on its way."""
        return [replica_id for replica_id, book in self._books.items() if not book.exact]

    def apply(self, replica_id: str, events: BlockEvents) -> bool:
        """Take in a batch, in whatever order batches come; whether the book is exact now."""
        book = self._books[replica_id]
        book.held_back[events.seq_no] = events
        self._catch_up(book, events.seq_no)
        return book.exact

    def announce(self, replica_id: str, seq_no: int) -> bool:
        """The replica says that its last batch was `seq_no` (with its load, say); whether the book is exact now.

        Tells of a lost batch that no other has followed. 0 says that the replica's cache was never used.
        """
        book = self._books[replica_id]
        if seq_no == 0 and book.applied == UNKNOWN:
            book.applied = 0
        self._catch_up(book, seq_no)
        return book.exact

    def resynchronise(self, replica_id: str, snapshot: BlockSnapshot) -> bool:
        """Start from a snapshot, unless the book is past it already; whether the book is exact now."""
        book = self._books[replica_id]
        if snapshot.seq_no >= book.applied:
            stored = set(snapshot.stored)
            self._remove(book, book.stored - stored)
            self._store(book, stored - book.stored)
            book.applied = snapshot.seq_no
        self._catch_up(book, snapshot.seq_no)
        return book.exact

    def overlaps(self, hashes: Sequence[bytes], slots: int) -> list[tuple[int, int]]:
        """How many leading blocks of a chain each of these replicas holds, as (number, slots with just that many).

        `slots` and the answer's slots are bit sets. The walk ends at the first block that none of them holds.
        """
        groups = []
        holders = self._holders
        for depth, block_hash in enumerate(hashes):
            remaining = holders.get(block_hash, 0) & slots
            if remaining != slots:
                groups.append((depth, slots ^ remaining))
                slots = remaining
                if not slots:
                    return groups
        groups.append((len(hashes), slots))
        return groups

    def expect(self, expectation_id: str, replica_id: str, hashes: Sequence[bytes]) -> None:
        """A request with this chain goes to the replica: all of it counts as held from now on.

        Of reported blocks, too, it is remembered: one that is evicted before the request gets there is computed anew.
        An id is never used twice.
        """
        assert expectation_id not in self._expectations, f"{expectation_id} is expected already"
        book = self._books[replica_id]
        holders, num_expecting, stored, bit = self._holders, book.num_expecting, book.stored, book.bit
        for block_hash in hashes:
            num_expecting[block_hash] = num_expecting.get(block_hash, 0) + 1
            if block_hash not in stored:
                mask = holders.get(block_hash)
                holders[block_hash] = bit if mask is None else mask | bit
        self._expectations[expectation_id] = _Expectation(book, tuple(hashes))
        book.expectations.add(expectation_id)

    def confirm(self, expectation_id: str, seq_no: int) -> None:
        """The blocks are computed, and batch `seq_no` covers them: once it is applied, the events alone count."""
        expectation = self._expectations.get(expectation_id)
        if expectation is not None:  # else its replica is gone
            expectation.until = seq_no
            self._settle(expectation.book)

    def withdraw(self, expectation_id: str) -> None:
        """The request has ended: blocks that were not computed are expected no longer. Confirmed ones still are."""
        expectation = self._expectations.get(expectation_id)
        if expectation is not None and expectation.until is None:
            self._forget(expectation_id)

    def check(self) -> None:
        """Assert every invariant."""
        holders: dict[bytes, int] = {}
        for book in self._books.values():
            for block_hash in book.stored | book.num_expecting.keys():
                holders[block_hash] = holders.get(block_hash, 0) | book.bit
            assert book.applied <= book.latest
            assert all(seq_no > book.applied for seq_no in book.held_back)
            assert book.applied + 1 not in book.held_back, "a batch is held back for nothing"
            counts = Counter(name for key in book.expectations for name in self._expectations[key].hashes)
            assert counts == book.num_expecting, "an expectation leaks"
        assert holders == self._holders, "holders and books disagree"
        slots = [book.slot for book in self._books.values()]
        assert sorted(slots + self._free_slots) == list(range(len(slots) + len(self._free_slots)))
        assert sum(len(book.expectations) for book in self._books.values()) == len(self._expectations)

    def _catch_up(self, book: _Book, seq_no: int) -> None:
        """Apply what has become applicable, now that batch `seq_no` is known to exist."""
        book.latest = max(book.latest, seq_no)
        if book.applied == UNKNOWN and 1 in book.held_back:
            book.applied = 0  # the first batch starts from an empty cache
        for number in [number for number in book.held_back if number <= book.applied]:
            del book.held_back[number]
        while events := book.held_back.pop(book.applied + 1, None):
            self._remove(book, events.removed)
            self._store(book, events.stored)
            book.applied = events.seq_no
        while len(book.held_back) > self._max_held_back:
            del book.held_back[max(book.held_back)]
        self._settle(book)

    def _settle(self, book: _Book) -> None:
        """Drop the expectations that the events have overtaken."""
        for expectation_id in list(book.expectations):
            until = self._expectations[expectation_id].until
            if until is not None and until <= book.applied:
                self._forget(expectation_id)

    def _store(self, book: _Book, hashes: Iterable[bytes]) -> None:
        holders, bit = self._holders, book.bit
        for block_hash in hashes:
            book.stored.add(block_hash)
            mask = holders.get(block_hash)
            holders[block_hash] = bit if mask is None else mask | bit

    def _remove(self, book: _Book, hashes: Iterable[bytes]) -> None:
        for block_hash in hashes:
            book.stored.discard(block_hash)
            if block_hash not in book.num_expecting:
                self._clear(block_hash, book)

    def _forget(self, expectation_id: str) -> None:
        expectation = self._expectations.pop(expectation_id)
        book = expectation.book
        book.expectations.remove(expectation_id)
        for block_hash in expectation.hashes:
            book.num_expecting[block_hash] -= 1
            if not book.num_expecting[block_hash]:
                del book.num_expecting[block_hash]
                if block_hash not in book.stored:
                    self._clear(block_hash, book)

    def _clear(self, block_hash: bytes, book: _Book) -> None:
        mask = self._holders.get(block_hash, 0) & ~book.bit
        if mask:
            self._holders[block_hash] = mask
        else:
            self._holders.pop(block_hash, None)
