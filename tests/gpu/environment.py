"""Prints what this machine is: `python -m tests.gpu.environment`."""

import importlib.metadata
import json
import shutil

from numba_kernels.bench.environment import environment
from numba_kernels.cuda.images import PREBUILT_FOLDER, has_compiler
from numba_kernels.cuda.prebuilt import MANIFEST, read_prebuilt

TOOLS = ("nvidia-smi", "nvcc", "ptxas", "compute-sanitizer", "ncu", "cuobjdump", "nvdisasm")
PACKAGES = ("llvmlite", "tokenizers", "safetensors", "click", "pytest", "greenlet", "ray", "cuda-bindings", "ninja")


def main() -> None:
    """As JSON."""
    report = environment()
    report["tools"] = {tool: shutil.which(tool) for tool in TOOLS}
    report["other_packages"] = {name: _version(name) for name in PACKAGES}
    report["has_compiler"] = has_compiler()
    if (PREBUILT_FOLDER / MANIFEST).is_file():
        prebuilt = read_prebuilt(PREBUILT_FOLDER)
        report["prebuilt"] = {"num_kernels": len(prebuilt.kernels), "compiler": prebuilt.compiler}
    print(json.dumps(report, indent=1))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
