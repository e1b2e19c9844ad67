"""The kernels that will try each instruction on a GPU, run in the simulator first; and that none is left out."""

import ast
from pathlib import Path

import numpy as np
import pytest

from numba_kernels.cuda import ptx_twins
from numba_kernels.cuda.build import build_all
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from tests.gpu.instructions import REGISTER_INSTRUCTIONS
from tests.gpu.probes import disagreements, probe_kernels, probes, run_twin, tried_instructions
from tests.kernels_cuda.gate import violations

PTX = Path(ptx_twins.__file__).with_name("ptx.py")
NUM_LANES = 128  # enough for the simulator: a GPU tries more


def instructions_of_ptx() -> set[str]:
    """Public names of `ptx.py`, read from its source: importing it needs the compiler."""
    body = ast.parse(PTX.read_text()).body
    assigned = [t.id for node in body if isinstance(node, ast.Assign) for t in node.targets if isinstance(t, ast.Name)]
    defined = [node.name for node in body if isinstance(node, ast.FunctionDef)]
    return {name for name in (*assigned, *defined) if name.islower() and not name.startswith("_")}


def test_every_instruction_is_tried_by_a_probe() -> None:
    found = instructions_of_ptx()
    assert {"mma_bf16", "cp_async16", "smem_addr"} <= found
    untried = found - tried_instructions()
    assert not untried, f"say in tests/gpu/instructions.py or memory_probes.py how a GPU is to try {sorted(untried)}"
    assert tried_instructions() == found


@pytest.mark.parametrize("name", list(probes()))
def test_a_probe_finds_its_twin_right(name: str) -> None:
    assert disagreements(SimulatedLauncher(), probes()[name], NUM_LANES, seed=0) == []


@pytest.mark.parametrize("name", list(REGISTER_INSTRUCTIONS))
def test_a_wrong_result_is_found(name: str) -> None:
    instruction = REGISTER_INSTRUCTIONS[name]
    operands = instruction.draw(np.random.default_rng(1), NUM_LANES)
    expected = run_twin(name, instruction, operands)
    assert instruction.agree(operands, expected, expected).all()
    wrong = [word ^ np.uint32(1 << 18) for word in expected]  # far above every bound, but a NaN stays one
    assert instruction.agree(operands, wrong, expected).mean() < 0.5


def test_two_lanes_that_change_places_are_found_in_every_product_of_whole_numbers() -> None:
    instruction = REGISTER_INSTRUCTIONS["mma_bf16"]
    operands = instruction.draw(np.random.default_rng(1), NUM_LANES)
    expected = run_twin("mma_bf16", instruction, operands)
    swapped = [word.copy() for word in expected]
    for word in swapped:
        word[[0, 1]] = word[[1, 0]]
    assert not instruction.agree(operands, swapped, expected)[:2].any()


def test_an_instruction_that_does_something_else_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptx_twins.PtxTwins, "ldg64", lambda self, at: tuple(reversed(self._memory.read(at, "<2I"))))
    found = disagreements(SimulatedLauncher(), probes()["probe-ldg64"], NUM_LANES, seed=0)
    assert len(found) == 8
    assert found[0].startswith("lane 0: ")


@pytest.mark.slow
def test_every_probe_compiles(pytestconfig: pytest.Config) -> None:
    found = build_all(probe_kernels, pytestconfig.cache.mkdir("cuda-probes"), ("sm_90",))
    assert {name: violations(architectures["sm_90"]) for name, architectures in found.items() if architectures} == {
        name: [] for name in probe_kernels()
    }
