"""Kernels built without a GPU: PTX once per kernel, machine code per architecture, by all cores, kept in a folder.

Of a kernel the folder holds NAME.ptx, per architecture NAME.sm_90.report (what ptxas says) and .sass, and in NAME.json
what each was made from: what is there and was made from the same is not made again.
"""

import gc
import hashlib
import importlib.metadata
import json
import os
import re
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from numba_kernels.cuda.prebuilt import architecture_name, source_hash
from numba_kernels.cuda.sass import Instruction, read_sass
from numba_kernels.cuda.target import Kernel
from numba_kernels.cuda.toolchain import ToolchainMissing, assemble, disassemble, tool_version

COMPUTE_CAPABILITIES = ((8, 0), (9, 0), (10, 0))
# Up to the first symbol: comments, version, target. It is the same in every module of one target.
_PTX_HEAD = re.compile(r"\A.*?\.address_size 64\n", re.DOTALL)
_COMPILER_PACKAGES = ("numba-cuda", "numba", "llvmlite", "nvidia-nvvm")


@dataclass(frozen=True, slots=True)
class Build:
    """One kernel for one architecture."""

    kernel: Kernel
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int  # static
    instructions: tuple[Instruction, ...]

    def count(self, name: str, modifier: str = "") -> int:
        """How many instructions of this name, with this modifier if one is given."""
        return sum(instruction.has(name, modifier) for instruction in self.instructions)


def read_build(kernel: Kernel, architecture: str, report: str, sass: str) -> Build:
    """From the text of `ptxas -v` and of nvdisasm. Raises ValueError if either is not understood."""
    used = re.search(r"Used (\d+) registers", report)
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    shared = re.search(r"(\d+) bytes smem", report)
    if not used or not stack:
        raise ValueError(f"cannot read what ptxas says: {report[:200]!r}")
    spills = int(stack[2]) + int(stack[3])
    shared_bytes = int(shared[1]) if shared else 0
    return Build(kernel, architecture, int(used[1]), int(stack[1]), spills, shared_bytes, read_sass(sass))


def compiler_versions() -> dict[str, str]:
    """Of what makes PTX and machine code. Raises ToolchainMissing."""
    try:
        packages = {name: importlib.metadata.version(name) for name in _COMPILER_PACKAGES}
    except importlib.metadata.PackageNotFoundError as missing:
        raise ToolchainMissing(f"{missing.name} is not installed: run `make install-cuda`") from None
    return packages | {name: tool_version(name) for name in ("ptxas", "nvdisasm")}


def architectures_of(kernel: Kernel) -> list[str]:
    """The architectures that have the kernel's instructions."""
    return [architecture_name(c) for c in COMPUTE_CAPABILITIES if c >= kernel.min_compute_capability]


def build_all(
    catalog: Callable[[], dict[str, Kernel]], folder: Path, architectures: tuple[str, ...] | None = None
) -> dict[str, dict[str, Build]]:
    """By name and architecture: every kernel of a catalogue, for every architecture that it can run on.

    `catalog` is called again in each process of the pool: a function of a module. Raises ToolchainMissing, RuntimeError
    with a tool's message, and what Numba raises.
    """
    kernels = build_ptx(catalog, folder)
    versions = compiler_versions()
    wanted = {
        name: [a for a in architectures_of(kernel) if architectures is None or a in architectures]
        for name, kernel in kernels.items()
    }
    for architecture in {a: None for of_kernel in wanted.values() for a in of_kernel}:
        stale = [
            kernel
            for name, kernel in kernels.items()
            if architecture in wanted[name] and _is_stale(kernel, architecture, folder, versions)
        ]
        # One file for all that PTX of one target can be: a disassembler takes longer to start than for a kernel.
        for target in {kernel.min_compute_capability for kernel in stale}:
            group = [kernel for kernel in stale if kernel.min_compute_capability == target]
            _write_machine_code(group, architecture, folder, versions)
    return {name: {a: _read(kernel, folder, a) for a in wanted[name]} for name, kernel in kernels.items()}


