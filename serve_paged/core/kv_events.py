"""What a replica tells the routers about its prefix cache: numbered batches of blocks stored and removed.

Batches are numbered 1, 2, 3 ... per pool, so that a listener notices what it has missed; a snapshot carries the number
of the last batch it includes, so that a listener knows from which batch on to go on. Between two batches changes
cancel out: a block stored and evicted again is never heard of. (vLLM's KV events are the model; theirs are a message
per change.) Device blocks only: a block that has moved to the host tier counts as removed.
"""

from dataclasses import dataclass

from serve_paged.core.block_pool import BlockPool


@dataclass(frozen=True, slots=True)
class BlockEvents:
    """The net changes since batch `seq_no - 1`; no hash is in both."""

    seq_no: int
    stored: tuple[bytes, ...]
    removed: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class BlockSnapshot:
    """Every block that can be found after batch `seq_no` (0: before the first)."""

    seq_no: int
    stored: tuple[bytes, ...]


class BlockEventRecorder:
    """Observes one pool from now on. What the pool holds already is part of the first batch.

    Not thread-safe: `flush` and `snapshot` belong between steps, on the thread that owns the pool.
    """

    def __init__(self, pool: BlockPool) -> None:
        assert pool.observer is None, "a pool has one observer"
        self.seq_no = 0  # of the last batch
        self._pool = pool
        self._stored: dict[bytes, None] = dict.fromkeys(pool.registered_hashes())  # since that batch; in order
        self._removed: dict[bytes, None] = {}
        self._promised = False  # whether somebody waits for the next batch, even if its changes cancel out
        pool.observer = self

    def cover(self) -> int:
        """The batch that covers all changes up to now: the last one, or the next, which will come for certain.

        A request's first token carries this number, so that a router knows from when on the events tell all of it.
        """
        self._promised = self._promised or bool(self._stored or self._removed)
        return self.seq_no + self._promised

    def block_stored(self, block_hash: bytes) -> None:
        """The pool can find this block from now on."""
        if block_hash in self._removed:
            del self._removed[block_hash]
        else:
            self._stored[block_hash] = None

    def block_removed(self, block_hash: bytes) -> None:
        """The pool has handed the block out anew."""
        if block_hash in self._stored:
            del self._stored[block_hash]
        else:
            self._removed[block_hash] = None

    def flush(self) -> BlockEvents | None:
        """The next batch, for all listeners; None where nothing has changed and nobody was told to wait for it."""
        if not (self._stored or self._removed or self._promised):
            return None
        self.seq_no += 1
        events = BlockEvents(self.seq_no, tuple(self._stored), tuple(self._removed))
        self._stored.clear()
        self._removed.clear()
        self._promised = False
        return events

    def snapshot(self) -> BlockSnapshot:
        """The blocks as of the last batch, for one listener: changes after it are left to the next batch."""
        unchanged = [name for name in self._pool.registered_hashes() if name not in self._stored]
        return BlockSnapshot(self.seq_no, (*unchanged, *self._removed))
