"""Kernels built without a GPU: PTX once per kernel, machine code per architecture, by all cores, kept in a folder.

Of a kernel the folder holds NAME.ptx, per architecture NAME.sm_90.cubin, .report (what ptxas says) and .sass, and in
NAME.json what each was made from: what is there and was made from the same is not made again.
"""

import gc
import hashlib
import importlib.metadata
import json
import os
import re
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


def build(kernel: Kernel, architecture: str, folder: Path) -> Build:
    """Build one kernel here and now, whatever the folder holds."""
    ptx = folder / f"{kernel.entry}.ptx"
    _write_ptx(kernel, ptx)
    _write_machine_code(ptx, architecture)
    return _read(kernel, ptx, architecture)


def build_all(
    catalog: Callable[[], dict[str, Kernel]], folder: Path, architectures: tuple[str, ...] | None = None
) -> dict[str, dict[str, Build]]:
    """By name and architecture: every kernel of a catalogue, for every architecture that it can run on.

    `catalog` is called again in each process of the pool: a function of a module. Raises ToolchainMissing, RuntimeError
    with a tool's message, and what Numba raises.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kernels, versions = catalog(), compiler_versions()
    wanted = {
        name: [a for a in architectures_of(kernel) if architectures is None or a in architectures]
        for name, kernel in kernels.items()
    }
    stale = [name for name, kernel in kernels.items() if _stale(kernel, wanted[name], folder, versions)]
    if stale:
        num_workers = min(len(os.sched_getaffinity(0)), len(stale))
        with ProcessPoolExecutor(num_workers, get_context("spawn"), _start_worker) as pool:
            jobs = [pool.submit(_build_named, catalog, name, wanted[name], folder, versions) for name in stale]
            for job in jobs:
                job.result()
    return {
        name: {a: _read(kernel, folder / f"{name}.ptx", a) for a in wanted[name]} for name, kernel in kernels.items()
    }


def _start_worker() -> None:
    # Numba copies its IR again and again: without this a quarter of the time goes to the garbage collector.
    gc.freeze()
    gc.set_threshold(200_000, 50, 50)


def _build_named(
    catalog: Callable[[], dict[str, Kernel]],
    name: str,
    architectures: list[str],
    folder: Path,
    versions: dict[str, str],
) -> None:
    kernel, ptx, made_from = catalog()[name], folder / f"{name}.ptx", folder / f"{name}.json"
    keys = _keys(kernel, architectures, versions)
    had = _read_keys(made_from)
    if had.get("ptx") != keys["ptx"] or not ptx.is_file():
        had = {}
        _write_ptx(kernel, ptx)
    for architecture in architectures:
        if had.get(architecture) != keys[architecture]:
            _write_machine_code(ptx, architecture)
    made_from.write_text(json.dumps(had | keys))  # last: what was interrupted is made again


def _write_ptx(kernel: Kernel, ptx: Path) -> None:
    from numba_kernels.cuda.compiled import compile_to_ptx  # not at the top: everything else here goes without it

    ptx.write_text(compile_to_ptx(kernel))


def _write_machine_code(ptx: Path, architecture: str) -> None:
    cubin = ptx.with_suffix(f".{architecture}.cubin")
    report = assemble(ptx, architecture, cubin)
    cubin.with_suffix(".report").write_text(report)
    cubin.with_suffix(".sass").write_text(disassemble(cubin))


def _read(kernel: Kernel, ptx: Path, architecture: str) -> Build:
    report, sass = (ptx.with_suffix(f".{architecture}.{kind}").read_text() for kind in ("report", "sass"))
    return read_build(kernel, architecture, report, sass)


def _stale(kernel: Kernel, architectures: list[str], folder: Path, versions: dict[str, str]) -> bool:
    keys = _keys(kernel, architectures, versions)
    had = _read_keys(folder / f"{kernel.name}.json")
    return any(had.get(name) != key for name, key in keys.items())


def _read_keys(made_from: Path) -> dict[str, str]:
    keys: dict[str, str] = json.loads(made_from.read_text()) if made_from.is_file() else {}
    return keys


def _keys(kernel: Kernel, architectures: list[str], versions: dict[str, str]) -> dict[str, str]:
    """What the kernel's PTX and its machine code for each architecture are made from."""
    ptx = _digest(source_hash(kernel), *(versions[name] for name in _COMPILER_PACKAGES))
    tools = (versions["ptxas"], versions["nvdisasm"])
    return {"ptx": ptx} | {a: _digest(ptx, a, *tools) for a in architectures}


def _digest(*parts: str) -> str:
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()
