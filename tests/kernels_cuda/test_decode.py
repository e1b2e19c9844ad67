"""The decode kernel's own source in the simulator, against float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cuda.decode import DecodeVariant, grid_blocks
from numba_kernels.cuda.decode_plan import NO_WINDOW
from tests.kernels_cuda.decode_batches import DecodeBatch, random_decode, relative_error

# Weights are rounded to the element's precision as well as the output: somewhat above the output's own rounding.
TOLERANCE = {"bf16": 4e-3, "f16": 5e-4}


def assert_exact(batch: DecodeBatch, out: torch.Tensor) -> None:
    assert relative_error(out, batch.exact()) < TOLERANCE[batch.variant.element]


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_head_dim_and_element_matches_float64(head_dim: int, element: str) -> None:
    batch = random_decode(DecodeVariant(head_dim, element), [37, 1, 64], group_size=4, num_kv_heads=2)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize("group_size", range(1, 17))
def test_every_group_size_matches_float64(group_size: int) -> None:
    batch = random_decode(DecodeVariant(64, wide_group=group_size > 8), [18], group_size, num_kv_heads=2)
    assert_exact(batch, batch.simulate())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    seq_lens=st.lists(st.integers(0, 150), min_size=1, max_size=3).filter(any),
    group_size=st.integers(1, 8),
    block_size=st.sampled_from([16, 32, 48]),
    window=st.sampled_from([1, 15, 16, 40, NO_WINDOW]),
    split_tokens=st.sampled_from([16, 64, 256]),
    seed=st.integers(0, 1000),
    grid_blocks=st.integers(1, 5),
)
def test_lengths_windows_blocks_and_splits_match_float64(
    seq_lens: list[int],
    group_size: int,
    block_size: int,
    window: int,
    split_tokens: int,
    seed: int,
    grid_blocks: int,
) -> None:
    batch = random_decode(DecodeVariant(64, block_size=block_size), seq_lens, group_size, window=window)
    out = batch.simulate(split_tokens=split_tokens, seed=seed, capacity=32, grid_blocks=grid_blocks)
    assert_exact(batch, out)


def test_the_order_in_which_lanes_run_does_not_show() -> None:
    batch = random_decode(DecodeVariant(64), [130], group_size=3)
    results = [batch.simulate(split_tokens=64, seed=seed) for seed in range(3)]
    assert all(torch.equal(results[0], result) for result in results)


def test_a_sequence_gives_the_same_bits_alone_and_in_any_batch() -> None:
    batch = random_decode(DecodeVariant(64), [90, 33, 200], group_size=3)
    together = batch.simulate(split_tokens=64)
    for s in range(3):
        own = [x[s : s + 1].clone() for x in (batch.q, batch.block_tables, batch.seq_lens)]
        alone = DecodeBatch(batch.variant, own[0], batch.kv_cache, own[1], own[2]).simulate(split_tokens=64)
        assert torch.equal(alone[0], together[s])


def test_room_for_more_splits_and_sequences_of_no_tokens_change_nothing() -> None:
    batch = random_decode(DecodeVariant(64), [20, 40, 0], group_size=2)
    out = batch.simulate(split_tokens=32, capacity=9)
    assert torch.equal(out, batch.simulate(split_tokens=32, capacity=3))
    assert not out[2].any()


@pytest.mark.parametrize("group_size", [3, 11])
def test_any_grid_gives_the_same_bits(group_size: int) -> None:
    batch = random_decode(DecodeVariant(64, wide_group=group_size > 8), [90, 5, 170], group_size)
    one, *others = (batch.simulate(split_tokens=64, grid_blocks=n, seed=n) for n in (1, 2, 5, 40))
    assert_exact(batch, one)
    assert all(torch.equal(one, other) for other in others)


def test_the_grid_fills_the_gpu_once_or_is_as_large_as_the_work() -> None:
    llama = DecodeVariant(128)
    assert grid_blocks(llama, max_work=1000, num_kv_heads=8, num_sms=132) * 8 <= 132 * llama.min_blocks_per_sm
    assert grid_blocks(llama, max_work=1000, num_kv_heads=8, num_sms=132) == 49
    assert grid_blocks(llama, max_work=5, num_kv_heads=8, num_sms=132) == 5
    assert grid_blocks(DecodeVariant(128, wide_group=True), max_work=5, num_kv_heads=8, num_sms=132) == 10
    assert grid_blocks(llama, max_work=0, num_kv_heads=8, num_sms=2) == 1


def test_queries_may_be_a_strided_view_of_a_wider_projection() -> None:
    batch = random_decode(DecodeVariant(64), [20, 40], group_size=2)
    projected = torch.full((2, 6, 64), float("nan"), dtype=batch.q.dtype)
    projected[:, 1:3] = batch.q
    view = DecodeBatch(batch.variant, projected[:, 1:3], batch.kv_cache, batch.block_tables, batch.seq_lens)
    assert torch.equal(view.simulate(), batch.simulate())


def test_large_scores_do_not_overflow() -> None:
    batch = random_decode(DecodeVariant(64, "f16"), [50], group_size=2)
    batch.q.mul_(100)
    assert_exact(batch, batch.simulate())


def test_a_variant_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 80"):
        DecodeVariant(80)
    with pytest.raises(ValueError, match="block_size 24"):
        DecodeVariant(64, block_size=24)
