"""Who holds which KV block, and which blocks can be found again by their hash. Knows ids and hashes, no tensors.

A block is in exactly one state:
    referenced  by one or more sequences; may be registered
    free        in the eviction queue; keeps its contents, and its hash if registered, until it is handed out again
    held        only within a step: the source of a copy-on-write whose last reference has gone (see `copy_on_write`)
Block 0 is the null block: padding points at it, and it is never handed out.

The free queue is in order of eviction (vLLM's FreeKVCacheBlockQueue is the model; `OrderedDict` is a linked list, so
removal from the middle is O(1)): unregistered blocks first, since they are good for nothing, then the least recently
freed. A sequence's blocks are freed tail first, so that a chain loses its tail before its head.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Sequence
from typing import Protocol

from serve_paged.core.host_tier import HostTier

NULL_BLOCK = 0


def num_blocks_for(num_tokens: int, block_size: int) -> int:
    """Blocks that this many tokens take."""
    return -(-num_tokens // block_size)


class BlockObserver(Protocol):
    """Hears of every block that becomes findable by its hash, or ceases to be (see core/kv_events.py)."""

    def block_stored(self, block_hash: bytes) -> None:
        """The block has been registered."""

    def block_removed(self, block_hash: bytes) -> None:
        """The block has been evicted."""


class BlockPool:
    """Reference counts, free queue and prefix cache over `num_blocks` device blocks (the null block among them)."""

    def __init__(self, num_blocks: int, num_host_blocks: int = 0) -> None:
        if num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2 (block 0 is the null block), got {num_blocks}")
        self.num_blocks = num_blocks
        self.host = HostTier(num_host_blocks)
        self.observer: BlockObserver | None = None
        self._num_refs = [0] * num_blocks
        self._hash_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(1, num_blocks))
        self._copy_sources: set[int] = set()  # of this step

    @property
    def num_usable(self) -> int:
        """Blocks that sequences can hold: all but the null block."""
        return self.num_blocks - 1

    @property
    def num_free(self) -> int:
        """Blocks nobody refers to, cached ones included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of the usable blocks that are referenced, 0 to 1."""
        return 1.0 - len(self._free) / self.num_usable

    def is_shared(self, block: int) -> bool:
        """Whether a write into this block would be seen by another sequence."""
        return self._num_refs[block] > 1

    def num_taken(self, hits: Iterable[int]) -> int:
        """How many of these prefix hits are not in the eviction queue: one more reference needs no free block."""
        return sum(block != NULL_BLOCK and block not in self._free for block in hits)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take blocks from the eviction queue; their former contents can no longer be found. The caller checks room."""
        assert num_blocks <= len(self._free), f"{num_blocks} blocks wanted, {len(self._free)} free"
        blocks = [self._free.popitem(last=False)[0] for _ in range(num_blocks)]
        for block in blocks:
            self._num_refs[block] = 1
            block_hash = self._hash_of[block]
            if block_hash is not None:
                del self._block_of[block_hash]
                self._hash_of[block] = None
                if self.observer is not None:
                    self.observer.block_removed(block_hash)
        return blocks

    def acquire(self, blocks: Iterable[int]) -> None:
        """One more reference to each: a prefix hit or a fork."""
        for block in blocks:
            assert block != NULL_BLOCK, "the null block belongs to nobody"
            if self._num_refs[block] == 0 and block not in self._copy_sources:
                del self._free[block]
            self._num_refs[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less to each block of a table; the last holder's go to the eviction queue, tail first."""
        for block in reversed(blocks):
            assert self._num_refs[block] > 0, f"block {block} released twice"
            self._num_refs[block] -= 1
            if self._num_refs[block] == 0 and block not in self._copy_sources:
                self._enqueue(block)

    def register(self, block: int, block_hash: bytes) -> bool:
        """Let a full block be found by its hash. Of equal blocks the first wins; the others stay unregistered."""
        assert self._num_refs[block] > 0, f"block {block} is nobody's"
        assert self._hash_of[block] is None, f"block {block} is registered"
        if block_hash in self._block_of:
            return False
        self._block_of[block_hash] = block
        self._hash_of[block] = block_hash
        if self.observer is not None:
            self.observer.block_stored(block_hash)
        return True

    def registered_hashes(self) -> list[bytes]:
        """The hash of every device block that can be found."""
        return list(self._block_of)

    def match_prefix(self, hashes: Sequence[bytes]) -> list[int]:
        """The leading blocks of a chain that are cached: device block ids, 0 for one that only the host tier has."""
        hits = []
        for block_hash in hashes:
            block = self._block_of.get(block_hash, NULL_BLOCK)
            if block == NULL_BLOCK and block_hash not in self.host:
                break
            hits.append(block)
        return hits

    def take_prefix(self, hashes: Sequence[bytes], hits: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
        """Reference the hits of `match_prefix`; the block table, and the (host, device) copies it needs."""
        table = list(hits)
        self.acquire(block for block in hits if block != NULL_BLOCK)  # first: allocation must not evict them
        swap_in = []
        for index, block in enumerate(hits):
            if block == NULL_BLOCK:
                table[index] = self.allocate(1)[0]
                swap_in.append((self.host.read(hashes[index]), table[index]))
                self.register(table[index], hashes[index])
        return table, swap_in

    def save_to_host(self, hashes: list[bytes], blocks: Sequence[int]) -> list[tuple[int, int]]:
        """The (device, host) copies that put the full blocks of a table into the host tier; none for those there."""
        return [(blocks[index], slot) for index, slot in self.host.store(hashes)]

    def copy_on_write(self, source: int) -> int:
        """Give up one reference to a shared block for a fresh one, into which the caller has it copied.

        Copies run after this step's swap-ins: were `source` freed and handed out again within this step, a swap-in
        could overwrite it before it is read. So it is held back until `end_step`.
        """
        assert self._num_refs[source] > 1
        target = self.allocate(1)[0]
        self._num_refs[source] -= 1
        self._copy_sources.add(source)
        return target

    def end_step(self) -> None:
        """The step is planned: whatever is handed out from now on is written only after this step has run."""
        for block in self._copy_sources:
            if self._num_refs[block] == 0:
                self._enqueue(block)
        self._copy_sources.clear()
        self.host.end_step()

    def check(self, tables: Iterable[Sequence[int]] | None = None) -> None:
        """Assert every invariant; with the block tables of all sequences, also that no reference leaks."""
        assert self._num_refs[NULL_BLOCK] == 0
        assert NULL_BLOCK not in self._free
        assert NULL_BLOCK not in self._block_of.values()
        for block in range(1, self.num_blocks):
            held = block in self._copy_sources and self._num_refs[block] == 0
            assert (self._num_refs[block] > 0) + (block in self._free) + held == 1, f"block {block} in no one state"
        registered = {block_hash: block for block, block_hash in enumerate(self._hash_of) if block_hash is not None}
        assert registered == self._block_of, "hashes and blocks disagree"
        self.host.check()
        if tables is not None:
            counts = Counter(block for table in tables for block in table)
            assert all(self._num_refs[block] == counts[block] for block in range(self.num_blocks)), "references leak"

    def _enqueue(self, block: int) -> None:
        self._free[block] = None
        if self._hash_of[block] is None:
            self._free.move_to_end(block, last=False)
