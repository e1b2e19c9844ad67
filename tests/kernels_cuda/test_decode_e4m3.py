"""Decode attention over a cache of 8-bit numbers: the kernel's own source in the simulator, against float64.

The bound is that of a 16-bit cache: against what the cache holds, the kernel's arithmetic is that of float16.
"""

import dataclasses

import pytest
import torch

from numba_kernels.cuda.decode import DecodeVariant
from tests.kernels_cuda.decode_batches import random_decode, relative_error
from tests.kernels_cuda.planted import planted_decode

TOLERANCE = {"bf16": 4e-3, "f16": 5e-4}
SCALES = (0.03, 0.007)  # K and V are then up to some hundred in the cache


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_every_head_dim_and_element_matches_float64(head_dim: int, element: str) -> None:
    variant = DecodeVariant(head_dim, element, kv_element="e4m3")
    batch = random_decode(variant, [37, 1, 64], group_size=4, num_kv_heads=2, scales=SCALES)
    assert relative_error(batch.simulate(), batch.exact()) < TOLERANCE[element]


@pytest.mark.parametrize("group_size", [1, 5, 8, 11, 16])
def test_groups_windows_and_splits_match_float64(group_size: int) -> None:
    variant = DecodeVariant(64, "f16", wide_group=group_size > 8, kv_element="e4m3")
    batch = random_decode(variant, [75, 165], group_size, window=106, scales=SCALES)
    assert relative_error(batch.simulate(split_tokens=64), batch.exact()) < TOLERANCE["f16"]


def test_what_is_lost_is_what_the_cache_cannot_hold() -> None:
    """Against K and V before they were rounded to 3 bits of mantissa; no kernel could do better."""
    variant = DecodeVariant(128, kv_element="e4m3")
    batch = random_decode(variant, [200], group_size=4, scales=SCALES)
    rounded = random_decode(DecodeVariant(128), [200], group_size=4)
    quantised = relative_error(batch.exact(), rounded.exact())
    assert 0.01 < quantised < 0.05
    assert relative_error(batch.simulate(), rounded.exact()) < quantised + TOLERANCE["bf16"]


def test_scales_that_are_powers_of_two_change_no_bit() -> None:
    variant = DecodeVariant(64, kv_element="e4m3")
    batch = random_decode(variant, [50], group_size=3, scales=(0.25, 0.25))
    plain = dataclasses.replace(batch, q=batch.q / 4, k_scale=1.0, v_scale=1.0)
    assert torch.equal(batch.simulate(), plain.simulate() / 4)


def test_queries_that_float16_cannot_hold_still_give_numbers() -> None:
    batch = random_decode(DecodeVariant(64, kv_element="e4m3"), [50], group_size=2)
    batch.q.mul_(1e6)
    out = batch.simulate()
    assert out.isfinite().all()
    nearly = dataclasses.replace(batch, q=batch.q.clamp(-65504, 65504))
    assert relative_error(out, nearly.exact()) < TOLERANCE["bf16"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("0x7362 if u & 1", "0x5140 if u & 1", id="wrong permutation"),
        pytest.param("j * whole_bytes + i", "j * 16 + i", id="q in the order of 16-bit keys"),
        pytest.param("out_0 *= v_scale", "pass", id="scale of V forgotten"),
        pytest.param("ptx.pack_f16_finite(low, high)", "q[w]", id="q not converted"),
    ],
)
def test_a_bug_is_caught(old: str, new: str) -> None:
    batch = random_decode(DecodeVariant(64, kv_element="e4m3"), [75, 165], group_size=5, scales=SCALES)
    assert not relative_error(batch.simulate(source=planted_decode(old, new)), batch.exact()) < 1e-2  # NaN included


def test_a_cache_of_other_numbers_has_no_kernel() -> None:
    with pytest.raises(ValueError, match="e5m2"):
        DecodeVariant(64, kv_element="e5m2")
