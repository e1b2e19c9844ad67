"""Machine code as nvdisasm prints it: instructions, and the loops that they make."""

import re
from dataclasses import dataclass

_LABEL = re.compile(r"^\.(L_x_\d+):")
_INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z][A-Z0-9_.]*)\s*(.*?)\s*;", re.MULTILINE)
_TARGET = re.compile(r"`\(\.(L_x_\d+)\)")
_FLOAT64 = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64H|[FI]2[FI]\S*\.F64)")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a kernel."""

    address: int
    opcode: str  # with modifiers, as "LDG.E.128.CONSTANT"
    predicate: str = ""  # as "!P0"
    operands: str = ""
    target: int | None = None  # where a branch goes

    @property
    def name(self) -> str:
        return self.opcode.partition(".")[0]

    def has(self, name: str, modifier: str = "") -> bool:
        """Whether it is of this name and has this modifier, if one is given."""
        first, *rest = self.opcode.split(".")
        return first == name and (not modifier or modifier in rest)

    @property
    def is_float64(self) -> bool:
        """Whether it computes in double precision."""
        return _FLOAT64.match(self.opcode) is not None

    @property
    def access_bytes(self) -> int:
        """How many bytes a lane moves with a load, store or asynchronous copy; 4 unless the opcode says otherwise."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "16": 2, "U8": 1, "S8": 1}
        return next((widths[m] for m in self.opcode.split(".")[1:] if m in widths), 4)


@dataclass(frozen=True, slots=True)
class Loop:
    """A backward branch and what lies between it and its target."""

    begin: int  # address of the first instruction
    end: int  # address of the branch
    instructions: tuple[Instruction, ...]


def read_sass(text: str) -> tuple[Instruction, ...]:
    """The instructions, in order. Raises ValueError for a text with no EXIT in it."""
    labels, waiting = _addresses_of_labels(text), []
    for address, predicate, opcode, operands in _INSTRUCTION.findall(text):
        found = _TARGET.search(operands)
        target = labels[found[1]] if found and opcode.startswith("BRA") else None
        waiting.append(Instruction(int(address, 16), opcode, predicate, operands, target))
    if not any(instruction.name == "EXIT" for instruction in waiting):
        raise ValueError(f"no kernel in {len(text)} characters of SASS")
    return tuple(waiting)


def _addresses_of_labels(text: str) -> dict[str, int]:
    addresses: dict[str, int] = {}
    waiting: list[str] = []
    for line in text.splitlines():
        label, instruction = _LABEL.match(line), _INSTRUCTION.match(line)
        if label:
            waiting.append(label[1])
        elif instruction:
            addresses |= dict.fromkeys(waiting, int(instruction[1], 16))
            waiting.clear()
    return addresses


def find_loops(instructions: tuple[Instruction, ...]) -> list[Loop]:
    """The loops, in the order of their begin; outer before inner. The last instruction's branch to itself is none."""
    branches = [i for i in instructions if i.target is not None and i.target < i.address]
    ranges: dict[int, int] = {}
    for branch in branches:
        begin = branch.target or 0
        ranges[begin] = max(ranges.get(begin, 0), branch.address)  # several ways back are one loop
    return [
        Loop(begin, end, tuple(i for i in instructions if begin <= i.address <= end))
        for begin, end in sorted(ranges.items(), key=lambda r: (r[0], -r[1]))
    ]
