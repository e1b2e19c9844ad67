"""The blocks of single sequences: found again by hash, taken as they grow, shared by forks, given up on preemption.

Between the scheduler, which decides who runs, and the pool, which knows no sequences.
"""

from serve_paged.core.block_hash import extend_chain
from serve_paged.core.block_pool import BlockPool, num_blocks_for
from serve_paged.core.preemption import PreemptionCosts, PreemptionKind, PreemptionPolicy
from serve_paged.core.schedule_output import SchedulerOutput, SchedulerStats
from serve_paged.core.sequence import Sequence


class SequenceBlocks:
    """Fills in block tables and hashes of sequences, and a step's copies, from one pool."""

    def __init__(
        self,
        pool: BlockPool,
        stats: SchedulerStats,
        *,
        block_size: int,
        policy: PreemptionPolicy = "auto",
        costs: PreemptionCosts | None = None,
    ) -> None:
        self._pool = pool
        self._stats = stats
        self._block_size = block_size
        self._policy = policy
        self._costs = costs or PreemptionCosts()

    def extend_hashes(self, seq: Sequence) -> None:
        """Hash the full blocks of tokens that are not hashed yet, output tokens included."""
        start = len(seq.block_hashes) * self._block_size
        extend_chain(seq.block_hashes, seq.cache_root, seq.tokens(start, seq.num_tokens), self._block_size)

    def match_prefix(self, seq: Sequence) -> list[int]:
        """Cached blocks it can start from (see the pool). One token at least is computed: its logits are needed."""
        if _needs_every_logit(seq):
            return []
        return self._pool.match_prefix(seq.block_hashes[: (seq.num_tokens - 1) // self._block_size])

    def start(self, seq: Sequence, hits: list[int], out: SchedulerOutput) -> None:
        """Begin with a prefix hit. The caller has made sure of room."""
        seq.block_table, swap_in = self._pool.take_prefix(seq.block_hashes, hits)
        seq.num_computed_tokens = len(hits) * self._block_size
        out.swap_in.extend(swap_in)
        self._stats.num_swapped_in_blocks += len(swap_in)

    def grow(self, seq: Sequence, num_new: int, out: SchedulerOutput) -> bool:
        """Take the blocks into which the next tokens are written, all or nothing; false if too few are free.

        Only a tail shared by forks can be both written into and shared: prefix hits are full blocks.
        """
        table = seq.block_table
        tail = seq.num_computed_tokens // self._block_size
        copies_tail = tail < len(table) and num_new > 0 and self._pool.is_shared(table[tail])
        num_needed = num_blocks_for(seq.num_computed_tokens + num_new, self._block_size) - len(table)
        if num_needed + copies_tail > self._pool.num_free:
            return False
        if copies_tail:
            source = table[tail]
            table[tail] = self._pool.copy_on_write(source)
            out.copies.append((source, table[tail]))
            self._stats.num_copied_blocks += 1
        if num_needed > 0:
            table += self._pool.allocate(num_needed)
        return True

    def filled(self, seq: Sequence, num_new: int) -> None:
        """The next tokens are computed: blocks that are now full can be found by others."""
        first = seq.num_computed_tokens // self._block_size
        seq.num_computed_tokens += num_new
        for index in range(first, seq.num_computed_tokens // self._block_size):
            self._pool.register(seq.block_table[index], seq.block_hashes[index])

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Fork: the child starts where its parent stands, on the same blocks, a partly filled tail included."""
        self._pool.acquire(parent.block_table)
        child.block_table = list(parent.block_table)
        child.block_hashes = list(parent.block_hashes)
        child.cache_root = parent.cache_root
        child.num_computed_tokens = parent.num_computed_tokens

    def release(self, seq: Sequence) -> None:
        """Give all blocks back; they stay cached until they are handed out again."""
        self._pool.release(seq.block_table)
        seq.block_table.clear()
        seq.num_computed_tokens = 0

    def give_up(self, seq: Sequence, out: SchedulerOutput) -> None:
        """Preemption: give all blocks back, having the full ones copied to the host first if that is cheaper."""
        hashes = seq.block_hashes[: seq.num_computed_tokens // self._block_size]
        if self._kind_of_preemption(seq, hashes) is PreemptionKind.SWAP:
            swap_out = self._pool.save_to_host(hashes, seq.block_table)
            out.swap_out.extend(swap_out)
            self._stats.num_swapped_out_blocks += len(swap_out)
            self._stats.num_preemptions_swap += 1
        else:
            self._stats.num_preemptions_recompute += 1
        self.release(seq)

    def _kind_of_preemption(self, seq: Sequence, hashes: list[bytes]) -> PreemptionKind:
        host = self._pool.host
        if self._policy == "recompute" or not hashes or not host.has_room_for(hashes) or _needs_every_logit(seq):
            return PreemptionKind.RECOMPUTE
        if self._policy == "swap":
            return PreemptionKind.SWAP
        num_out = sum(block_hash not in host for block_hash in hashes)
        return self._costs.cheaper(len(hashes) * self._block_size, num_out + len(hashes))


def _needs_every_logit(seq: Sequence) -> bool:
    """Log probabilities of prompt tokens come from computing them: a prefix hit would leave holes."""
    return seq.params.prompt_logprobs is not None and not seq.output_token_ids
