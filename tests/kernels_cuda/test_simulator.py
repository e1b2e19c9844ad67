"""The simulator finds bugs: each of these is planted into a kernel that is right without it."""

import ast
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import numba_kernels.cuda
from numba_kernels.cuda.decode import DecodeVariant
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.ptx_twins import PtxTwins
from numba_kernels.cuda.simulator import Index3, LaunchFault, Simulator
from numba_kernels.cuda.target import Target
from tests.kernels_cuda.decode_batches import DecodeSource, address, random_decode, relative_error
from tests.kernels_cuda.planted import planted_decode, planted_staged_copy
from tests.kernels_cuda.staged_copy import NUM_THREADS, ROW, make_staged_copy

PTX = Path(inspect.getfile(PtxTwins)).with_name("ptx.py")


def staged_copy_is_right(make: Any, *, early_copies: bool, seed: int) -> bool:
    source = np.random.default_rng(0).standard_normal((5, ROW), np.float32)
    destination = np.full_like(source, np.nan)
    simulator = Simulator([source, destination], seed, early_copies)
    simulator.launch(make, Index3(1), NUM_THREADS, address(source), address(destination), len(source))
    return np.array_equal(destination, source[:, ::-1])


@pytest.mark.parametrize("early_copies", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_a_right_asynchronous_kernel_is_right_in_any_order(early_copies: bool, seed: int) -> None:
    assert staged_copy_is_right(make_staged_copy, early_copies=early_copies, seed=seed)


@pytest.mark.parametrize(
    ("old", "new", "early_copies"),
    [
        pytest.param("ptx.cp_async_wait1()", "pass", False, id="missing wait"),
        pytest.param(
            "ptx.cp_async_commit()\n            ptx.cp_async_wait1()",
            "ptx.cp_async_wait1()",
            False,
            id="missing commit",
        ),
        pytest.param(
            "ptx.cp_async_wait1()\n            cuda.syncthreads()", "ptx.cp_async_wait1()", False, id="missing barrier"
        ),
        pytest.param("cuda.syncthreads()  # the next", "pass  # the next", True, id="overwritten while it is read"),
        pytest.param("(row + 1) % 2 * row_bytes", "row % 2 * row_bytes", False, id="wrong stage"),
    ],
)
def test_a_bug_in_an_asynchronous_kernel_is_caught(old: str, new: str, early_copies: bool) -> None:
    assert not staged_copy_is_right(planted_staged_copy(old, new), early_copies=early_copies, seed=0)


def error_of(source: DecodeSource) -> float:
    """Of a batch whose windows and lengths end in either half of a tile, several tiles a warp, splits a block."""
    batch = random_decode(DecodeVariant(64), [165, 75], group_size=5, window=106)
    return relative_error(batch.simulate(source=source, split_tokens=128, grid_blocks=1), batch.exact())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("row < end", "row <= end", id="mask one token too far"),
        pytest.param("lower_seen = row + 8 >= begin", "lower_seen = row + 8 > begin", id="mask one token short"),
        pytest.param("position >= end", "position > end", id="one unused V not blanked"),
        pytest.param("position < begin or", "", id="V before the window not blanked"),
        pytest.param(", 0x7632)", ", 0x5410)", id="wrong permutation"),
        pytest.param("mma(a0, a1, a2, a3, q", "mma(a0, a2, a1, a3, q", id="fragment registers swapped"),
        pytest.param("ptx.movmatrix_trans(pack(p0, p1))", "pack(p0, p1)", id="weights not transposed"),
        pytest.param("acc[o] * factor_0", "acc[o]", id="older tiles not rescaled"),
        pytest.param("return x + ptx.shfl_xor_f32(x, 16)", "return x", id="sum over half the lanes"),
        pytest.param("cuda.syncthreads()\n            finish", "finish", id="missing barrier"),
        pytest.param("cuda.syncthreads()  # what", "pass  # what", id="overwritten while it is read"),
        pytest.param("partial_row >= 0", "partial_row > 0", id="first partial result mistaken for a whole one"),
        pytest.param("while unit < num_units", "if unit < num_units", id="only the first split of each block"),
        pytest.param("min(int32(tile + 2 * WARPS), int32(last - 1))", "tile + 2 * WARPS", id="prefetch past the table"),
        pytest.param("total += factor\n", "total += float32(1.0)\n", id="splits weighted alike"),
    ],
)
def test_a_bug_in_the_decode_kernel_is_caught(old: str, new: str) -> None:
    try:
        error = error_of(planted_decode(old, new))
    except (MemoryFault, LaunchFault):
        return
    assert not error < 1e-2  # NaN included


