"""The block pool."""

import pytest

from serve_paged.core.block_pool import BlockPool, num_blocks_for


def test_the_null_block_is_never_handed_out():
    pool = BlockPool(5)
    assert sorted(pool.allocate(4)) == [1, 2, 3, 4]
    assert pool.num_free == 0


def test_a_pool_needs_a_block_besides_the_null_block():
    with pytest.raises(ValueError, match="num_blocks"):
        BlockPool(1)


def test_usage_counts_referenced_blocks_only():
    pool = BlockPool(5)
    blocks = pool.allocate(1)
    pool.register(blocks[0], b"a")
    assert pool.usage == 0.25
    pool.release(blocks)
    assert pool.usage == 0.0
    assert pool.match_prefix([b"a"]) == blocks


def test_a_freed_block_stays_cached_until_it_is_handed_out_again():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    for block, name in zip(blocks, (b"a", b"b"), strict=True):
        pool.register(block, name)
    pool.release(blocks)
    pool.allocate(1)
    assert pool.match_prefix([b"a", b"b"]) == blocks[:1]
    pool.allocate(1)
    assert pool.match_prefix([b"a", b"b"]) == []


def test_blocks_are_evicted_in_the_order_they_were_freed():
    pool = BlockPool(4)
    first, second, third = pool.allocate(3)
    for block in (first, second, third):
        pool.register(block, bytes([block]))
    for block in (second, third, first):
        pool.release([block])
    assert pool.allocate(3) == [second, third, first]


def test_a_prefix_hit_renews_a_block():
    pool = BlockPool(3)
    old, new = pool.allocate(2)
    pool.register(old, b"old")
    pool.register(new, b"new")
    pool.release([old])
    pool.release([new])
    pool.acquire([old])
    pool.release([old])
    assert pool.allocate(1) == [new]


def test_blocks_that_cannot_be_found_are_reused_before_cached_ones():
    pool = BlockPool(3)
    cached, plain = pool.allocate(2)
    pool.register(cached, b"a")
    pool.release([cached])
    pool.release([plain])
    assert pool.allocate(1) == [plain]


def test_of_two_equal_blocks_the_first_is_registered():
    pool = BlockPool(3)
    first, second = pool.allocate(2)
    assert pool.register(first, b"same")
    assert not pool.register(second, b"same")
    assert pool.match_prefix([b"same"]) == [first]
    pool.release([first, second])
    pool.check([])


def test_a_shared_block_is_free_when_its_last_holder_lets_go():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    assert not pool.is_shared(blocks[0])
    pool.acquire(blocks)
    assert pool.is_shared(blocks[0])
    pool.release(blocks)
    assert pool.num_free == 0
    pool.release(blocks)
    assert pool.num_free == 1


def test_releasing_a_block_twice_is_caught():
    pool = BlockPool(2)
    blocks = pool.allocate(1)
    pool.release(blocks)
    with pytest.raises(AssertionError, match="released twice"):
        pool.release(blocks)


def test_check_catches_a_leaked_reference():
    pool = BlockPool(3)
    blocks = pool.allocate(2)
    pool.check([blocks])
    with pytest.raises(AssertionError, match="leak"):
        pool.check([blocks[:1]])


def test_a_match_ends_at_the_first_block_that_is_missing():
    pool = BlockPool(4)
    blocks = pool.allocate(2)
    pool.register(blocks[0], b"a")
    pool.register(blocks[1], b"c")
    assert pool.match_prefix([b"a", b"b", b"c"]) == [blocks[0]]


def test_the_source_of_a_copy_is_not_handed_out_in_the_same_step():
    pool = BlockPool(4)
    source = pool.allocate(1)[0]
    pool.acquire([source])
    target = pool.copy_on_write(source)
    pool.release([source])  # the other holder goes away within the step
    assert pool.num_free == 1
    assert source not in pool.allocate(1)
    pool.end_step()
    assert pool.allocate(1) == [source]
    assert target != source


def test_the_source_of_a_copy_can_be_found_again_within_the_step():
    pool = BlockPool(4)
    source = pool.allocate(1)[0]
    pool.register(source, b"a")
    pool.acquire([source])
    target = pool.copy_on_write(source)
    pool.release([source])
    assert pool.num_taken([source]) == 1
    pool.acquire([source])
    pool.end_step()
    pool.check([[source], [target]])


def test_a_source_that_is_still_held_stays_held_after_the_step():
    pool = BlockPool(3)
    source = pool.allocate(1)[0]
    pool.acquire([source])
    target = pool.copy_on_write(source)
    pool.end_step()
    pool.check([[source], [target]])


def test_a_prefix_comes_from_device_and_host_in_turns():
    pool = BlockPool(6, num_host_blocks=3)
    blocks = pool.allocate(3)
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.register(block, name)
    swap_out = pool.save_to_host([b"a", b"b", b"c"], blocks)
    pool.end_step()
    pool.release(blocks)
    pool.allocate(2)
    pool.acquire([blocks[1]])
    evicted = pool.allocate(2)  # a and c: b is held
    pool.release(evicted)
    hits = pool.match_prefix([b"a", b"b", b"c", b"d"])
    assert hits == [0, blocks[1], 0]
    table, swap_in = pool.take_prefix([b"a", b"b", b"c", b"d"], hits)
    slot_of = dict(zip((b"a", b"b", b"c"), (slot for _, slot in swap_out), strict=True))
    assert swap_in == [(slot_of[b"a"], table[0]), (slot_of[b"c"], table[2])]
    assert pool.match_prefix([b"a", b"b", b"c"]) == table
    pool.end_step()


def test_taking_a_prefix_does_not_evict_its_own_blocks():
    pool = BlockPool(3, num_host_blocks=1)
    first, second = pool.allocate(2)
    pool.register(first, b"a")
    pool.register(second, b"b")
    pool.save_to_host([b"a"], [first])
    pool.end_step()
    pool.release([first])
    assert pool.allocate(1) == [first]
    pool.release([second])
    pool.release([first])  # unregistered: free, and next to go
    pool.acquire([first])
    pool.release([first])
    hits = pool.match_prefix([b"a", b"b"])
    table, swap_in = pool.take_prefix([b"a", b"b"], hits)
    assert table == [first, second]
    assert swap_in == [(0, first)]


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_a_started_block_counts_whole(num_tokens: int, num_blocks: int):
    assert num_blocks_for(num_tokens, 16) == num_blocks


def test_host_blocks_of_an_earlier_step_make_room_for_new_ones():
    pool = BlockPool(3, num_host_blocks=1)
    blocks = pool.allocate(2)
    assert pool.save_to_host([b"a"], blocks[:1]) == [(blocks[0], 0)]
    assert pool.save_to_host([b"b"], blocks[1:]) == []
    pool.end_step()
    assert pool.save_to_host([b"b"], blocks[1:]) == [(blocks[1], 0)]