def build_ptx(catalog: Callable[[], dict[str, Kernel]], folder: Path) -> dict[str, Kernel]:
    """Make NAME.ptx of every kernel of a catalogue; returns the kernels. As `build_all`."""
    folder.mkdir(parents=True, exist_ok=True)
    kernels, versions = catalog(), compiler_versions()
    stale = [name for name, kernel in kernels.items() if _is_stale(kernel, "ptx", folder, versions)]
    if stale:
        num_workers = min(len(os.sched_getaffinity(0)), len(stale))
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker) as pool:
            for name, job in [(name, pool.submit(_write_ptx, catalog, name, folder, versions)) for name in stale]:
                try:
                    job.result()
                except Exception as error:
                    error.add_note(f"while compiling {name}")
                    raise
    return kernels


def _start_worker() -> None:
    # Numba copies its IR again and again: without this a quarter of the time goes to the garbage collector.
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


def _write_ptx(catalog: Callable[[], dict[str, Kernel]], name: str, folder: Path, versions: dict[str, str]) -> None:
    from numba_kernels.cuda.compiled import compile_to_ptx  # not at the top: everything else here goes without it

    kernel = catalog()[name]
    (folder / f"{name}.ptx").write_text(compile_to_ptx(kernel))
    # Last: what was interrupted is made again, and so is what was made from the PTX before.
    _keys_file(kernel, folder).write_text(json.dumps({"ptx": _key(kernel, "ptx", versions)}))


def _write_machine_code(kernels: list[Kernel], architecture: str, folder: Path, versions: dict[str, str]) -> None:
    """Reports and machine code of kernels of the same target."""
    with tempfile.TemporaryDirectory() as scratch:
        together, cubin = Path(scratch, "kernels.ptx"), Path(scratch, "kernels.cubin")
        together.write_text(join_ptx([(folder / f"{kernel.name}.ptx").read_text() for kernel in kernels]))
        reports = split_report(assemble(together, architecture, cubin))
        sections = split_sass(disassemble(cubin))
    for kernel in kernels:
        (folder / f"{kernel.name}.{architecture}.report").write_text(reports[kernel.entry])
        (folder / f"{kernel.name}.{architecture}.sass").write_text(sections[kernel.entry])
        _read(kernel, folder, architecture)  # raises if it is not what it should be
        keys = _read_keys(kernel, folder) | {architecture: _key(kernel, architecture, versions)}
        _keys_file(kernel, folder).write_text(json.dumps(keys))


def join_ptx(modules: list[str]) -> str:
    """One module of several for the same target, each with one kernel, whose symbols are its own."""
    head = _PTX_HEAD.match(modules[0])
    assert head is not None, modules[0][:500]
    return head[0] + "".join(_PTX_HEAD.sub("", module) for module in modules)


def split_report(report: str) -> dict[str, str]:
    """By kernel, what `ptxas -v` says of several."""
    _, *parts = re.split(r"Compiling entry function '(\w+)'", report)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def split_sass(sass: str) -> dict[str, str]:
    """By kernel, the machine code of several."""
    sections = re.findall(r"^\s*\.section\s+\.text\.(\w+)(.*?)(?=^\s*\.section\s|\Z)", sass, re.MULTILINE | re.DOTALL)
    return dict(sections)


def _read(kernel: Kernel, folder: Path, architecture: str) -> Build:
    report, sass = ((folder / f"{kernel.name}.{architecture}.{kind}").read_text() for kind in ("report", "sass"))
    return read_build(kernel, architecture, report, sass)


def _is_stale(kernel: Kernel, part: str, folder: Path, versions: dict[str, str]) -> bool:
    return _read_keys(kernel, folder).get(part) != _key(kernel, part, versions)


def _keys_file(kernel: Kernel, folder: Path) -> Path:
    return folder / f"{kernel.name}.json"


def _read_keys(kernel: Kernel, folder: Path) -> dict[str, str]:
    file = _keys_file(kernel, folder)
    keys: dict[str, str] = json.loads(file.read_text()) if file.is_file() else {}
    return keys


def _key(kernel: Kernel, part: str, versions: dict[str, str]) -> str:
    """What the kernel's PTX, or its machine code for an architecture, is made from."""
    ptx = _digest(source_hash(kernel), *(versions[name] for name in _COMPILER_PACKAGES))
    return ptx if part == "ptx" else _digest(ptx, part, versions["ptxas"], versions["nvdisasm"])


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
