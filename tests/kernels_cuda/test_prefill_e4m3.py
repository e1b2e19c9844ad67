"""Prefill over a cache of 8-bit numbers: the kernel's own source in the simulator, against float64.

The bound is that of a 16-bit cache: against what the cache holds, the kernel's arithmetic is that of float16.
"""

from dataclasses import replace

import pytest
import torch

from numba_kernels.cuda.decode_plan import NO_WINDOW
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.prefill_variant import ELEMENTS, HEAD_DIMS, PrefillShape, PrefillVariant
from tests.kernels_cuda.decode_batches import relative_error
from tests.kernels_cuda.planted import planted_prefill
from tests.kernels_cuda.prefill_batches import PrefillBatch, random_prefill

TOLERANCE = {"bf16": 4e-3, "f16": 5e-4}
SCALES = (0.03, 0.007)  # K and V are then up to some hundred in the cache
SMALL = PrefillShape(num_warps=1, row_tiles=1, tile_tokens=16, min_blocks_per_sm=1)
WIDE = PrefillShape(num_warps=2, row_tiles=2, tile_tokens=32, min_blocks_per_sm=1)
NAN = 0x7F  # e4m3


def small(head_dim: int = 64, element: str = "bf16", block_size: int = 16) -> PrefillVariant:
    return PrefillVariant(head_dim, element, block_size, SMALL, "e4m3")


def assert_exact(batch: PrefillBatch, out: torch.Tensor) -> None:
    assert relative_error(out, batch.exact()) < TOLERANCE[batch.variant.element]


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_every_head_dim_and_element_matches_float64(head_dim: int, element: str) -> None:
    batch = random_prefill(small(head_dim, element), [5, 9], [0, 20], 3, window=18, scales=SCALES)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_the_kernel_of_each_head_dim_as_it_ships_matches_float64(head_dim: int) -> None:
    """Of head_dim 96 some threads have nothing to copy and nothing to convert."""
    batch = random_prefill(PrefillVariant(head_dim, kv_element="e4m3"), [9], [60], group_size=2, scales=SCALES)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize("group_size", [1, 5, 8, 16])
def test_groups_and_blocks_match_float64(group_size: int) -> None:
    batch = random_prefill(small(block_size=48), [2], [50], group_size, num_kv_heads=2, scales=SCALES)
    assert_exact(batch, batch.simulate())


@pytest.mark.parametrize(
    ("window", "early_copies"), [(1, True), (15, False), (16, True), (17, False), (40, True), (NO_WINDOW, False)]
)
def test_windows_match_float64_whenever_copies_arrive(window: int, early_copies: bool) -> None:
    variant = PrefillVariant(64, shape=WIDE, kv_element="e4m3")
    batch = random_prefill(variant, [20, 3], [13, 40], 2, window=window, scales=SCALES)
    assert_exact(batch, batch.simulate(seed=window, early_copies=early_copies))


def test_what_nobody_sees_is_nan_in_these_tests() -> None:
    batch = random_prefill(small(), [3], [40], group_size=2, window=18)
    codes = batch.kv_cache.view(torch.uint8)
    last = int(batch.block_tables[0, 2])  # tokens 32 .. 47, of which 43 are there
    assert (codes[last, 1, :, :, 11:] == NAN).all()
    assert not (codes[last, 1, :, :, :11] == NAN).any()
    assert batch.simulate().isfinite().all()


def test_a_nan_that_is_seen_is_not_hidden() -> None:
    batch = random_prefill(small(), [3], [40], group_size=1)
    batch.kv_cache.view(torch.uint8)[int(batch.block_tables[0, 1]), 1, 1, 0, 9, 7] = NAN  # V of token 25
    assert batch.simulate().isnan().nonzero()[:, 2].tolist() == [7, 7, 7]


