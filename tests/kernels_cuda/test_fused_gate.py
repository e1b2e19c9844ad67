"""How many loads, stores and shuffles a fused kernel has to have, from its shape alone."""

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.rms_norm import RmsNormVariant, common_rms_norms
from numba_kernels.cuda.rope_kv_write import RopeVariant, common_rope_kv_writes
from numba_kernels.cuda.sample_row import SampleVariant
from tests.kernels_cuda.gate import violations


@pytest.mark.parametrize("variant", common_rms_norms(), ids=lambda variant: variant.name)
def test_a_norm_touches_each_element_once(variant: RmsNormVariant, builds: dict[str, dict[str, Build]]) -> None:
    loads, stores = (3, 2) if variant.residual else (2, 1)  # x, weight, residual; out, residual
    expected = {
        "LDG.128": loads * variant.chunks_per_thread,
        "LDG": loads * variant.chunks_per_thread,
        "STG.128": stores * variant.chunks_per_thread,
        "STG": stores * variant.chunks_per_thread,
        "BAR": 0 if variant.rows_per_block > 1 else 1,
    }
    for build in builds[variant.name].values():
        assert violations(build, expected) == [], build.architecture


@pytest.mark.parametrize("element", ["bf16", "f16"])
def test_silu_and_mul_touches_each_element_once(element: str, builds: dict[str, dict[str, Build]]) -> None:
    for build in builds[f"silu-and-mul-{element}"].values():
        assert violations(build, {"LDG.128": 2, "LDG": 2, "STG.128": 1, "STG": 1}) == [], build.architecture


@pytest.mark.parametrize("variant", common_rope_kv_writes(), ids=lambda variant: variant.name)
def test_a_rotation_touches_each_element_once(variant: RopeVariant, builds: dict[str, dict[str, Build]]) -> None:
    expected = {
        "LDG.128": 2 + 4 + (2 if variant.norm else 0),  # the two halves, cos and sin, weights
        "LDG.64": 2,  # position and slot
        "STG.128": 2,
        "STG.64": 2 if variant.kv_element else 0,
        "STG": 4 if variant.kv_element else 2,
        "SHFL": variant.lanes_per_head.bit_length() - 1 if variant.norm else 0,
    }
    for build in builds[variant.name].values():
        assert violations(build, expected) == [], build.architecture


@pytest.mark.parametrize(
    "variant", [SampleVariant(e) for e in ("f32", "bf16", "f16")], ids=lambda variant: variant.name
)
def test_sampling_reads_16_bytes_at_a_time(variant: SampleVariant, builds: dict[str, dict[str, Build]]) -> None:
    expected = {
        "LDG.128": 2 + 2 + 2 + 1,  # one tile ahead of each of three passes and one in it; the last tile
        "MUFU.EX2": 3 * variant.chunk,  # a weight in the threshold's pass, in the draw's, in the last tile
        "BAR": 5,
    }
    for build in builds[variant.name].values():
        assert violations(build, expected) == [], build.architecture
