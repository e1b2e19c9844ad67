"""From a kernel to what the GPU would run, without a GPU: PTX by Numba, machine code by ptxas, text by nvdisasm."""

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from numba_kernels.cuda.target import Kernel

_OPCODE = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", re.MULTILINE)
_DOUBLE = re.compile(r"^(D(ADD|MUL|FMA|SETP|MNMX)|MUFU\.\w*64H|[FI]2[FI]\S*\.F64)")


class ToolchainMissing(Exception):
    """A tool that the compile gate needs is not installed: `make test-slow` installs it."""


def tool(name: str) -> str:
    """The path of ptxas or nvdisasm: from NVIDIA's wheels, else from a CUDA toolkit on PATH."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        path = Path(folder) / "cu13" / "bin" / name
        if path.is_file():
            return str(path)
    found = shutil.which(name)
    if found is None:
        raise ToolchainMissing(f"{name} is in no package of NVIDIA's and not on PATH")
    return found


@dataclass(frozen=True, slots=True)
class Build:
    """What ptxas says of a kernel, and its instructions."""

    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int
    opcodes: Counter[str]  # with modifiers, as "LDG.E.128.CONSTANT"

    def count(self, name: str, modifier: str = "") -> int:
        """How many instructions of this name, with this modifier if one is given."""
        parts = ((opcode.split("."), n) for opcode, n in self.opcodes.items())
        return sum(n for (first, *rest), n in parts if first == name and (not modifier or modifier in rest))

    @property
    def num_double(self) -> int:
        """Instructions that compute in float64."""
        return sum(n for opcode, n in self.opcodes.items() if _DOUBLE.match(opcode))


def build(kernel: Kernel, compute_capability: tuple[int, int], folder: Path) -> Build:
    """Compile for one architecture. Raises `ToolchainMissing`, `CalledProcessError`."""
    try:
        importlib.metadata.version("numba-cuda")
    except importlib.metadata.PackageNotFoundError:
        raise ToolchainMissing("numba-cuda is not installed") from None
    from numba_kernels.cuda.compiled import compile_to_ptx  # not at the top: the fast tests go without numba-cuda

    source, binary = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(compile_to_ptx(kernel, compute_capability))
    architecture = "sm_{}{}".format(*compute_capability)
    report = _run(tool("ptxas"), f"-arch={architecture}", "-v", str(source), "-o", str(binary))
    return read_build(report, _run(tool("nvdisasm"), "-c", str(binary)))


def read_build(report: str, sass: str) -> Build:
    """From the text of `ptxas -v` and of nvdisasm. Raises ValueError if either is not understood."""
    used = re.search(r"Used (\d+) registers", report)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared = re.search(r"(\d+) bytes smem", report)
    opcodes = Counter(_OPCODE.findall(sass))
    if not used or not stack or "EXIT" not in opcodes:
        raise ValueError(f"cannot read what the tools say: {report[:200]!r}, {len(sass)} characters of SASS")
    spills = int(stack[2]) + int(stack[3])
    return Build(int(used[1]), int(stack[1]), spills, int(shared[1]) if shared else 0, opcodes)


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed: {done.stderr[:2000]}")
    return done.stderr + done.stdout


def violations(build: Build, kernel: Kernel, expected: dict[tuple[str, str], int]) -> list[str]:
    """What is wrong with a build. `expected`: how often (opcode, modifier) has to occur, exactly."""
    found = []
    if build.registers > kernel.max_registers:
        found.append(f"{build.registers} registers, {kernel.max_registers} allowed")
    if build.stack_bytes or build.spill_bytes or build.count("LDL") or build.count("STL"):
        found.append(f"local memory: {build.stack_bytes} B of stack, {build.spill_bytes} B spilled")
    if build.num_double:
        found.append(f"{build.num_double} instructions in float64")
    for (name, modifier), count in expected.items():
        if build.count(name, modifier) != count:
            found.append(f"{name}.{modifier}: {build.count(name, modifier)} times instead of {count}")
    return found
