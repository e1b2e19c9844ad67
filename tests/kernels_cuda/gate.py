"""What the compile gate asks of a kernel's machine code, whatever the kernel is."""

from numba_kernels.cuda.build import Build
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.decode import DecodeVariant, decode_kernel
from numba_kernels.cuda.target import Kernel
from tests.kernels_cuda.staged_copy import staged_copy_kernel

_NARROW_SHARE = 0.25  # of the bytes in global accesses: indices, and what 16 bytes do not divide
_GLOBAL_ACCESSES = ("LDG", "STG", "LD", "ST", "LDGSTS")


def gated_kernels() -> dict[str, Kernel]:
    """The catalogue, a block size that is no power of 2, and the simulator's own test kernel."""
    others = (decode_kernel(DecodeVariant(128, block_size=48)), staged_copy_kernel())
    return catalog() | {kernel.name: kernel for kernel in others}


def violations(build: Build, expected: dict[str, int] | None = None) -> list[str]:
    """What is wrong with a build. `expected`: how often an instruction, such as "LDG.128", has to occur, exactly."""
    kernel, found = build.kernel, []
    if build.registers > kernel.max_registers:
        found.append(f"{build.registers} registers, {kernel.max_registers} allowed")
    if build.stack_bytes or build.spill_bytes or build.count("LDL") or build.count("STL"):
        found.append(f"local memory: {build.stack_bytes} B of stack, {build.spill_bytes} B spilled")
    if any(instruction.is_float64 for instruction in build.instructions):
        found.append("arithmetic in float64")
    found += [f"no {wanted}" for wanted in kernel.instructions if not count(build, wanted)]
    for wanted, times in (expected or {}).items():
        if count(build, wanted) != times:
            found.append(f"{wanted}: {count(build, wanted)} times instead of {times}")
    if kernel.wide and narrow_share(build) > _NARROW_SHARE:
        found.append(f"{narrow_share(build):.0%} of the bytes in global accesses of less than 16")
    return found


def count(build: Build, instruction: str) -> int:
    """How often "LDG.128" occurs: the name and one of the opcode's modifiers."""
    name, _, modifier = instruction.partition(".")
    return build.count(name, modifier)


def narrow_share(build: Build) -> float:
    """Of the bytes in the global accesses as they are written, those that move less than 16 bytes at once."""
    widths = [i.access_bytes for i in build.instructions if i.name in _GLOBAL_ACCESSES]
    return sum(width for width in widths if width < 16) / sum(widths) if widths else 0.0
