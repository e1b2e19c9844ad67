"""The prefill kernel's own source in the simulator, against float64."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cuda.decode_plan import NO_WINDOW
from numba_kernels.cuda.prefill_variant import HEAD_DIMS, PrefillShape, PrefillVariant
from tests.kernels_cuda.decode_batches import relative_error
from tests.kernels_cuda.prefill_batches import PrefillBatch, random_prefill

# Weights are rounded to the element's precision as well as the output: somewhat above the output's own rounding.
TOLERANCE = {"bf16": 4e-3, "f16": 5e-4}
SMALL = PrefillShape(num_warps=1, row_tiles=1, tile_tokens=16, min_blocks_per_sm=1)
WIDE = PrefillShape(num_warps=2, row_tiles=2, tile_tokens=32, min_blocks_per_sm=1)


def assert_exact(batch: PrefillBatch, out: torch.Tensor) -> None:
    assert relative_error(out, batch.exact()) < TOLERANCE[batch.variant.element]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_kernel_of_each_head_dim_as_it_ships_matches_float64(head_dim: int) -> None:
    batch = random_prefill(PrefillVariant(head_dim), [40, 1], [20, 100], group_size=4)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_and_element_matches_float64(head_dim: int, element: str) -> None:
    batch = random_prefill(PrefillVariant(head_dim, element, shape=SMALL), [5, 9], [0, 20], 3, window=18)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize("group_size", [*range(1, 17), 32])
def test_every_group_size_matches_float64(group_size: int) -> None:
    batch = random_prefill(PrefillVariant(64, shape=SMALL), [2], [15], group_size, num_kv_heads=2)
    assert_exact(batch, batch.simulate())


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    sequences=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 60)), min_size=1, max_size=3).filter(
        lambda sequences: any(num_queries for num_queries, _ in sequences)
    ),
    group_size=st.integers(1, 5),
    block_size=st.sampled_from([16, 32, 48]),
    window=st.sampled_from([1, 15, 16, 17, 40, NO_WINDOW]),
    shape=st.sampled_from([SMALL, WIDE]),
    seed=st.integers(0, 1000),
    early_copies=st.booleans(),
)
def test_chunks_contexts_windows_and_blocks_match_float64(
    sequences: list[tuple[int, int]],
    group_size: int,
    block_size: int,
    window: int,
    shape: PrefillShape,
    seed: int,
    early_copies: bool,
) -> None:
    variant = PrefillVariant(64, block_size=block_size, shape=shape)
    num_queries, context = ([s[i] for s in sequences] for i in range(2))
    batch = random_prefill(variant, num_queries, context, group_size, window=window)
    assert_exact(batch, batch.simulate(seed=seed, early_copies=early_copies))


@pytest.mark.parametrize("window", [11, NO_WINDOW])
@pytest.mark.parametrize("shape", [SMALL, WIDE], ids=["small", "wide"])
def test_a_query_gives_the_same_bits_in_any_chunk(shape: PrefillShape, window: int) -> None:
    whole = random_prefill(PrefillVariant(64, shape=shape), [37], [0], group_size=3, window=window)
    whole.q[20:].mul_(8)  # where scores are far apart, maxima rise from tile to tile
    out = whole.simulate()
    for size in (1, 5, 16, 30):
        assert torch.equal(whole.last_chunk([size]).simulate(), out[-size:])


def test_a_sequence_gives_the_same_bits_alone_and_in_any_batch() -> None:
    batch = random_prefill(PrefillVariant(64, shape=WIDE), [20, 3, 11], [4, 33, 0], group_size=3)
    together = batch.simulate()
    for s, (begin, end) in enumerate(zip(batch.bounds, batch.bounds[1:], strict=False)):
        alone = replace(
            batch,
            q=batch.q[begin:end].clone(),
            block_tables=batch.block_tables[s : s + 1].clone(),
            num_queries=[batch.num_queries[s]],
            seq_lens=[batch.seq_lens[s]],
        )
        assert torch.equal(alone.simulate(), together[begin:end])


def test_neither_the_order_of_lanes_nor_when_copies_arrive_shows() -> None:
    batch = random_prefill(PrefillVariant(64, shape=WIDE), [20], [50], group_size=3)
    results = [batch.simulate(seed=seed, early_copies=early) for seed, early in ((0, False), (1, True), (2, False))]
    assert all(torch.equal(results[0], result) for result in results)


def test_sequences_that_are_not_selected_are_not_written() -> None:
    batch = random_prefill(PrefillVariant(64, shape=SMALL), [3, 1, 2], [10, 20, 0], group_size=2)
    out = batch.simulate(selected=[True, False, True])
    assert out[3].isnan().all()
    assert torch.equal(out[[0, 1, 2, 4, 5]], batch.simulate()[[0, 1, 2, 4, 5]])


def test_padding_for_a_captured_graph_changes_nothing() -> None:
    batch = random_prefill(PrefillVariant(64, shape=SMALL), [9], [10], group_size=2)
    assert torch.equal(batch.simulate(num_work=5), batch.simulate())


def test_queries_may_be_a_strided_view_of_a_wider_projection() -> None:
    batch = random_prefill(PrefillVariant(64, shape=SMALL), [9], [10], group_size=2)
    projected = torch.full((9, 6, 64), float("nan"), dtype=batch.q.dtype)
    projected[:, 1:3] = batch.q
    assert torch.equal(replace(batch, q=projected[:, 1:3]).simulate(), batch.simulate())


def test_large_scores_do_not_overflow() -> None:
    batch = random_prefill(PrefillVariant(64, "f16", shape=SMALL), [9], [30], group_size=2)
    batch.q.mul_(100)
    assert_exact(batch, batch.simulate())


def test_a_variant_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 80"):
        PrefillVariant(80)
    with pytest.raises(ValueError, match="block_size 24"):
        PrefillVariant(64, block_size=24)
    with pytest.raises(ValueError, match="tile of 24"):
        PrefillShape(4, 2, 24, 1)
