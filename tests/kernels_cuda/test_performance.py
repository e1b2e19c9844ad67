"""The static model's arithmetic, on code small enough to be counted by hand."""

import dataclasses

import pytest

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.performance.code import KernelCode, kernel_code
from numba_kernels.cuda.performance.machine import Machine
from numba_kernels.cuda.performance.pipes import bytes_moved, global_bytes, pipe_cycles
from numba_kernels.cuda.performance.predict import KernelModel, predict
from numba_kernels.cuda.performance.registers import results, sources
from numba_kernels.cuda.performance.schedule import loop_cycles, straight_cycles
from numba_kernels.cuda.performance.step import StepModel
from numba_kernels.cuda.performance.workloads import SHAPES, Workload, attention, between
from numba_kernels.cuda.sass import Instruction, read_sass
from numba_kernels.cuda.target import Kernel

LATENCY = 1000.0
LOAD = Instruction(0, "LDG.E.128", "", "R4, desc[UR6][R2.64]")
USE = Instruction(16, "FADD", "", "R9, R7, R9")  # of the load's last register
OTHER = Instruction(16, "FADD", "", "R10, R11, R11")
KERNEL = Kernel(lambda _target: lambda: None, ("int64",), 128, name="some")


def code(*lines: str) -> tuple[Instruction, ...]:
    text = "".join(line if line.startswith(".L") else f"  /*{16 * n:04x}*/ {line} ;\n" for n, line in enumerate(lines))
    return read_sass(text)


@pytest.mark.parametrize(
    ("opcode", "operands", "written", "read"),
    [
        ("LDG.E.128", "R4, desc[UR6][R2.64+0x10]", {"R4", "R5", "R6", "R7"}, {"UR6", "R2", "R3"}),
        ("STG.E.128", "desc[UR6][R2.64], R4", set(), {"UR6", "R2", "R3", "R4", "R5", "R6", "R7"}),
        ("ISETP.GE.AND", "P0, PT, R1, R2, PT", {"P0"}, {"R1", "R2"}),
        ("IADD3", "R1, P0, R2, R3, RZ", {"R1", "P0"}, {"P0", "R2", "R3"}),
        ("IMAD.WIDE.U32", "R4, R1, 0x4, R8", {"R4", "R5"}, {"R1", "R8", "R9"}),
        ("SHFL.BFLY", "PT, R5, R4, 0x4, 0x1f", {"R5"}, {"R5", "R4"}),
        ("LDSM.16.M88.4", "R4, [R1+0x10]", {"R4", "R5", "R6", "R7"}, {"R1"}),
        ("LDGSTS.E.BYPASS.128", "[R1], desc[UR4][R2.64]", set(), {"R1", "UR4", "R2", "R3"}),
    ],
)
def test_which_registers_an_instruction_writes_and_reads(
    opcode: str, operands: str, written: set[str], read: set[str]
) -> None:
    instruction = Instruction(0, opcode, "", operands)
    assert results(instruction) == written
    assert sources(instruction) == read


def test_a_product_on_tensor_cores_reads_ten_registers_and_its_predicate() -> None:
    product = Instruction(0, "HMMA.16816.F32.BF16", "!P3", "R0, R12, R20, R40")
    assert results(product) == {"R0", "R1", "R2", "R3"}
    read = {"R12", "R13", "R14", "R15", "R20", "R21", "R40", "R41", "R42", "R43", "P3"}
    assert sources(product) == read


def test_a_loop_that_uses_what_it_has_just_loaded_waits_once_an_iteration() -> None:
    assert loop_cycles((LOAD, USE), LATENCY) == pytest.approx(LATENCY + 1, abs=10)


def test_a_loop_that_loads_ahead_into_the_same_registers_still_waits_once_an_iteration() -> None:
    assert loop_cycles((USE, LOAD), LATENCY) == pytest.approx(LATENCY, abs=10)


