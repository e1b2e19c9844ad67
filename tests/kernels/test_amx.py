"""Matrix tiles: the emulation against the manual's arithmetic, the native operations against the assembler."""

import os
import subprocess
import sys

import llvmlite.binding
import numba
import numpy as np
import pytest
import torch
from llvmlite import ir

from numba_kernels.cpu import amx
from numba_kernels.cpu.amx_emulated import tile_load, tile_multiply, tile_store, tile_zero
from numba_kernels.cpu.attention import AttentionPath, runs_here
from numba_kernels.cpu.attention_amx import write_configuration
from tests.kernels.attention_batches import Shape, random_batch

SUBNORMAL = np.float32(1e-40)


@numba.njit
def _configure(state, num_rows, head_dim):  # type: ignore[no-untyped-def]
    write_configuration(state, num_rows, head_dim)


@numba.njit
def _multiply(state, a, b, c):  # type: ignore[no-untyped-def]
    """c += a . b with a in tile 4, b in tile 5, c in tile 0, each 64 bytes a row."""
    tile_zero(state, 0)
    tile_load(state, 0, c, 64)
    tile_load(state, 4, a, 64)
    tile_load(state, 5, b, 64)
    tile_multiply(state, 0, 4, 5)
    tile_store(state, 0, c, 64)


def configuration(num_rows: int, head_dim: int) -> np.ndarray:
    state = np.zeros(amx.STATE_BYTES, np.uint8)
    _configure(state.ctypes.data, num_rows, head_dim)
    return state


def multiply(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """a bfloat16 [rows, 32], b bfloat16 [32, 16], c float32 [rows, 16]."""
    state, c = configuration(a.shape[0], 64), c.clone()
    pairs = b.unflatten(0, (16, 2)).transpose(1, 2).contiguous()  # [16 pairs, 16 columns, 2]
    _multiply(state.ctypes.data, a.data_ptr(), pairs.data_ptr(), c.data_ptr())
    return c


@pytest.mark.parametrize("num_rows", [1, 3, 16])
def test_a_tile_product_is_the_matrix_product(num_rows: int) -> None:
    torch.manual_seed(0)
    a, b, c = torch.randn(num_rows, 32).bfloat16(), torch.randn(32, 16).bfloat16(), torch.randn(num_rows, 16)
    torch.testing.assert_close(multiply(a, b, c), c + a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_even_and_odd_products_are_summed_apart() -> None:
    a, b, c = torch.zeros(1, 32).bfloat16(), torch.ones(32, 16).bfloat16(), torch.zeros(1, 16)
    a[0, 0], a[0, 1], a[0, 2] = 2.0**30, 1.0, -(2.0**30)  # in one sum, the 1 would be lost
    assert (multiply(a, b, c) == 1.0).all()


def test_products_are_summed_before_the_destination_joins() -> None:
    a, b, c = torch.zeros(1, 32).bfloat16(), torch.ones(32, 16).bfloat16(), torch.full((1, 16), 2.0**24)
    a[0, :2] = 1.0  # one after the other, neither 1 would change 2**24
    assert (multiply(a, b, c) == 2.0**24 + 2).all()


def test_subnormal_operands_and_results_count_as_zero() -> None:
    a, b = torch.zeros(1, 32).bfloat16(), torch.ones(32, 16).bfloat16()
    assert not multiply(a, b, torch.full((1, 16), float(SUBNORMAL))).any()
    a[0, 0] = 2.0**-130
    assert not multiply(a, b * 2.0**30, torch.zeros(1, 16)).any()
    a[0, 0] = 2.0**-100
    assert not multiply(a, b * 2.0**-30, torch.zeros(1, 16)).any()


@pytest.mark.parametrize("head_dim", [16, 32, 64, 256])
@pytest.mark.parametrize("num_rows", [1, 16])
def test_the_configuration_satisfies_the_processor(num_rows: int, head_dim: int) -> None:
    state = configuration(num_rows, head_dim)
    bytes_per_row, rows = state[16:32].view(np.uint16), state[48:56]
    assert state[0] == 1
    assert not state[1:16].any()
    for products in ((0, 4, 5), (3, 4, 5), (0, 6, 7), (3, 6, 7)):
        c, a, b = products
        assert rows[c] == rows[a] == num_rows
        assert bytes_per_row[c] == bytes_per_row[b] == 64
        assert bytes_per_row[a] == 4 * rows[b]
    assert rows.max() <= 16
    assert bytes_per_row.max() <= 64


def test_the_native_operations_assemble_to_tile_instructions() -> None:
    module = ir.Module()
    address = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [address]), "tiles")
    builder = ir.IRBuilder(function.append_basic_block())
    memory = builder.inttoptr(function.args[0], ir.IntType(8).as_pointer())
    amx.emit(builder, "ldtilecfg", memory)
    amx.emit(builder, "tilezero", 0)
    amx.emit(builder, "tileloadd64", 4, memory, function.args[0])
    amx.emit(builder, "tdpbf16ps", 0, 4, 5)
    amx.emit(builder, "tilestored64", 0, memory, function.args[0])
    amx.emit(builder, "tilerelease")
    builder.ret_void()
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    target = llvmlite.binding.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="sapphirerapids", features="+amx-tile,+amx-bf16")
    assembly = machine.emit_assembly(llvmlite.binding.parse_assembly(str(module)))
    for instruction in ("ldtilecfg", "tilezero", "tileloadd", "tilestored", "tilerelease"):
        assert instruction in assembly
    assert "tdpbf16ps\t%tmm5, %tmm4, %tmm0" in assembly


@pytest.mark.slow
def test_the_whole_native_kernel_compiles_for_sapphire_rapids() -> None:
    script = """
from numba_kernels.cpu import attention_amx
import numba
function = numba.njit("void(int64)", error_model="numpy", boundscheck=False)(attention_amx._work_amx.py_func)
assembly = "".join(function.inspect_asm().values())
print(assembly.count("tdpbf16ps"), assembly.count("vdpbf16ps"))
"""
    features = "+amx-tile,+amx-bf16,+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512bf16,+fma,+avx2,+bmi2"
    environment = os.environ | {"NUMBA_CPU_NAME": "sapphirerapids", "NUMBA_CPU_FEATURES": features}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr
    tile_products, vector_products = map(int, result.stdout.split())
    assert tile_products >= 8
    assert vector_products == 0


@pytest.mark.skipif(not runs_here(AttentionPath.AMX), reason="this processor has no matrix tiles")
def test_the_processor_and_the_emulation_agree_to_the_bit() -> None:
    batch = random_batch(Shape(9, 3, 64), [300, 70, 513], [1, 70, 20], torch.bfloat16)
    assert torch.equal(batch.run(AttentionPath.AMX), batch.run(AttentionPath.AMX_EMULATED))
