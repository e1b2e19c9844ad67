"""The host tier's book."""

from serve_paged.core.host_tier import HostTier


def hashes(name: str, count: int) -> list[bytes]:
    return [f"{name}{index}".encode() for index in range(count)]


def test_a_stored_chain_is_found_and_not_copied_twice():
    tier = HostTier(4)
    to_copy = tier.store(hashes("a", 3))
    assert [index for index, _ in to_copy] == [0, 1, 2]
    assert len({slot for _, slot in to_copy}) == 3
    assert all(block_hash in tier for block_hash in hashes("a", 3))
    assert tier.store(hashes("a", 3)) == []
    tier.check()


def test_a_chain_longer_than_the_tier_keeps_its_head():
    tier = HostTier(2)
    assert [index for index, _ in tier.store(hashes("a", 5))] == [0, 1]
    assert b"a0" in tier
    assert b"a2" not in tier
    tier.check()


def test_the_tail_of_a_chain_is_evicted_before_its_head():
    tier = HostTier(3)
    tier.store(hashes("a", 3))
    tier.end_step()
    tier.store([b"b"])
    assert [block_hash in tier for block_hash in hashes("a", 3)] == [True, True, False]


def test_the_least_recently_used_chain_is_evicted_first():
    tier = HostTier(2)
    tier.store([b"old"])
    tier.store([b"new"])
    tier.end_step()
    tier.read(b"old")
    tier.end_step()
    tier.store([b"newest"])
    assert b"old" in tier
    assert b"new" not in tier


def test_a_slot_read_in_this_step_is_not_overwritten_in_it():
    tier = HostTier(1)
    tier.store([b"a"])
    tier.end_step()
    slot = tier.read(b"a")
    assert not tier.has_room_for([b"b"])
    assert tier.store([b"b"]) == []
    tier.end_step()
    assert tier.store([b"b"]) == [(0, slot)]
    tier.check()


def test_a_slot_written_in_this_step_is_not_written_again_in_it():
    tier = HostTier(2)
    tier.store([b"a"])
    assert [index for index, _ in tier.store([b"b0", b"b1"])] == [0]
    assert b"a" in tier


def test_a_chain_does_not_evict_its_own_head_for_its_tail():
    tier = HostTier(2)
    tier.store([b"a0"])
    tier.store([b"b"])
    tier.end_step()
    assert [index for index, _ in tier.store([b"a0", b"a1", b"a2"])] == [1]
    assert b"a0" in tier


def test_a_tier_without_slots_has_no_room():
    tier = HostTier(0)
    assert not tier.has_room_for([b"a"])
    assert tier.store([b"a"]) == []
    tier.check()
