"""The 8-bit instructions' twins against torch's own conversions, to the bit."""

import numpy as np
import pytest
import torch

from numba_kernels.cuda.device_memory import AddressSpace
from numba_kernels.cuda.ptx_twins import PtxTwins

E4M3_MAX = 448.0
TWINS = PtxTwins(AddressSpace(), AddressSpace, lambda _name, _lane: None, list, False)


def packed(numbers: torch.Tensor) -> torch.Tensor:
    """uint8 of float32 [4n], through the twin."""
    words = [TWINS.pack_e4m3(*four) for four in numbers.reshape(-1, 4).numpy()]
    return torch.from_numpy(np.array(words, "<u4").view(np.uint8).copy())


def as_torch_packs(numbers: torch.Tensor) -> torch.Tensor:
    """torch makes NaN of what is too large; the instruction saturates."""
    return numbers.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def test_all_256_codes_are_unpacked_as_torch_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    pairs = [TWINS.unpack_e4m3(int(word)) for word in codes.numpy().view("<u4")]
    ours = torch.from_numpy(np.array(pairs, "<u4").reshape(-1).view(np.float16).copy())
    theirs = codes.view(torch.float8_e4m3fn).half()
    assert torch.equal(ours.isnan(), theirs.isnan())
    real = ~theirs.isnan()
    assert torch.equal(ours[real].view(torch.int16), theirs[real].view(torch.int16))  # -0 included


def test_every_code_comes_back_from_the_number_it_stands_for() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    numbers = codes.view(torch.float8_e4m3fn).float()
    expected = torch.where(numbers.isnan(), torch.tensor(0x7F, dtype=torch.uint8), codes)
    assert torch.equal(packed(numbers), expected)


def test_halfway_numbers_go_to_the_even_code_and_their_neighbours_to_the_nearest() -> None:
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    halfway = (codes[:-1] + codes[1:]) / 2
    above, below = (torch.nextafter(halfway, torch.tensor(to)) for to in (1e9, -1e9))
    numbers = torch.cat((halfway, above, below, -halfway, -above, -below))
    assert torch.equal(packed(numbers), as_torch_packs(numbers))


@pytest.mark.parametrize("spread", [1e-3, 1.0, 100.0, 1e4])
def test_numbers_of_any_size_are_packed_as_torch_does(spread: float) -> None:
    numbers = torch.randn(2000, generator=torch.Generator().manual_seed(0)) * spread
    assert torch.equal(packed(numbers), as_torch_packs(numbers))


def test_what_is_too_large_becomes_the_largest_number() -> None:
    large = torch.tensor([449.0, 465.0, 1e30, float("inf")])
    assert packed(torch.cat((large, -large))).tolist() == [0x7E] * 4 + [0xFE] * 4


def test_queries_beyond_float16_become_its_largest_number() -> None:
    numbers = [(1.0, -0.5), (65504.0, 65519.0), (1e5, -1e30), (float("inf"), float("-inf")), (float("nan"), 3e-8)]
    words = np.array([TWINS.pack_f16_finite(*(np.float32(x) for x in pair)) for pair in numbers], "<u4")
    expected = torch.tensor(numbers).clamp(-65504, 65504).half()
    np.testing.assert_array_equal(words.view(np.float16).reshape(-1, 2), expected.numpy())
