"""How long one warp, alone on its part of an SM, takes for a piece of code: in order, waiting for what it needs.

A warp issues one instruction a cycle, in order, and stops at the first whose registers, pipe or asynchronous copies are
not there. What other warps do meanwhile is not in it: they are what hides these waits.
"""

from dataclasses import dataclass, field

from numba_kernels.cuda.performance.pipes import ASYNCHRONOUS_COPY, GLOBAL_LOADS, cost
from numba_kernels.cuda.performance.registers import results, sources
from numba_kernels.cuda.sass import Instruction

_WARM, _COUNTED = 3, 4  # iterations of a loop before it is regular; those whose mean is taken


@dataclass(slots=True)
class _Warp:
    latency: float  # of a load from global memory, in cycles
    now: float = 0.0
    ready: dict[str, float] = field(default_factory=dict)  # when a register's value is there
    free: dict[str, float] = field(default_factory=dict)  # when a pipe is
    copies: float = 0.0  # when the last asynchronous copy arrives
    groups: list[float] = field(default_factory=list)  # the same, of each committed group

    def run(self, instructions: tuple[Instruction, ...]) -> None:
        for instruction in instructions:
            self._issue(instruction)

    def _issue(self, instruction: Instruction) -> None:
        its_cost = cost(instruction)
        waits = [self.ready.get(register, 0.0) for register in sources(instruction)]
        if instruction.name == "DEPBAR":
            waits.append(self._copies_but(instruction))
        at = max([self.now, self.free.get(its_cost.pipe, 0.0), *waits])
        self.now, self.free[its_cost.pipe] = at + 1, at + its_cost.cycles
        arrives = at + (self.latency if instruction.name in GLOBAL_LOADS else its_cost.latency)
        self.ready |= dict.fromkeys(results(instruction), arrives)
        if instruction.name == ASYNCHRONOUS_COPY:
            self.copies = at + self.latency
        elif instruction.name == "LDGDEPBAR":
            self.groups.append(self.copies)

    def _copies_but(self, instruction: Instruction) -> float:
        """When all groups but the newest n have arrived, n being the last operand of "SB0, 0x1"."""
        newest = int(instruction.operands.rpartition(",")[2].strip(), 16) if "," in instruction.operands else 0
        waited_for = self.groups[: len(self.groups) - newest]
        return max(waited_for, default=0.0)


def straight_cycles(instructions: tuple[Instruction, ...], latency_cycles: float) -> float:
    """For code run once, every branch not taken, until all that it has loaded is there."""
    warp = _Warp(latency_cycles)
    warp.run(instructions)
    return max([warp.now, warp.copies, *warp.ready.values()])


def loop_cycles(instructions: tuple[Instruction, ...], latency_cycles: float) -> float:
    """For one iteration of a loop, when it goes on regularly."""
    warp = _Warp(latency_cycles)
    for _ in range(_WARM):
        warp.run(instructions)
    began = warp.now
    for _ in range(_COUNTED):
        warp.run(instructions)
    return (warp.now - began) / _COUNTED
