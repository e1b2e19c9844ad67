"""Every kernel, compiled for three generations of GPU: no spills, wide loads, tensor cores, no float64.

Needs the CUDA compiler, as packages; without it these tests fail, they are not skipped.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest

from numba_kernels.cuda.block_copy import copy_blocks_kernel
from numba_kernels.cuda.decode import ELEMENTS, HEAD_DIMS, DecodeVariant, decode_kernel
from numba_kernels.cuda.decode_merge import merge_splits_kernel
from numba_kernels.cuda.kv_write import write_kv_kernel
from numba_kernels.cuda.ptx_twins import PtxTwins
from numba_kernels.cuda.target import Kernel, Target
from tests.kernels_cuda import toolchain
from tests.kernels_cuda.staged_copy import staged_copy_kernel
from tests.kernels_cuda.toolchain import ToolchainMissing, build, violations

pytestmark = pytest.mark.slow

ARCHITECTURES = pytest.mark.parametrize("architecture", [(8, 0), (9, 0), (10, 0)], ids=["sm_80", "sm_90", "sm_100"])
DECODE_VARIANTS = [
    *(DecodeVariant(head_dim, element) for head_dim in HEAD_DIMS for element in ELEMENTS),
    *(DecodeVariant(head_dim, wide_group=True) for head_dim in HEAD_DIMS),
    DecodeVariant(128, block_size=48),
]


def decode_instructions(variant: DecodeVariant) -> dict[tuple[str, str], int]:
    """From the shape: every load of q, K and V is 16 bytes wide, or 8 for what 64 does not divide."""
    chunks_k, chunks_v = variant.head_dim // 32, variant.head_dim // 64
    loads_of_k = 2 * chunks_k * (2 if variant.k_ahead else 1)  # one tile ahead of the loop, one in it
    return {
        ("LDG", "128"): 1 + chunks_k + loads_of_k + 4 * chunks_v,  # the split, q, K, V
        ("LDG", "64"): 4 if variant.head_dim % 64 else 0,
        ("HMMA", "BF16" if variant.element == "bf16" else "F32"): variant.head_dim // 8,
        ("MOVM", ""): 2,
    }


@ARCHITECTURES
@pytest.mark.parametrize("variant", DECODE_VARIANTS, ids=str)
def test_decode(variant: DecodeVariant, architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = decode_kernel(variant)
    assert violations(build(kernel, architecture, tmp_path), kernel, decode_instructions(variant)) == []


@ARCHITECTURES
@pytest.mark.parametrize("element", ELEMENTS)
def test_merge_splits(element: str, architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = merge_splits_kernel(128, element)
    assert violations(build(kernel, architecture, tmp_path), kernel, {("STG", ""): 1}) == []


@ARCHITECTURES
@pytest.mark.parametrize("head_dim", HEAD_DIMS)
def test_write_kv(head_dim: int, architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = write_kv_kernel(head_dim)
    made = build(kernel, architecture, tmp_path)
    assert violations(made, kernel, {}) == []
    assert made.count("LDG", "128") == made.count("STG", "128") == made.count("STG") > 0


@ARCHITECTURES
def test_copy_blocks(architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = copy_blocks_kernel()
    made = build(kernel, architecture, tmp_path)
    assert violations(made, kernel, {}) == []
    assert made.count("LDG", "128") == made.count("STG", "128") == made.count("STG") >= 5


@ARCHITECTURES
def test_asynchronous_copies_are_16_bytes_wide(architecture: tuple[int, int], tmp_path: Path) -> None:
    kernel = staged_copy_kernel()
    made = build(kernel, architecture, tmp_path)
    assert violations(made, kernel, {}) == []
    assert made.count("LDGSTS", "128") == made.count("LDGSTS") > 0


def test_a_kernel_that_spills_is_caught(tmp_path: Path) -> None:
    kernel = dataclasses.replace(decode_kernel(DecodeVariant(128)), min_blocks_per_sm=5)
    assert any("local memory" in found for found in violations(build(kernel, (9, 0), tmp_path), kernel, {}))


def test_a_kernel_over_its_registers_is_caught(tmp_path: Path) -> None:
    kernel = decode_kernel(DecodeVariant(128))
    allowed = dataclasses.replace(kernel, min_blocks_per_sm=4)
    assert any("registers" in found for found in violations(build(kernel, (9, 0), tmp_path), allowed, {}))


def test_float64_is_caught(tmp_path: Path) -> None:
    def make(target: Target) -> Any:
        ptx, float32 = target.ptx, target.float32

        def kernel(to, x):  # type: ignore[no-untyped-def]
            ptx.stg_f32(to, float32(x * 1.1))

        return kernel

    kernel = Kernel(make, ("int64", "float32"), 32)
    assert any("float64" in found for found in violations(build(kernel, (9, 0), tmp_path), kernel, {}))


def test_a_load_that_is_not_wide_is_caught(tmp_path: Path) -> None:
    kernel = merge_splits_kernel(128, "bf16")
    assert any("LDG.128" in v for v in violations(build(kernel, (9, 0), tmp_path), kernel, {("LDG", "128"): 2}))


def test_a_toolchain_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainMissing, match="ptxas"):
        toolchain.tool("ptxas")


def test_every_twin_takes_what_its_instruction_takes() -> None:
    from numba_kernels.cuda import ptx  # needs numba-cuda

    for name in (name for name in vars(PtxTwins) if not name.startswith("_")):
        real = inspect.signature(getattr(ptx, name))
        twin = inspect.signature(getattr(PtxTwins, name))
        if not any(p.kind is p.VAR_POSITIONAL for p in twin.parameters.values()):
            assert len(real.parameters) == len(twin.parameters), name