def test_two_independent_loads_wait_together() -> None:
    second = dataclasses.replace(LOAD, operands="R20, desc[UR6][R2.64]")
    assert loop_cycles((LOAD, second, USE), LATENCY) == pytest.approx(LATENCY, abs=10)
    dependent = dataclasses.replace(LOAD, operands="R20, desc[UR6][R4.64]")
    assert loop_cycles((LOAD, dependent, dataclasses.replace(USE, operands="R9, R20, R9")), LATENCY) == pytest.approx(
        2 * LATENCY, abs=10
    )


def test_asynchronous_copies_are_waited_for_by_group() -> None:
    copy = Instruction(0, "LDGSTS.E.BYPASS.128", "", "[R1], desc[UR4][R2.64]")
    commit = Instruction(16, "LDGDEPBAR")
    wait_for_all = Instruction(32, "DEPBAR.LE", "", "SB0, 0x0")
    wait_for_all_but_one = dataclasses.replace(wait_for_all, operands="SB0, 0x1")
    assert loop_cycles((copy, commit, wait_for_all), LATENCY) == pytest.approx(LATENCY, abs=10)
    # Two stages: an iteration waits for the copy of the one before.
    assert loop_cycles((copy, commit, wait_for_all_but_one), LATENCY) == pytest.approx(LATENCY / 2, abs=10)


def test_straight_code_ends_when_what_it_loads_is_there() -> None:
    assert straight_cycles((LOAD, OTHER), LATENCY) == LATENCY
    assert straight_cycles((), LATENCY) == 0


def test_pipes_are_taken_by_what_runs_on_them() -> None:
    work = (LOAD, USE, Instruction(0, "MUFU.EX2"), Instruction(0, "HMMA.16816.F32.BF16"), Instruction(0, "BRA"))
    assert pipe_cycles(work) == {"issue": 5, "lsu": 4, "float": 1, "special": 8, "tensor": 6.5}
    assert global_bytes(work) == 512
    assert bytes_moved(Instruction(0, "LDSM.16.MT88.4")) == 512


@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [(128, 168, 16640, 3), (128, 32, 0, 16), (1024, 32, 0, 2), (128, 255, 100_000, 2), (32, 16, 0, 32)],
)
def test_blocks_per_sm(threads: int, registers: int, shared: int, blocks: int) -> None:
    assert Machine().blocks_per_sm(threads, registers, shared) == blocks


def test_what_has_to_be_in_flight() -> None:
    machine = Machine(num_sms=100, bandwidth=2e12, latency_s=500e-9)
    assert machine.needed_in_flight == pytest.approx(10_000)  # 2 TB/s x 500 ns over 100 SMs


def test_the_main_loop_and_what_a_unit_of_work_runs_around_it() -> None:
    instructions = read_sass(
        """
        /*0000*/ S2R R0, SR_CTAID.X ;
.L_outer_is_not_a_label:
.L_x_0:
        /*0010*/ LDG.E R1, desc[UR4][R2.64] ;
.L_x_1:
        /*0020*/ LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/ @P1 BRA `(.L_x_2) ;
        /*0040*/ SEL R4, R4, RZ, P0 ;
.L_x_2:
        /*0050*/ HMMA.16816.F32.BF16 R8, R4, R12, R8 ;
        /*0060*/ @P0 BRA `(.L_x_1) ;
        /*0070*/ STG.E desc[UR4][R2.64], R8 ;
        /*0080*/ @P2 BRA `(.L_x_0) ;
        /*0090*/ EXIT ;
"""
    )
    pieces = kernel_code(Build(KERNEL, "sm_90", 32, 0, 0, 0, instructions))
    assert [i.address for i in pieces.before] == [0x10]
    assert [i.address for i in pieces.loop] == [0x20, 0x30, 0x50, 0x60], "the mask at the edge is left out"
    assert [i.address for i in pieces.after] == [0x70, 0x80]


