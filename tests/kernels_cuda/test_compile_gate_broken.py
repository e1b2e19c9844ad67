"""Kernels broken on purpose: the compile gate finds what is wrong with them. A missing compiler is an error."""

import dataclasses
import importlib.metadata
import importlib.util
from pathlib import Path

import pytest

from numba_kernels.cuda.build import Build, build_all
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.toolchain import ToolchainMissing, tool
from tests.kernels_cuda.broken_kernels import VARIANT, broken_kernels
from tests.kernels_cuda.gate import violations
from tests.kernels_cuda.test_compile_gate_counts import decode_instructions


@pytest.fixture(scope="module")
def broken(pytestconfig: pytest.Config) -> dict[str, Build]:
    """By what is wrong with them."""
    made = build_all(broken_kernels, pytestconfig.cache.mkdir("cuda-broken"), ("sm_90",))
    return {name: builds["sm_90"] for name, builds in made.items()}


def test_a_kernel_that_spills(broken: dict[str, Build]) -> None:
    assert "local memory" in "; ".join(violations(broken["spilling"]))


def test_a_register_array_with_an_index_known_only_at_run_time(broken: dict[str, Build]) -> None:
    assert "local memory" in "; ".join(violations(broken["run-time-index"]))


def test_arithmetic_in_float64(broken: dict[str, Build]) -> None:
    assert "arithmetic in float64" in violations(broken["float64"])


def test_a_product_that_is_not_on_the_tensor_cores(broken: dict[str, Build]) -> None:
    found = violations(broken["no-tensor-core"], decode_instructions(VARIANT))
    assert "HMMA.BF16: 4 times instead of 8" in found


def test_a_kernel_without_the_instructions_that_it_is_made_for(broken: dict[str, Build]) -> None:
    assert violations(broken["unkept-promise"]) == ["no HMMA"]


def test_loads_that_are_not_wide(broken: dict[str, Build]) -> None:
    assert violations(broken["narrow-loads"]) == [
        "no LDG.128",
        "50% of the bytes in global accesses of less than 16",
    ]


def test_a_kernel_over_its_registers(builds: dict[str, dict[str, Build]]) -> None:
    build = builds["decode-bf16-64-b16"]["sm_90"]
    allowed = dataclasses.replace(build.kernel, min_blocks_per_sm=8)
    assert "96 registers, 64 allowed" in violations(dataclasses.replace(build, kernel=allowed))


def test_a_tool_that_is_missing_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainMissing, match=r"ptxas .* run `make install-cuda`"):
        tool("ptxas")


def test_a_compiler_that_is_missing_is_an_error_that_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(ToolchainMissing, match=r"numba-cuda .* run `make install-cuda`"):
        build_all(catalog, tmp_path)
