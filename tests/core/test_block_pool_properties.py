"""The block pool under random use, against a model that keeps contents."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from serve_paged.core.block_pool import NULL_BLOCK, BlockPool

CHAINS = [[bytes([chain, index]) for index in range(6)] for chain in range(4)]


class PoolMachine(RuleBasedStateMachine):
    """Tables take chains of blocks, share and give them up; a block's content is the hash it was filled for."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(9, num_host_blocks=3)
        self.device: dict[int, bytes | None] = {}
        self.host: dict[int, bytes | None] = {}
        self.tables: list[tuple[list[bytes], list[int]]] = []
        self.swapped_in = 0
        self.swapped_out = 0

    @rule(chain=st.sampled_from(CHAINS), length=st.integers(1, 6))
    def take(self, chain: list[bytes], length: int) -> None:
        """Start from what is cached and fill the rest, as a prefill does."""
        hashes = chain[:length]
        hits = self.pool.match_prefix(hashes)
        if length - self.pool.num_taken(hits) > self.pool.num_free:
            return
        table, swap_in = self.pool.take_prefix(hashes, hits)
        for slot, block in swap_in:
            self.device[block] = self.host[slot]
        self.swapped_in += len(swap_in)
        assert [self.device[block] for block in table] == hashes[: len(table)], "a hit holds something else"
        for block, block_hash in zip(self.pool.allocate(length - len(table)), hashes[len(table) :], strict=True):
            self.device[block] = block_hash
            self.pool.register(block, block_hash)
            table.append(block)
        self.tables.append((hashes, table))

    @rule(index=st.integers(0, 100), save=st.booleans())
    @precondition(lambda self: self.tables)
    def give_up(self, index: int, save: bool) -> None:
        hashes, table = self.tables.pop(index % len(self.tables))
        if save and self.pool.host.has_room_for(hashes):
            for block, slot in self.pool.save_to_host(hashes, table):
                self.host[slot] = self.device[block]
                self.swapped_out += 1
        self.pool.release(table)

    @rule(index=st.integers(0, 100))
    @precondition(lambda self: self.tables)
    def fork(self, index: int) -> None:
        hashes, table = self.tables[index % len(self.tables)]
        self.pool.acquire(table)
        self.tables.append((hashes, list(table)))

    @rule(index=st.integers(0, 100))
    @precondition(lambda self: self.tables)
    def copy_the_tail(self, index: int) -> None:
        _, table = self.tables[index % len(self.tables)]
        if self.pool.is_shared(table[-1]) and self.pool.num_free:
            source = table[-1]
            table[-1] = self.pool.copy_on_write(source)
            self.device[table[-1]] = self.device[source]

    @rule()
    def forget_what_nobody_holds(self) -> None:
        """Somebody takes all free blocks for a moment: from now on only the host tier has what they held."""
        blocks = self.pool.allocate(self.pool.num_free)
        self.device.update(dict.fromkeys(blocks))
        self.pool.release(blocks)

    @rule()
    def end_step(self) -> None:
        self.pool.end_step()

    @invariant()
    def everything_holds(self) -> None:
        self.pool.check([table for _, table in self.tables])
        for hashes, table in self.tables:
            assert [self.device[block] for block in table] == hashes
            assert NULL_BLOCK not in table


def run(num_examples: int, num_steps: int) -> int:
    swapped = 0

    class CountedMachine(PoolMachine):
        def teardown(self) -> None:
            nonlocal swapped
            swapped += min(self.swapped_in, self.swapped_out)
            self.pool.end_step()
            for _, table in self.tables:
                self.pool.release(table)
            self.pool.check([])
            assert self.pool.num_free == self.pool.num_usable, "blocks leaked"

    profile = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(CountedMachine, settings=profile)
    return swapped


def test_any_use_of_the_pool_leaves_every_invariant_intact():
    assert run(num_examples=100, num_steps=30) > 0


@pytest.mark.slow
def test_long_use_of_the_pool_leaves_every_invariant_intact():
    assert run(num_examples=1000, num_steps=60) > 0
