"""Where and when something was measured: what makes a figure worth keeping."""

import datetime
import importlib.metadata
import platform
import subprocess
import sys

import torch

_PACKAGES = ("torch", "numba", "numba-cuda", "triton", "flashinfer-python", "transformers", "numpy")


def environment() -> dict[str, object]:
    """Hardware, versions, date and command, for JSON."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": ["python", *sys.orig_argv[1:]],
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": _commit(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name)) is not None},
        "gpu": _gpu(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """None outside a repository, or where there is no git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None


def _gpu() -> dict[str, object] | None:
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "compute_capability": f"{found.major}.{found.minor}",
        "num_sms": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
        "driver": _driver(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None
