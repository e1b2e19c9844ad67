"""NVIDIA's assembler and disassembler, from packages or an installed toolkit. They need no GPU."""

import functools
import importlib.util
import re
import shutil
import subprocess
from pathlib import Path


class ToolchainMissing(Exception):
    """numba-cuda, ptxas or nvdisasm is not installed: `make install-cuda` installs them."""


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
        raise ToolchainMissing(f"{name} is in no package of NVIDIA's and not on PATH: run `make install-cuda`")
    return found


@functools.cache
def tool_version(name: str) -> str:
    """Such as "V13.0.88"."""
    said = run_tool(name, "--version")
    found = re.search(r"V[\d.]+", said)
    if found is None:
        raise ValueError(f"{name} --version says {said!r}")
    return found[0]


def assemble(ptx: Path, architecture: str, cubin: Path) -> str:
    """Make machine code for an architecture such as "sm_90"; returns what ptxas reports of it."""
    return run_tool("ptxas", f"-arch={architecture}", "-v", str(ptx), "-o", str(cubin))


def disassemble(cubin: Path) -> str:
    """Machine code as text, with labels. Without an analysis of dataflow, which takes a quarter of the time."""
    return run_tool("nvdisasm", "-c", "--no-dataflow", str(cubin))


def run_tool(name: str, *arguments: str) -> str:
    """What the tool prints. Raises ToolchainMissing, and RuntimeError with its message if it fails."""
    done = subprocess.run([tool(name), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {done.stderr[:2000]}")
    return done.stderr + done.stdout