@pytest.mark.parametrize("window", [11, NO_WINDOW])
def test_a_query_gives_the_same_bits_in_any_chunk(window: int) -> None:
    whole = random_prefill(PrefillVariant(64, shape=WIDE, kv_element="e4m3"), [29], [0], 3, window=window)
    whole.q[16:].mul_(8)  # where scores are far apart, maxima rise from tile to tile
    out = whole.simulate()
    for size in (1, 21):
        assert torch.equal(whole.last_chunk([size]).simulate(), out[-size:])


def test_scales_that_are_powers_of_two_change_no_bit() -> None:
    batch = random_prefill(small(), [7], [20], group_size=3, scales=(0.25, 0.25))
    plain = replace(batch, q=batch.q / 4, k_scale=1.0, v_scale=1.0)
    assert torch.equal(batch.simulate(), plain.simulate() / 4)


def test_queries_that_float16_cannot_hold_still_give_numbers() -> None:
    batch = random_prefill(small(), [7], [20], group_size=2)
    batch.q.mul_(1e6)
    out = batch.simulate()
    assert out.isfinite().all()
    assert_exact(replace(batch, q=batch.q.clamp(-65504, 65504)), out)


def batches() -> list[PrefillBatch]:
    """Windows and lengths end at either edge of a tile; the last rows are padding; threads copy more than once."""
    variant = PrefillVariant(128, shape=PrefillShape(2, 1, 16, 1), kv_element="e4m3")
    return [
        random_prefill(variant, [9, 14], [22, 30], group_size=2, window=16, scales=SCALES),
        random_prefill(variant, [2], [31], group_size=8, window=16, scales=SCALES),
    ]


def error_of(make: object) -> float:
    """The largest, whether copies arrive late or early; infinite where anything is NaN."""
    outs = [(b, b.simulate(make=make, early_copies=early)) for b in batches() for early in (False, True)]  # type: ignore[arg-type]
    errors = [relative_error(out, batch.exact()) for batch, out in outs]
    return max(float("inf") if error != error else error for error in errors)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param(
            "tile:\n            ptx.cp_async_wait0()", "tile:\n            pass", id="converted before it is there"
        ),
        pytest.param("                widen_tile(stage)", "                pass", id="not converted"),
        pytest.param(
            "widen_tile(stage)\n            cuda.syncthreads()",
            "cuda.syncthreads(); widen_tile(stage)",
            id="read meanwhile",
        ),
        pytest.param("is_even = arrived == swizzle(in_tile, 2 * piece)", "is_even = True", id="chunks exchanged"),
        pytest.param("w1 if is_even else w3)", "w1)", id="half of a chunk exchanged"),
        pytest.param("int32(at ^ 16), a", "int32(at + 16), a", id="written beyond the pair"),
        pytest.param(
            "row_bytes, loading = pieces * 16", "row_bytes, loading = pieces * 32", id="rows of 16-bit numbers"
        ),
        pytest.param("v_scale * (", "(", id="scale of V forgotten"),
        pytest.param("            narrow_q(base)", "            pass", id="q not converted"),
        pytest.param("narrow(w2), narrow(w3)", "narrow(w3), narrow(w2)", id="q out of order"),
        pytest.param("<= num_seen else", "<= num_seen + 1 else", id="one unused V not blanked"),
        pytest.param("(token - first_token)", "(token - 0)", id="V before the window not blanked"),
    ],
)
def test_a_bug_is_caught(old: str, new: str) -> None:
    try:
        error = error_of(planted_prefill(old, new))
    except MemoryFault:
        return
    assert error > 2 * TOLERANCE["bf16"]


def test_the_kernel_in_which_the_bugs_are_planted_is_right() -> None:
    assert error_of(planted_prefill("narrow(w2)", "narrow(w2)")) < TOLERANCE["bf16"]


def test_a_cache_of_other_numbers_has_no_kernel() -> None:
    with pytest.raises(ValueError, match="e5m2"):
        PrefillVariant(64, kv_element="e5m2")
