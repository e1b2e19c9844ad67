"""The machine code of decode attention and cache writes for 8-bit numbers: half the loads, conversions, no spills."""

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.decode import ELEMENTS, HEAD_DIMS, DecodeVariant
from tests.kernels_cuda.gate import violations

VARIANTS = [DecodeVariant(d, e, 16, wide, "e4m3") for d in HEAD_DIMS for e in ELEMENTS for wide in (False, True)]


def instructions_of(variant: DecodeVariant) -> dict[str, int]:
    """Loads of K and V as wide as rows allow; every word of K is two conversions, and every pair of tokens' of V."""
    k, v, loads_of_k = variant.k_shares, variant.v_shares, 2 if variant.k_ahead else 1
    return {
        "LDG.128": 1 + variant.head_dim // 32 + 2 * loads_of_k * k.num_whole + 4 * v.num_whole,  # the split, q, K, V
        "LDG.64": 2 * loads_of_k * k.num_rest + (4 * v.num_rest if v.rest_bytes == 8 else 0),
        "F2FP.UNPACK_B": 4 * k.words + 8 * v.words,
        "HMMA.F32": variant.head_dim // 8,
        "MOVM": 2,
    }


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_decode(variant: DecodeVariant, builds: dict[str, dict[str, Build]]) -> None:
    assert list(builds[variant.name]) == ["sm_90", "sm_100"]  # sm_80 cannot convert
    for build in builds[variant.name].values():
        assert violations(build, instructions_of(variant)) == [], build.architecture


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_a_quantising_write_reads_32_bytes_and_writes_16(
    head_dim: int, element: str, builds: dict[str, dict[str, Build]]
) -> None:
    for build in builds[f"write-kv-{element}-e4m3-{head_dim}-b16"].values():
        assert build.count("LDG", "128") == 2 * build.count("STG", "128") > 0
        assert build.count("STG", "128") == build.count("STG")
