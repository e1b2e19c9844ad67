"""Which registers an instruction reads and writes, as far as the model needs it."""

import functools
import re

from numba_kernels.cuda.sass import Instruction

_REGISTER = re.compile(r"\b(U?[RP])(\d+)\b(\.64)?")
_NO_RESULT = frozenset(
    {
        "STG",
        "ST",
        "STS",
        "STSM",
        "RED",
        "LDGSTS",
        "BRA",
        "BAR",
        "EXIT",
        "DEPBAR",
        "LDGDEPBAR",
        "BSSY",
        "BSYNC",
        "NOP",
        "WARPSYNC",
    }
)


def split_operands(operands: str) -> list[str]:
    """At the commas that are not in brackets."""
    return re.split(r",\s*(?![^\[]*\])", operands) if operands else []


@functools.cache
def results(instruction: Instruction) -> frozenset[str]:
    """Registers and predicates that it writes: the first operand, and the predicates around it."""
    if instruction.name in _NO_RESULT:
        return frozenset()
    written: set[str] = set()
    found_register = instruction.name.endswith("SETP")  # it has none
    for operand in split_operands(instruction.operands):
        match = _REGISTER.fullmatch(operand)
        is_predicate = operand in ("PT", "UPT") or bool(match and match[1].endswith("P"))
        if not is_predicate and found_register:
            break
        if match:
            wide = 1 if is_predicate else _result_width(instruction)
            written |= _span(match[1], int(match[2]), wide)
        if not is_predicate:
            found_register = True
    return frozenset(written)


@functools.cache
def sources(instruction: Instruction) -> frozenset[str]:
    """Registers and predicates that it reads; what it writes is among them if the operand could be either."""
    operands = split_operands(instruction.operands)
    skipped = 0 if instruction.name in _NO_RESULT else 1
    read: set[str] = set()
    for position, operand in enumerate(operands[skipped:]):
        for kind, number, pair in _REGISTER.findall(operand):
            wide = 2 if pair else _source_width(instruction, position, in_address="[" in operand)
            read |= _span(kind, int(number), wide)
    if instruction.predicate:
        read.add(instruction.predicate.lstrip("!"))
    return frozenset(read)


def _span(kind: str, first: int, length: int) -> set[str]:
    return {f"{kind}{number}" for number in range(first, first + (1 if kind.endswith("P") else length))}


def _result_width(instruction: Instruction) -> int:
    name, modifiers = instruction.name, instruction.opcode.split(".")[1:]
    if name in ("HMMA", "QMMA", "IMMA"):
        return 4
    if name == "LDSM":
        return next((int(m) for m in modifiers if m in ("2", "4")), 1)
    if name in ("LDG", "LD", "LDS", "LDC", "ULDC"):
        return max(1, instruction.access_bytes // 4)
    return 2 if "WIDE" in modifiers or (name == "CS2R" and "32" not in modifiers) else 1


def _source_width(instruction: Instruction, position: int, *, in_address: bool) -> int:
    name = instruction.name
    if in_address:
        return 1
    if name in ("HMMA", "QMMA", "IMMA"):
        return (4, 2, 4)[position] if position < 3 else 1
    if name in ("STG", "ST", "STS"):
        return max(1, instruction.access_bytes // 4)
    return 2 if "WIDE" in instruction.opcode and position == 2 else 1
