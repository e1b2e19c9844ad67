"""The fused kernels, compiled for three generations of GPU: no spills, no float64, every access 16 bytes wide.

Needs the CUDA compiler, as packages; without it these tests fail, they are not skipped.
"""

from pathlib import Path

import pytest

from numba_kernels.cuda.rms_norm import RmsNormVariant, rms_norm_kernel
from numba_kernels.cuda.rope_kv_write import RopeVariant, rope_kv_write_kernel
from numba_kernels.cuda.silu_and_mul import silu_and_mul_kernel
from tests.kernels_cuda.toolchain import build, violations

pytestmark = pytest.mark.slow

ARCHITECTURES = pytest.mark.parametrize("architecture", [(8, 0), (9, 0), (10, 0)], ids=["sm_80", "sm_90", "sm_100"])
ELEMENTS = pytest.mark.parametrize("element", ["bf16", "f16"])


@ARCHITECTURES
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("width", [64, 96, 576, 2048, 4096, 8192, 16384])
def test_rms_norm(width: int, residual: bool, architecture: tuple[int, int], tmp_path: Path) -> None:
    variant = RmsNormVariant(width, residual=residual)
    kernel = rms_norm_kernel(variant)
    loads, stores = (3, 2) if residual else (2, 1)  # x, weight, residual; out, residual
    expected = {
        ("LDG", "128"): loads * variant.chunks_per_thread,
        ("LDG", ""): loads * variant.chunks_per_thread,
        ("STG", "128"): stores * variant.chunks_per_thread,
        ("STG", ""): stores * variant.chunks_per_thread,
        ("BAR", ""): 0 if variant.rows_per_block > 1 else 1,
    }
    assert violations(build(kernel, architecture, tmp_path), kernel, expected) == []


@ARCHITECTURES
@ELEMENTS
def test_silu_and_mul(element: str, architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = silu_and_mul_kernel(element)
    expected = {("LDG", "128"): 2, ("LDG", ""): 2, ("STG", "128"): 1, ("STG", ""): 1}
    assert violations(build(kernel, architecture, tmp_path), kernel, expected) == []


@ARCHITECTURES
@pytest.mark.parametrize(
    "variant",
    [*(RopeVariant(d) for d in (64, 96, 128, 256)), RopeVariant(128, "f16"), RopeVariant(128, norm=True)],
    ids=str,
)
def test_rope_kv_write(variant: RopeVariant, architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = rope_kv_write_kernel(variant)
    expected = {
        ("LDG", "128"): 2 + 4 + (2 if variant.norm else 0),  # the two halves, cos and sin, weights
        ("LDG", "64"): 2,  # position and slot
        ("STG", "128"): 2,
        ("STG", ""): 2,
        ("SHFL", ""): 3 if variant.norm else 0,
    }
    assert violations(build(kernel, architecture, tmp_path), kernel, expected) == []
