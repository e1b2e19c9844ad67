"""How many copies and tensor-core instructions the prefill kernels have to have, from their shape alone."""

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.prefill_load import tokens_per_pass
from numba_kernels.cuda.prefill_variant import ELEMENTS, HEAD_DIMS, PrefillVariant
from tests.kernels_cuda.gate import violations

VARIANTS = [PrefillVariant(d, e, kv_element=kv) for d in HEAD_DIMS for e in ELEMENTS for kv in ("", "e4m3")]


def prefill_instructions(variant: PrefillVariant) -> dict[str, int]:
    """K and V are copied 16 bytes at a time, in front of the loop and in it; fragments come four matrices at a time.

    8-bit numbers are half the copies; what a thread copied it makes twice as long, for the products of float16. A
    weight's exponent is one FFMA for every row, or a row's bits would depend on its place among the others.
    """
    row_tiles, pairs, chunks = variant.work_shape.row_tiles, variant.tile_tokens // 16, variant.head_dim // 16
    scores = row_tiles * variant.tile_tokens // 2  # a lane's
    copied_at_once = 2 * variant.tile_tokens // tokens_per_pass(variant)
    copies = 1 + 2 * copied_at_once  # the first are Q's
    widened = copied_at_once if variant.is_quantised else 0
    narrowed = 1 if variant.mma_element != variant.element else 0  # Q's, in a loop
    return {
        "HMMA.BF16" if variant.mma_element == "bf16" else "HMMA.F32": 2 * 2 * row_tiles * pairs * chunks,
        "LDSM": chunks * (row_tiles + pairs) + pairs * chunks,
        "LDSM.MT88": pairs * chunks,  # V's, transposed
        "FFMA": scores,
        "MUFU.EX2": scores + 2 * row_tiles,  # and each row's factor
        "LDGSTS": copies,
        "LDGSTS.128": copies,
        "F2FP.UNPACK_B": 8 * widened,
        "STS.128": 2 * widened + narrowed,
        "STG": 1,
        "STG.128": 1,
        "MOVM": 0,
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_prefill(variant: PrefillVariant, builds: dict[str, dict[str, Build]]) -> None:
    newer = ["sm_90", "sm_100"]  # sm_80 cannot convert
    assert list(builds[variant.name]) == (newer if variant.is_quantised else ["sm_80", *newer])
    for build in builds[variant.name].values():
        assert violations(build, prefill_instructions(variant)) == [], build.architecture
