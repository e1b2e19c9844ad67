"""How many CPU threads the matrix products and the kernels use."""

import os

import torch

import numba_kernels


def use_threads(num_threads: int) -> None:
    """Set the number for the calling thread: both torch's OpenMP and Numba keep it per thread."""
    torch.set_num_threads(num_threads)
    numba_kernels.set_num_threads(num_threads)


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
