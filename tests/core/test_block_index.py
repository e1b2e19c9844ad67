"""The index of blocks: what it believes after batches, gaps and snapshots, and what it learns from a selection."""

from serve_paged.core.block_index import UNKNOWN, BlockIndex
from serve_paged.core.kv_events import BlockEvents, BlockSnapshot

A, B, C, D = (bytes([letter]) for letter in b"abcd")


def stored(seq_no: int, *hashes: bytes) -> BlockEvents:
    return BlockEvents(seq_no, hashes, ())


def removed(seq_no: int, *hashes: bytes) -> BlockEvents:
    return BlockEvents(seq_no, (), hashes)


def make_index(num_replicas: int = 1) -> BlockIndex:
    """Replicas r0, r1, ... in the slots 0, 1, ..., known to be empty."""
    index = BlockIndex(max_held_back=3)
    for number in range(num_replicas):
        assert index.add_replica(f"r{number}") == number
        index.announce(f"r{number}", 0)
    return index


def overlap(index: BlockIndex, slot: int, *hashes: bytes) -> int:
    [(depth, _)] = index.overlaps(hashes, 1 << slot)
    return depth


def test_one_walk_finds_the_overlap_with_every_replica():
    index = make_index(4)
    index.apply("r0", stored(1, A, B, C))
    index.apply("r1", stored(1, A))
    index.apply("r3", stored(1, A, B))
    assert index.overlaps([A, B, C, D], 0b1111) == [(0, 0b0100), (1, 0b0010), (2, 0b1000), (3, 0b0001)]
    assert index.overlaps([A, B], 0b1111) == [(0, 0b0100), (1, 0b0010), (2, 0b1001)]
    assert index.overlaps([A, B], 0b0110) == [(0, 0b0100), (1, 0b0010)], "the others were not asked for"


def test_a_block_counts_only_if_all_before_it_are_held():
    index = make_index()
    index.apply("r0", stored(1, A, C))
    assert overlap(index, 0, A, B, C) == 1
    index.apply("r0", removed(2, A))
    assert overlap(index, 0, A, B, C) == 0


def test_a_replica_is_not_exact_before_anything_is_known_of_it():
    index = BlockIndex()
    index.add_replica("r0")
    assert not index.is_exact("r0")
    assert index.applied("r0") == UNKNOWN
    assert index.apply("r0", stored(1, A)), "the first batch starts from an empty cache"


def test_a_router_that_comes_late_is_not_exact_until_it_has_a_snapshot():
    index = BlockIndex()
    index.add_replica("r0")
    assert not index.apply("r0", stored(7, C))
    assert index.degraded() == ["r0"]
    assert index.resynchronise("r0", BlockSnapshot(6, (A, B)))
    assert overlap(index, 0, A, B, C) == 3, "the batch that came before the snapshot was kept"


def test_a_gap_degrades_a_replica_and_the_late_batch_heals_it():
    index = make_index()
    index.apply("r0", stored(1, A))
    assert not index.apply("r0", removed(3, B))
    assert overlap(index, 0, A, B) == 1, "the book stays that of batch 1"
    assert index.apply("r0", stored(2, B))
    assert overlap(index, 0, A, B) == 1
    assert index.applied("r0") == 3


def test_a_batch_that_comes_twice_counts_once():
    index = make_index()
    index.apply("r0", stored(1, A))
    index.apply("r0", removed(2, A))
    assert index.apply("r0", stored(1, A))
    assert overlap(index, 0, A) == 0


def test_a_lost_last_batch_is_noticed_by_its_announcement():
    index = make_index()
    index.apply("r0", stored(1, A))
    assert index.announce("r0", 1)
    assert not index.announce("r0", 2)
    assert index.resynchronise("r0", BlockSnapshot(2, (A, B)))


def test_a_snapshot_that_is_older_than_the_book_changes_nothing():
    index = make_index()
    index.apply("r0", stored(1, A))
    index.apply("r0", stored(2, B))
    assert index.resynchronise("r0", BlockSnapshot(1, (A,)))
    assert overlap(index, 0, A, B) == 2


def test_a_snapshot_older_than_batches_that_were_dropped_does_not_make_it_exact():
    index = make_index()
    for seq_no in range(2, 8):  # the first is lost; three are kept, 5 to 7 only by number
        index.apply("r0", stored(seq_no, bytes([seq_no])))
    assert not index.resynchronise("r0", BlockSnapshot(1, (A,)))
    assert index.applied("r0") == 4
    assert index.resynchronise("r0", BlockSnapshot(7, (A,)))
    index.check()


def test_the_blocks_of_a_request_just_sent_count_at_once_and_no_longer_when_it_is_withdrawn():
    index = make_index(2)
    index.expect("first", "r0", [A, B])
    index.expect("second", "r0", [A, B, C])
    assert overlap(index, 0, A, B, C) == 3
    index.withdraw("first")
    assert overlap(index, 0, A, B, C) == 3, "the second request computes them now"
    index.withdraw("second")
    assert index.num_blocks == 0
    assert index.num_expectations == 0


def test_computed_blocks_stay_until_the_batch_that_covers_them_and_then_the_events_decide():
    index = make_index()
    index.expect("request", "r0", [A, B])
    index.confirm("request", 2)
    index.withdraw("request")
    index.apply("r0", stored(1, A))
    assert overlap(index, 0, A, B) == 2, "batch 2 is still on its way"
    index.apply("r0", stored(2, C))
    assert overlap(index, 0, A, B) == 1, "B was evicted before the batch was made"
    assert index.num_expectations == 0


def test_a_confirmation_that_comes_after_its_batch_ends_the_expectation():
    index = make_index()
    index.expect("request", "r0", [A, B])
    index.apply("r0", stored(1, A, B))
    index.confirm("request", 1)
    index.apply("r0", removed(2, B))
    assert overlap(index, 0, A, B) == 1


def test_an_eviction_does_not_take_away_what_a_request_is_about_to_compute():
    index = make_index()
    index.apply("r0", stored(1, A))
    index.expect("request", "r0", [A, B])
    assert overlap(index, 0, A, B) == 2
    index.apply("r0", stored(2, B))
    index.withdraw("request")
    assert overlap(index, 0, A, B) == 2, "both are reported now"


def test_a_removed_replica_leaves_nothing_behind_and_its_slot_is_used_again():
    index = make_index(3)
    for replica_id in ("r0", "r1"):
        index.apply(replica_id, stored(1, A))
        index.expect(f"request of {replica_id}", replica_id, [A, B])
    index.remove_replica("r0")
    assert "r0" not in index
    assert index.overlaps([A, B], 0b111) == [(0, 0b101), (2, 0b010)]
    index.confirm("request of r0", 1)
    index.withdraw("request of r0")
    assert index.add_replica("r3") == 0
    assert overlap(index, 0, A) == 0
    assert not index.is_exact("r3")
    index.check()
