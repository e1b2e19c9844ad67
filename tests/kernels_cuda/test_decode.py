"""The decode kernel's own source in the simulator, against float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cuda.decode import DecodeVariant
from numba_kernels.cuda.decode_plan import NO_WINDOW, decode_plan
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
)
def test_lengths_windows_blocks_and_splits_match_float64(
    seq_lens: list[int], group_size: int, block_size: int, window: int, split_tokens: int, seed: int
) -> None:
    batch = random_decode(DecodeVariant(64, block_size=block_size), seq_lens, group_size, window=window)
    assert_exact(batch, batch.simulate(split_tokens=split_tokens, seed=seed))


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


def test_padding_for_a_captured_graph_changes_nothing() -> None:
    batch = random_decode(DecodeVariant(64), [20, 40, 0], group_size=2)
    out = batch.simulate(split_tokens=32, num_work=9)
    assert torch.equal(out, batch.simulate(split_tokens=32))
    assert not out[2].any()


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


def test_splits_cover_what_a_query_sees_once_and_in_order() -> None:
    plan = decode_plan(np.array([0, 1, 256, 300, 1000], np.int32), window=600, split_tokens=256)
    assert plan.work_begin.tolist() == [0, 0, 1, 2, 4, 7]
    assert plan.work.tolist() == [
        [1, 0, 1, 1], [2, 0, 16, 1], [3, 0, 16, 2], [3, 16, 19, 2], [4, 25, 32, 3], [4, 32, 48, 3], [4, 48, 63, 3],
    ]  # fmt: skip


def test_a_plan_refuses_what_it_cannot_cut() -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        decode_plan(np.array([4], np.int32), split_tokens=24)
    with pytest.raises(ValueError, match="cannot cut"):
        decode_plan(np.array([4], np.int32), window=0)
    with pytest.raises(ValueError, match="do not fit"):
        decode_plan(np.array([4], np.int32)).padded(0)


def test_a_variant_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="head_dim 80"):
        DecodeVariant(80)
    with pytest.raises(ValueError, match="block_size 24"):
        DecodeVariant(64, block_size=24)
