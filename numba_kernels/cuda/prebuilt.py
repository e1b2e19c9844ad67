"""Kernels compiled beforehand, in a folder: what a machine without numba-cuda loads. Written by `prebuild.py`.

`kernels.json` lists them; NAME.ptx runs on any GPU that has the kernel's instructions, the driver compiles it;
NAME.sm_90.cubin is machine code for that one architecture. A kernel belongs to its source by a hash of it.
"""

import ast
import dataclasses
import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from numba_kernels.cuda.target import Kernel

MANIFEST = "kernels.json"
_FORMAT = 1
_ROOT = Path(__file__).parents[2]
_COMPILER = "numba_kernels.cuda.compiled"  # with what it imports: the instructions


class StalePrebuilt(Exception):
    """A prebuilt kernel is missing, or was made from another source: build the folder again."""


@dataclass(frozen=True, slots=True)
class PrebuiltKernel:
    """One entry of the manifest."""

    name: str
    entry: str  # the function's symbol
    num_threads: int  # the most threads of a block
    dynamic_shared_bytes: int
    argument_types: tuple[str, ...]  # names of Target's types, in the order of the parameters
    min_compute_capability: tuple[int, int]
    source_hash: str  # see `source_hash`
    ptx: str  # file name
    cubins: dict[str, str]  # architecture, such as "sm_90": file name


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """A folder of kernels."""

    folder: Path
    compiler: dict[str, str]  # versions of what made them
    kernels: dict[str, PrebuiltKernel]  # by name

    def find(self, kernel: Kernel) -> PrebuiltKernel:
        """The entry of this kernel. Raises StalePrebuilt if there is none of the same source."""
        found = self.kernels.get(kernel.name)
        if found is None or found.source_hash != source_hash(kernel):
            state = "is missing" if found is None else "was made from another source"
            raise StalePrebuilt(f"{kernel.name} {state} in {self.folder}: python -m numba_kernels.cuda.prebuild")
        return found

    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        """What `cuModuleLoadData` takes: machine code for this very GPU if it is here, else PTX, 0-terminated.

        Raises StalePrebuilt, and ValueError if the GPU is older than the kernel's instructions.
        """
        found = self.find(kernel)
        if compute_capability < found.min_compute_capability:
            raise ValueError(f"{kernel.name} needs compute capability {found.min_compute_capability}")
        cubin = found.cubins.get(architecture_name(compute_capability))
        return (self.folder / cubin).read_bytes() if cubin else (self.folder / found.ptx).read_bytes() + b"\0"


def architecture_name(compute_capability: tuple[int, int]) -> str:
    """sm_90 for (9, 0)."""
    major, minor = compute_capability
    return f"sm_{major}{minor}"


def read_prebuilt(folder: Path) -> Prebuilt:
    """The manifest of a folder. Raises FileNotFoundError, and ValueError for a format that this version cannot read."""
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != _FORMAT:
        raise ValueError(f"{folder / MANIFEST} has format {manifest['format']}, not {_FORMAT}")
    kernels = {entry["name"]: _entry(entry) for entry in manifest["kernels"]}
    return Prebuilt(folder, manifest["compiler"], kernels)


def _entry(entry: dict[str, object]) -> PrebuiltKernel:
    pairs = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    return PrebuiltKernel(**pairs)  # type: ignore[arg-type]


def write_manifest(folder: Path, compiler: dict[str, str], kernels: list[PrebuiltKernel]) -> None:
    """Write `kernels.json`."""
    entries = [dataclasses.asdict(kernel) for kernel in kernels]
    text = json.dumps({"format": _FORMAT, "compiler": compiler, "kernels": entries}, indent=1)
    (folder / MANIFEST).write_text(text + "\n")


def source_hash(kernel: Kernel) -> str:
    """Of everything in this package that decides what the kernel's PTX is; the compiler's version is not in it.

    That is its module with all that it imports from here, the instructions, and what the compiler is told.
    """
    told = (kernel.name, kernel.argument_types, kernel.num_threads, kernel.min_blocks_per_sm)
    digest = hashlib.blake2b(repr((told, kernel.min_compute_capability)).encode(), digest_size=16)
    make = kernel.make.func if isinstance(kernel.make, functools.partial) else kernel.make
    for module in sorted(_with_imports(make.__module__) | _with_imports(_COMPILER)):
        digest.update(module.encode() + b"\0" + _source(module) + b"\0")
    return digest.hexdigest()


def _file(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


@functools.cache
def _source(module: str) -> bytes:
    return _file(module).read_bytes()


@functools.cache
def _with_imports(module: str) -> frozenset[str]:
    """The module and what it imports, directly or not, of its own package and of this one."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _imported(name)
    return frozenset(found)


@functools.cache
def _imported(module: str) -> tuple[str, ...]:
    packages = (module.partition(".")[0] + ".", "numba_kernels.")
    froms = [node for node in ast.walk(ast.parse(_source(module))) if isinstance(node, ast.ImportFrom)]
    names = [name for node in froms for name in (node.module, *(f"{node.module}.{a.name}" for a in node.names)) if name]
    return tuple(name for name in names if name.startswith(packages) and _file(name).is_file())
