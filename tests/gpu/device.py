"""The GPU that the tests of this folder run on, with kernels built beforehand or compiled here."""

import functools
from pathlib import Path

import torch

from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.gpu_launcher import open_gpu
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.prebuild import prebuild
from numba_kernels.cuda.prebuilt import MANIFEST, Prebuilt, read_prebuilt
from numba_kernels.cuda.target import Kernel
from tests.gpu.probes import probe_kernels

KERNELS = Path(__file__).parents[2] / "build" / "cuda-kernels"


def all_kernels() -> dict[str, Kernel]:
    """The product's, and the probes."""
    return catalog() | probe_kernels()


def why_no_gpu() -> str | None:
    """One line, or None if there is one."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: no GPU can be used"
    return None if torch.cuda.is_available() else "torch sees no GPU on this machine"


def images() -> Prebuilt:
    """What `make gpu-kernels` has put into `KERNELS`; built now if nothing is there. Raises ToolchainMissing."""
    if not (KERNELS / MANIFEST).is_file():
        prebuild(KERNELS, (), all_kernels)
    return read_prebuilt(KERNELS)


@functools.cache
def gpu_kernels() -> CudaKernels:
    """The operations of this machine's GPU. Raises RuntimeError in one line where there is none."""
    reason = why_no_gpu()
    if reason is not None:
        raise RuntimeError(reason)
    return CudaKernels(open_gpu(torch.device("cuda", 0), images()))
