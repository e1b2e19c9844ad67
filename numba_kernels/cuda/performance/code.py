"""A kernel's code as the model sees it: its main loop, and what each unit of work runs before and after it."""

from dataclasses import dataclass

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.performance.pipes import cost, global_bytes
from numba_kernels.cuda.sass import Instruction, Loop, find_loops


@dataclass(frozen=True, slots=True)
class KernelCode:
    """Pieces of straight code. A kernel without a main loop has all of it in `before`."""

    before: tuple[Instruction, ...]
    loop: tuple[Instruction, ...]
    after: tuple[Instruction, ...]


def kernel_code(build: Build) -> KernelCode:
    """The pieces of a kernel. The main loop has the most tensor-core instructions, or else loads the most.

    What lies before and after it belongs to a unit of work: as far as the loop around it reaches, or else the kernel.
    """
    body = _until_last_exit(build.instructions)
    loops = [loop for loop in find_loops(body) if _weight(loop.instructions) > (0, 0)]
    if not loops:
        return KernelCode(_usual_path(body), (), ())
    innermost = [loop for loop in loops if not any(_inside(other, loop) for other in loops)]
    main = max(innermost, key=lambda loop: _weight(loop.instructions))
    around = [loop for loop in loops if _inside(main, loop)]
    unit = min(around, key=lambda loop: len(loop.instructions)).instructions if around else body
    before = tuple(i for i in unit if i.address < main.begin)
    after = tuple(i for i in unit if i.address > main.end)
    return KernelCode(_usual_path(before), _usual_path(main.instructions), _usual_path(after))


def _until_last_exit(instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """Without what is behind the end: padding, and the paths of warps that have come apart."""
    exits = [at for at, i in enumerate(instructions) if i.name == "EXIT" and not i.predicate]
    return instructions[: exits[-1] + 1] if exits else instructions


def _weight(instructions: tuple[Instruction, ...]) -> tuple[int, int]:
    return sum(cost(i).pipe == "tensor" for i in instructions), global_bytes(instructions)


def _inside(inner: Loop, outer: Loop) -> bool:
    return inner != outer and outer.begin <= inner.begin and inner.end <= outer.end


def _usual_path(instructions: tuple[Instruction, ...]) -> tuple[Instruction, ...]:
    """Without what a forward branch may skip, if that is arithmetic only: masks at edges, which few tiles need."""
    left, skip_until = [], 0
    for at, instruction in enumerate(instructions):
        if instruction.address < skip_until:
            continue
        left.append(instruction)
        if instruction.target is not None and instruction.target > instruction.address and instruction.predicate:
            skipped = [i for i in instructions[at + 1 :] if i.address < instruction.target]
            if all(cost(i).pipe not in ("lsu", "tensor") and i.name not in ("BAR", "EXIT") for i in skipped):
                skip_until = instruction.target
    return tuple(left)
