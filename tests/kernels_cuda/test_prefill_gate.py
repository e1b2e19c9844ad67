"""How many copies and tensor-core instructions the prefill kernels have to have, from their shape alone."""

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.prefill_load import rows_per_pass
from numba_kernels.cuda.prefill_variant import ELEMENTS, HEAD_DIMS, PrefillVariant
from tests.kernels_cuda.gate import violations

VARIANTS = [PrefillVariant(head_dim, element) for head_dim in HEAD_DIMS for element in ELEMENTS]


def prefill_instructions(variant: PrefillVariant) -> dict[str, int]:
    """K and V are copied 16 bytes at a time, in front of the loop and in it; fragments come four matrices at a time.

    A weight's exponent is one FFMA for every row, or a row's bits would depend on its place among the others.
    """
    row_tiles, pairs, chunks = variant.work_shape.row_tiles, variant.tile_tokens // 16, variant.head_dim // 16
    scores = row_tiles * variant.tile_tokens // 2  # a lane's
    copies = 1 + 2 * 2 * variant.tile_tokens // rows_per_pass(variant)  # the first are Q's
    return {
        "HMMA.BF16" if variant.element == "bf16" else "HMMA.F32": 2 * 2 * row_tiles * pairs * chunks,
        "LDSM": chunks * (row_tiles + pairs) + pairs * chunks,
        "LDSM.MT88": pairs * chunks,  # V's, transposed
        "FFMA": scores,
        "MUFU.EX2": scores + 2 * row_tiles,  # and each row's factor
        "LDGSTS": copies,
        "LDGSTS.128": copies,
        "STG": 1,
        "STG.128": 1,
        "MOVM": 0,
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_prefill(variant: PrefillVariant, builds: dict[str, dict[str, Build]]) -> None:
    for build in builds[variant.name].values():
        assert violations(build, prefill_instructions(variant)) == [], build.architecture
