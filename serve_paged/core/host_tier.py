"""The host tier of the prefix cache: which block hash lies in which slot of host memory, evicted least recently used.

It holds no contents, only the book. Within one step, swap-outs run before swap-ins, so a slot written in a step may
be read in it. A slot that this step reads or writes is pinned until `end_step`: a later swap-out of the same step
must neither overwrite what a swap-in is still to read, nor what a swap-out has just been told to write.
"""

from collections import OrderedDict


class HostTier:
    """Slots 0 to num_blocks - 1 of host memory, keyed by block hash."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._slot_of: OrderedDict[bytes, int] = OrderedDict()  # least recently used first; pinned ones are a suffix
        self._unused = list(range(num_blocks - 1, -1, -1))
        self._pinned: set[bytes] = set()

    def __contains__(self, block_hash: bytes) -> bool:
        return block_hash in self._slot_of

    def has_room_for(self, hashes: list[bytes]) -> bool:
        """Whether at least the head of a chain is stored or can be."""
        return hashes[0] in self._slot_of or bool(self._unused) or self._evictable() is not None

    def slot_of(self, block_hash: bytes) -> int:
        """Where a stored block lies. Nothing is pinned: it holds until the next step is planned."""
        return self._slot_of[block_hash]

    def read(self, block_hash: bytes) -> int:
        """The slot of a stored block, which stays as it is until the step ends."""
        self._touch(block_hash)
        return self._slot_of[block_hash]

    def store(self, hashes: list[bytes]) -> list[tuple[int, int]]:
        """Make room for a chain; (index into `hashes`, slot) of each block that is still to be copied out.

        The head of the chain is stored first: when the slots run out, what is left out is its tail, since no block is
        ever found without those before it. For the same reason the tail becomes the first to be evicted.
        """
        for block_hash in hashes:
            if block_hash in self._slot_of:
                self._touch(block_hash)  # keep what is here from being evicted for its own tail
        to_copy = []
        num_stored = 0
        for index, block_hash in enumerate(hashes):
            if block_hash not in self._slot_of:
                slot = self._free_slot()
                if slot is None:
                    break
                self._slot_of[block_hash] = slot
                self._pinned.add(block_hash)
                to_copy.append((index, slot))
            num_stored += 1
        for block_hash in reversed(hashes[:num_stored]):
            self._slot_of.move_to_end(block_hash)
        return to_copy

    def end_step(self) -> None:
        """The step is planned: what the next one evicts, it writes only after this one has run."""
        self._pinned.clear()

    def check(self) -> None:
        """Assert every invariant."""
        slots = [*self._slot_of.values(), *self._unused]
        assert sorted(slots) == list(range(self.num_blocks)), "a host slot is lost or used twice"
        order = [block_hash in self._pinned for block_hash in self._slot_of]
        assert order == sorted(order), "a pinned host block is older than one that may be evicted"
        assert sum(order) == len(self._pinned), "a pinned host block is gone"

    def _touch(self, block_hash: bytes) -> None:
        self._slot_of.move_to_end(block_hash)
        self._pinned.add(block_hash)

    def _evictable(self) -> bytes | None:
        oldest = next(iter(self._slot_of), None)
        return None if oldest in self._pinned else oldest  # pinned ones are the most recent: then all of them are

    def _free_slot(self) -> int | None:
        if self._unused:
            return self._unused.pop()
        oldest = self._evictable()
        return None if oldest is None else self._slot_of.pop(oldest)