def test_the_kernel_in_which_the_bugs_are_planted_is_right() -> None:
    assert error_of(planted_decode("row < end", "row < end")) < 4e-3


def test_a_shuffle_that_half_a_warp_skips_is_caught() -> None:
    bug = planted_decode(
        "x = ptx.fmax(x, ptx.shfl_xor_f32(x, 8))", "x = ptx.fmax(x, ptx.shfl_xor_f32(x, 8)) if x > 0 else x"
    )
    with pytest.raises(LaunchFault, match="different operations"):
        random_decode(DecodeVariant(64), [75], group_size=5).simulate(source=bug)


def launch(kernel: Any, *arrays: Any, num_threads: int = 32) -> None:
    Simulator(list(arrays)).launch(kernel, Index3(1), num_threads, *(address(a) for a in arrays))


def test_memory_outside_the_arrays_cannot_be_read() -> None:
    def make(target: Target) -> Any:
        return lambda source: target.ptx.ldg_f32(source + 4 * target.cuda.threadIdx.x)

    launch(make, np.zeros(32, np.float32))
    with pytest.raises(MemoryFault, match="outside"):
        launch(make, np.zeros(31, np.float32))


def test_an_access_that_is_not_aligned_is_a_fault() -> None:
    with pytest.raises(MemoryFault, match="not aligned"):
        launch(lambda target: lambda source: target.ptx.ldg128(source + 8), np.zeros(32, np.float32))


def test_an_input_cannot_be_written() -> None:
    source = np.zeros(4, np.float32)
    source.flags.writeable = False
    with pytest.raises(MemoryFault, match="read-only"):
        launch(lambda target: lambda to: target.ptx.stg_f32(to, 1.0), source)


def test_an_index_outside_registers_or_shared_memory_is_a_fault() -> None:
    def make(target: Target) -> Any:
        return lambda _: target.cuda.shared.array(8, target.float32)[-1]

    with pytest.raises(MemoryFault, match="index -1"):
        launch(make, np.zeros(1, np.float32))


def test_registers_and_shared_memory_are_not_a_number_at_first() -> None:
    def make(target: Target) -> Any:
        def kernel(to: int) -> None:
            target.ptx.stg_f32(to, target.cuda.local.array(1, target.float32)[0])
            target.ptx.stg_f32(to + 4, target.cuda.shared.array(1, target.float32)[0])
            word = target.cuda.local.array(1, target.uint32)[0]
            target.ptx.stg_u32(to + 8, word)

        return kernel

    out = np.zeros(3, np.float32)
    launch(make, out)
    assert np.isnan(out).all()
    assert np.isnan(out[2:].view(np.float16)).all()


def test_a_barrier_that_only_some_threads_reach_is_a_fault() -> None:
    def make(target: Target) -> Any:
        return lambda _: target.cuda.syncthreads() if target.cuda.threadIdx.x < 32 else None

    with pytest.raises(LaunchFault, match="32 of 64 threads"):
        launch(make, np.zeros(1, np.float32), num_threads=64)


def test_every_instruction_has_a_twin_of_its_name() -> None:
    tree = ast.parse(PTX.read_text())
    calls = [n for n in tree.body if isinstance(n, ast.Assign) and isinstance(n.value, ast.Call)]
    functions = [n.name for n in tree.body if isinstance(n, ast.FunctionDef)]
    instructions = {ast.unparse(n.targets[0]) for n in calls} | {n for n in functions if not n.startswith("_")}
    assert instructions == {name for name in vars(PtxTwins) if not name.startswith("_")}


def test_inline_ptx_is_in_one_file_only() -> None:
    files = list(Path(numba_kernels.cuda.__path__[0]).rglob("*.py"))
    assert [file.name for file in files if "InlineAsm" in file.read_text()] == [PTX.name]
