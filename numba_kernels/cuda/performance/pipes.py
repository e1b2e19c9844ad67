"""What an instruction costs on Hopper: the pipe it occupies, for how long, and when its result is there.

Throughputs are those of the CUDA C++ Programming Guide's table of arithmetic instructions (compute capability 9.0, per
SM and cycle: 128 float32, 64 integer and logic, 16 special functions and conversions, 32 shuffles), divided by the four
parts of an SM; shared memory and the first-level cache move 128 bytes a cycle. Latencies are assumed, rounded from
published microbenchmarks (Luo et al., arXiv 2501.12084); they matter little beside memory's.
"""

from dataclasses import dataclass

from numba_kernels.cuda.sass import Instruction

WARP = 32


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one instruction of one warp."""

    pipe: str  # "lsu" is one for the whole SM, the others are one for each of its four parts
    cycles: float  # how long the pipe is taken
    latency: float  # cycles until the result can be used; for loads from global memory the machine knows


# mma.sync of 16 x 8 x 16 is 4 cycles at the rate of wgmma; assumed: mma.sync reaches 62 % of that rate on Hopper.
_TENSOR = Cost("tensor", 6.5, 33)
_SPECIAL = Cost("special", 8, 23)
_FLOAT = Cost("float", 1, 5)
_INTEGER_MULTIPLY = Cost("multiply", 2, 5)
_LOGIC = Cost("logic", 2, 5)
_UNIFORM = Cost("uniform", 2, 10)
_CONTROL = Cost("issue", 1, 1)
_SHUFFLE = Cost("lsu", 1, 25)
_SHARED_LATENCY = 30

_CONTROL_NAMES = frozenset(
    [
        "BRA",
        "BSSY",
        "BSYNC",
        "BREAK",
        "NOP",
        "WARPSYNC",
        "BAR",
        "EXIT",
        "RET",
        "CALL",
        "DEPBAR",
        "LDGDEPBAR",
        "ERRBAR",
        "MEMBAR",
        "NANOSLEEP",
        "YIELD",
    ]
)
_FLOAT_NAMES = frozenset({"FADD", "FMUL", "FFMA", "HADD2", "HMUL2", "HFMA2"})
_SPECIAL_NAMES = frozenset({"MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "S2R"})
_TENSOR_NAMES = frozenset({"HMMA", "IMMA", "QMMA"})
_SHARED_NAMES = frozenset({"LDS", "STS", "LDSM", "STSM", "ATOMS"})
GLOBAL_LOADS = frozenset({"LDG", "LD"})
GLOBAL_STORES = frozenset({"STG", "ST", "RED"})
ASYNCHRONOUS_COPY = "LDGSTS"


def cost(instruction: Instruction) -> Cost:
    """What one warp's instruction costs. Instructions that are not known count as integer logic."""
    name = instruction.name
    if name in GLOBAL_LOADS | GLOBAL_STORES or name == ASYNCHRONOUS_COPY:
        return Cost("lsu", bytes_moved(instruction) / 128, 0)
    if name in _SHARED_NAMES:
        return Cost("lsu", max(1.0, bytes_moved(instruction) / 128), _SHARED_LATENCY)
    if name in ("SHFL", "MOVM"):
        return _SHUFFLE
    if name == "IMAD":  # a move is a multiplication by 1, and as fast
        return _INTEGER_MULTIPLY
    for names, its_cost in (
        (_TENSOR_NAMES, _TENSOR),
        (_SPECIAL_NAMES, _SPECIAL),
        (_FLOAT_NAMES, _FLOAT),
        (_CONTROL_NAMES, _CONTROL),
    ):
        if name in names:
            return its_cost
    return _UNIFORM if name.startswith("U") and name not in ("UBLKCP",) else _LOGIC


def bytes_moved(instruction: Instruction) -> int:
    """By all lanes of a warp. `ldmatrix` of n matrices brings 8 x 16 bytes of each."""
    if instruction.name in ("LDSM", "STSM"):
        return 128 * next((int(m) for m in instruction.opcode.split(".") if m in ("2", "4")), 1)
    return WARP * instruction.access_bytes


def global_bytes(instructions: tuple[Instruction, ...]) -> int:
    """What a warp loads from global memory with these instructions, asynchronous copies included."""
    return sum(bytes_moved(i) for i in instructions if i.name in GLOBAL_LOADS or i.name == ASYNCHRONOUS_COPY)


def pipe_cycles(instructions: tuple[Instruction, ...]) -> dict[str, float]:
    """By pipe, how long one warp's instructions take it; "issue" is one cycle for each."""
    taken: dict[str, float] = {"issue": float(len(instructions))}
    for instruction in instructions:
        its_cost = cost(instruction)
        if its_cost.pipe != "issue":
            taken[its_cost.pipe] = taken.get(its_cost.pipe, 0.0) + its_cost.cycles
    return taken