def made_of(loop: tuple[Instruction, ...], num_warps: int = 4, blocks_per_sm: int = 2) -> KernelModel:
    pieces = KernelCode((), loop, ())
    return KernelModel(pieces, num_warps, blocks_per_sm, global_bytes(loop), pipe_cycles(()), pipe_cycles(loop))


def launch(num_bytes: int, num_blocks: int, num_units: int, iterations: float) -> Workload:
    """Of a kernel that loads 512 bytes a warp in each iteration."""
    return Workload(KERNEL, "", 1, 1, 10, num_bytes, 0, num_blocks, num_units, iterations * 512)


MACHINE = Machine(num_sms=10, clock_hz=1e9, bandwidth=1e12, latency_s=1e-6, launch_s=0)


def test_few_units_are_bound_by_latency() -> None:
    predicted = predict(launch(10_000, 5, 5, iterations=8), made_of((LOAD, USE)), MACHINE)
    assert predicted.bound == "latency"
    assert predicted.time_s == pytest.approx(8e-6, rel=0.02)
    assert predicted.limit_s == pytest.approx(10e-9)
    assert predicted.gap_per_step_s == pytest.approx(10 * (predicted.time_s - 10e-9))


def test_many_units_are_bound_by_memory_and_the_last_round_by_its_own_latency() -> None:
    # 20 blocks at once, 41 units: two rounds of 20 MB each, and a single unit that still takes its 8 microseconds.
    predicted = predict(launch(41_000_000, 20, 41, iterations=8), made_of((LOAD, USE)), MACHINE)
    assert predicted.bound == "memory"
    assert predicted.num_rounds == 3
    assert predicted.time_s == pytest.approx(40e-6 + 8e-6, rel=0.02)


def test_arithmetic_that_is_slower_than_memory_names_its_pipe() -> None:
    loop = (LOAD, *[Instruction(0, "MUFU.EX2", "", f"R{n}, R{n}") for n in range(60, 200)])
    predicted = predict(launch(1_000, 20, 20, iterations=100), made_of(loop), MACHINE)
    assert predicted.bound == "special"
    assert predicted.time_s == pytest.approx(140 * 8 * 2 * 100 * 1e-9)  # two warps on each part of the SM


def test_an_unrolled_loop_has_fewer_iterations() -> None:
    second = dataclasses.replace(LOAD, operands="R20, desc[UR6][R2.64]")
    work = launch(1, 1, 1, iterations=8)
    assert made_of((LOAD, USE)).iterations(work) == 8
    assert made_of((LOAD, second, USE)).iterations(work) == 4


def test_bytes_in_flight_follow_from_the_waits() -> None:
    model = made_of((LOAD, USE))
    assert model.in_flight_per_sm(LATENCY) == pytest.approx(2 * 4 * 512, rel=0.02)  # each warp's load, all the time


def test_what_the_products_have_to_reach_for_the_goal() -> None:
    step = StepModel(5.0, 3.0, 3.5, 0.3, 0.2, num_launches=1)
    assert step.limit_s == 8.0
    fraction = step.needed_product_fraction(0.75)
    assert step.limit_s / step.time_s(fraction) == pytest.approx(0.75)
    assert dataclasses.replace(step, attention_s=20.0).needed_product_fraction() == float("inf")


def test_the_bytes_of_a_step_are_those_of_its_shape() -> None:
    llama = SHAPES[0]
    assert llama.step_weight_bytes == pytest.approx(15.0e9, rel=0.01)  # 8.03e9 parameters less the embedding, 2 B each
    decode, merge = attention(llama, 64, 1024, Machine())
    cache = 64 * 1024 * 2 * 8 * 128 * 2
    assert decode.num_bytes == pytest.approx(cache, rel=0.05)
    assert decode.num_bytes > cache
    assert decode.num_units == 64 * 4 * 8
    assert decode.loop_bytes == 4 * (16 * 2 * 128 * 2 + 128)  # four tiles of 16 tokens, and their block ids
    assert merge.loop_bytes == 4 * 32 * 12
    assert [work.calls for work in between(llama, 64)] == [64, 32, 32]
