"""What a pool's recorder tells: numbered batches of net changes, and snapshots that fit between them."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_paged.core.block_pool import BlockPool
from serve_paged.core.kv_events import BlockEventRecorder, BlockEvents, BlockSnapshot


def fill(pool: BlockPool, *names: bytes) -> list[int]:
    """Registered blocks with these hashes."""
    blocks = pool.allocate(len(names))
    for block, name in zip(blocks, names, strict=True):
        pool.register(block, name)
    return blocks


def test_a_registered_block_is_stored_and_one_handed_out_anew_is_removed():
    pool = BlockPool(3)
    recorder = BlockEventRecorder(pool)
    blocks = fill(pool, b"a", b"b")
    assert recorder.flush() == BlockEvents(1, (b"a", b"b"), ())
    pool.release(blocks)
    assert recorder.flush() is None, "a freed block can still be found"
    pool.allocate(1)
    assert recorder.flush() == BlockEvents(2, (), (b"b",))


def test_a_block_stored_and_evicted_between_two_batches_is_never_heard_of():
    pool = BlockPool(2)
    recorder = BlockEventRecorder(pool)
    pool.release(fill(pool, b"a"))
    pool.allocate(1)
    assert recorder.flush() is None
    assert recorder.seq_no == 0, "a number is only given to a batch that is sent: a missing one is a loss"


def test_a_block_evicted_and_stored_again_between_two_batches_is_no_change():
    pool = BlockPool(3)
    recorder = BlockEventRecorder(pool)
    pool.release(fill(pool, b"a"))
    recorder.flush()
    pool.release(pool.allocate(2))
    fill(pool, b"a")
    assert recorder.flush() is None


def test_a_second_block_of_the_same_contents_is_no_event():
    pool = BlockPool(3)
    recorder = BlockEventRecorder(pool)
    fill(pool, b"a", b"a")
    assert recorder.flush() == BlockEvents(1, (b"a",), ())


def test_what_a_pool_held_before_is_part_of_the_first_batch():
    pool = BlockPool(3)
    fill(pool, b"a")
    recorder = BlockEventRecorder(pool)
    assert recorder.snapshot() == BlockSnapshot(0, ())
    assert recorder.flush() == BlockEvents(1, (b"a",), ())


def test_the_covering_batch_is_the_next_one_only_while_there_is_something_to_tell():
    pool = BlockPool(3)
    recorder = BlockEventRecorder(pool)
    assert recorder.cover() == 0
    fill(pool, b"a")
    assert recorder.cover() == 1
    recorder.flush()
    assert recorder.cover() == 1
    assert recorder.flush() is None


def test_a_batch_that_somebody_was_told_to_wait_for_comes_even_if_its_changes_cancel_out():
    pool = BlockPool(2)
    recorder = BlockEventRecorder(pool)
    pool.release(fill(pool, b"a"))
    assert recorder.cover() == 1
    pool.allocate(1)
    assert recorder.cover() == 1
    assert recorder.flush() == BlockEvents(1, (), ())
    assert recorder.flush() is None


def test_a_pool_has_one_observer():
    pool = BlockPool(2)
    BlockEventRecorder(pool)
    with pytest.raises(AssertionError):
        BlockEventRecorder(pool)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(["flush", "snapshot", "release", "cover", *"abcdef"]), max_size=40))
def test_a_snapshot_and_the_batches_after_it_always_give_the_cache(actions: list[str]):
    pool = BlockPool(4)
    recorder = BlockEventRecorder(pool)
    listeners: list[tuple[int, set[bytes]]] = [(0, set())]  # each: the batch it has reached, what it then believes
    tables: list[list[int]] = []
    for action in [*actions, "flush"]:
        if action == "snapshot":
            snapshot = recorder.snapshot()
            listeners.append((snapshot.seq_no, set(snapshot.stored)))
        elif action == "flush" and (events := recorder.flush()):
            for index, (seq_no, held) in enumerate(listeners):
                assert events.seq_no == seq_no + 1
                assert not held & set(events.stored), "told twice"
                assert held >= set(events.removed), "removed, but never stored"
                listeners[index] = (events.seq_no, held - set(events.removed) | set(events.stored))
        elif action == "release" and tables:
            pool.release(tables.pop(0))
        elif len(action) == 1 and pool.num_free:
            tables.append(fill(pool, action.encode()))
        elif action == "cover":
            recorder.cover()
    assert all(held == set(pool.registered_hashes()) for _, held in listeners)
