"""Kernels are compiled once: a second process loads them from disk, unless a source they depend on has changed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import prange

import numba_kernels
from numba_kernels.cpu.jit import f32_ptr, i64_ptr, kernel

SCRIPT = """
import torch
from numba_kernels import rms_norm
rms_norm(torch.ones(2, 16), torch.ones(16), 1e-5)
rms_norm(torch.ones(8192, 16), torch.ones(16), 1e-5)
"""


def cache_events(package_parent: Path, cache: Path) -> list[str]:
    """What Numba says about its cache ("data saved", "data loaded") when a new process runs two kernels."""
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(cache),
        "NUMBA_DEBUG_CACHE": "1",
        "PYTHONPATH": str(package_parent),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        cwd=package_parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [line for line in done.stdout.splitlines() if "[cache] data" in line]


def test_a_second_process_loads_kernels_until_a_helper_they_inline_changes(tmp_path: Path) -> None:
    package = tmp_path / "numba_kernels"
    shutil.copytree(Path(numba_kernels.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    cache = tmp_path / "cache"
    first = cache_events(tmp_path, cache)
    assert len(first) == 2  # the serial and the parallel variant
    assert all("data saved" in event for event in first)

    second = cache_events(tmp_path, cache)
    assert len(second) == 2
    assert all("data loaded" in event for event in second)

    helper = package / "cpu" / "scalar.py"
    helper.write_text(helper.read_text() + "\n# changed\n")
    third = cache_events(tmp_path, cache)
    assert [event for event in third if "data loaded" in event] == []


def test_closing_over_another_compiled_function_is_refused() -> None:
    def factory(pointer: object) -> object:
        @kernel()
        def read(address: int) -> float:
            return pointer(address)[0]

        return read

    with pytest.raises(TypeError, match="disk cache"):
        factory(f32_ptr)


def test_variants_of_one_function_have_names_of_their_own() -> None:
    def factory(value: int, parallel: bool) -> str:
        @kernel(parallel=parallel)
        def add(x: int) -> int:
            return x + value

        return add.py_func.__qualname__

    names = {factory(value, parallel) for value in (1, 2) for parallel in (False, True)}
    assert len(names) == 4


def test_a_parallel_kernel_reads_through_raw_addresses() -> None:
    @kernel(parallel=True)
    def total(address: int, count: int) -> int:
        result = 0
        for i in prange(count):
            result += i64_ptr(address)[i]
        return result

    numbers = np.arange(1000, dtype=np.int64)
    assert total(numbers.ctypes.data, 1000) == 499_500
