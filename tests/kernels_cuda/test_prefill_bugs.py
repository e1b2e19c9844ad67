"""The simulator finds bugs in the prefill kernel: each of these is planted into a kernel that is right without it."""

from typing import Any

import pytest

from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.prefill_variant import PrefillShape, PrefillVariant
from numba_kernels.cuda.simulator import LaunchFault
from tests.kernels_cuda.decode_batches import relative_error
from tests.kernels_cuda.planted import planted_prefill
from tests.kernels_cuda.prefill_batches import PrefillBatch, random_prefill

VARIANT = PrefillVariant(64, shape=PrefillShape(num_warps=2, row_tiles=1, tile_tokens=16, min_blocks_per_sm=1))
TOLERANCE = 4e-3


def batches() -> list[PrefillBatch]:
    """Windows and lengths end at either edge of a tile; warps see different tiles; the last rows are padding; in the
    first scores are far apart, so that maxima rise.
    """
    steep = random_prefill(VARIANT, [19], [14], group_size=3)
    steep.q.mul_(8)
    return [
        steep,
        random_prefill(VARIANT, [9, 14], [22, 30], group_size=2, window=16),
        random_prefill(VARIANT, [2], [31], group_size=8, window=16),
    ]


def error_of(make: Any) -> float:
    """The largest, whether copies arrive late or early. NaN where anything is NaN."""
    errors = [
        relative_error(b.simulate(make=make, early_copies=early), b.exact()) for b in batches() for early in (0, 1)
    ]
    return max(errors, key=lambda error: float("inf") if error != error else error)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("tile:\n            ptx.cp_async_wait0()", "tile:\n            pass", id="missing wait"),
        pytest.param("cuda.syncthreads()  #", "pass  #", id="missing barrier"),
        pytest.param("2 * tile_bytes - stage)", "2 * tile_bytes - stage) * 0 + stage", id="stage overwritten"),
        pytest.param("cuda.syncwarp()", "pass", id="result read before it is staged"),
        pytest.param("uint32(back - n * 8) <", "uint32(back + 1 - n * 8) <", id="mask one token too far"),
        pytest.param("(back - n * 8 - 1) <", "(back - n * 8 - 2) <", id="mask one token short"),
        pytest.param("(back - n * 8) < uint32(window)", "(back - n * 8) <= uint32(window)", id="window too long"),
        pytest.param("(tile_tokens - 1) > first", "(tile_tokens - 2) > first", id="last tile not masked"),
        pytest.param("or token < int32(last - window + 1)", "or token < int32(last - window)", id="first not masked"),
        pytest.param("if token <= last:", "if token < last:", id="tile left out at the end"),
        pytest.param("<= num_seen else", "<= num_seen + 1 else", id="one unused V not blanked"),
        pytest.param("(token - first_token)", "(token - 0)", id="V before the window not blanked"),
        pytest.param("address ^ ((c * 32) & low)", "address + ((c * 32) & low)", id="wrong swizzle"),
        pytest.param("(lane >> 3) & 1", "(lane >> 4) & 1", id="wrong matrix for a lane"),
        pytest.param("ptx.ldmatrix_x4_trans(", "ptx.ldmatrix_x4(", id="V not transposed"),
        pytest.param("acc[first + n * 4] *= factors[r]", "pass", id="older tiles not rescaled"),
        pytest.param("state[num_rows + r] *= factors[r]", "pass", id="sum not rescaled"),
        pytest.param("raised = int32(1) if", "raised = int32(r == 0) if", id="rescaling left out for some rows"),
        pytest.param("return ptx.fmax(x, ptx.shfl_xor_f32(x, 2))", "return x", id="maximum over half the lanes"),
        pytest.param("return x + ptx.shfl_xor_f32(x, 2)", "return x", id="sum over half the lanes"),
        pytest.param("if row < num_rows:", "if row <= num_rows:", id="padding written"),
        pytest.param("int32(last_token >> 4)", "int32(last_token)", id="block table read past its end"),
        pytest.param("uint32(row + 1)", "uint32(row)", id="rows of the wrong query"),
        pytest.param("r = m * 2 + (w & 1)", "r = m * 2 + (w >> 1)", id="weights of the wrong row"),
    ],
)
def test_a_bug_in_the_prefill_kernel_is_caught(old: str, new: str) -> None:
    try:
        error = error_of(planted_prefill(old, new))
    except (MemoryFault, LaunchFault):
        return
    assert not error < TOLERANCE  # NaN included


def test_the_kernel_in_which_the_bugs_are_planted_is_right() -> None:
    assert error_of(planted_prefill("if row < num_rows:", "if row < num_rows:")) < TOLERANCE
