"""Whole blocks are copied bit for bit, and no other block changes."""

import pytest
import torch

from numba_kernels import copy_blocks, reference_ops, swap_blocks


def random_cache(num_blocks: int, *row_shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    words = torch.randint(0, 256, (num_blocks, *row_shape[:-1], row_shape[-1] * size), generator=generator)
    return words.to(torch.uint8).view(dtype)  # any bits at all, NaNs among them


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("row_shape", [(1, 2, 1, 16, 16), (30, 2, 3, 16, 64), (3, 2, 1, 1, 7)])
@pytest.mark.parametrize("num_pairs", [1, 2, 9])
def test_copy_blocks_copies_the_pairs_and_nothing_else(
    num_pairs: int, row_shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    cache = random_cache(20, *row_shape, dtype=dtype)
    expected = cache.clone()
    pairs = torch.randperm(20, generator=torch.Generator().manual_seed(1))[: 2 * num_pairs].view(num_pairs, 2)
    copy_blocks(cache, pairs)
    reference_ops.copy_blocks(expected, pairs)
    assert torch.equal(as_bytes(cache), as_bytes(expected))


def test_one_block_may_be_copied_to_several() -> None:
    cache = random_cache(5, 2, 2, 1, 16, 16)
    source = as_bytes(cache[3]).clone()
    copy_blocks(cache, torch.tensor([[3, 0], [3, 4]]))
    assert torch.equal(as_bytes(cache[0]), source)
    assert torch.equal(as_bytes(cache[4]), source)


@pytest.mark.parametrize("num_pairs", [1, 6])
def test_swapping_out_and_in_again_restores_the_blocks(num_pairs: int) -> None:
    device, host = random_cache(12, 30, 2, 3, 16, 64), random_cache(7, 30, 2, 3, 16, 64, seed=1)
    before = device.clone()
    blocks = torch.randperm(12, generator=torch.Generator().manual_seed(2))[:num_pairs]
    slots = torch.randperm(7, generator=torch.Generator().manual_seed(3))[:num_pairs]
    swap_blocks(device, host, torch.stack((blocks, slots), dim=1))
    device[blocks] = 0
    swap_blocks(host, device, torch.stack((slots, blocks), dim=1))
    assert torch.equal(as_bytes(device), as_bytes(before))


def test_no_pairs_copy_nothing() -> None:
    cache = random_cache(3, 1, 2, 1, 16, 16)
    before = cache.clone()
    copy_blocks(cache, torch.empty(0, 2, dtype=torch.int64))
    assert torch.equal(as_bytes(cache), as_bytes(before))


@pytest.mark.parametrize("pair", [[0, 3], [-1, 0], [5, 0]])
def test_a_block_outside_the_cache_raises_and_copies_nothing(pair: list[int]) -> None:
    source, target = random_cache(5, 1, 2, 1, 16, 16), random_cache(3, 1, 2, 1, 16, 16, seed=1)
    before = target.clone()
    with pytest.raises(IndexError, match="5 source or 3 destination"):
        swap_blocks(source, target, torch.tensor([[1, 1], pair]))
    assert torch.equal(as_bytes(target), as_bytes(before))


def test_caches_of_different_block_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot copy blocks"):
        swap_blocks(torch.zeros(2, 4), torch.zeros(2, 5), torch.zeros(1, 2, dtype=torch.int64))


def test_pairs_must_be_int64() -> None:
    with pytest.raises(ValueError, match="pairs must be int64"):
        copy_blocks(torch.zeros(2, 4), torch.zeros(1, 2, dtype=torch.int32))
