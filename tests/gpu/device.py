"""The GPU that the tests of this folder run on, and all kernels that they need there."""

import functools

from numba_kernels import kernels_for
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.target import Kernel
from tests.gpu.probes import probe_kernels


def all_kernels() -> dict[str, Kernel]:
    """The product's, and the probes: what `python -m tests.gpu prebuild` compiles."""
    return catalog() | probe_kernels()


@functools.cache
def gpu_kernels() -> CudaKernels:
    """The operations of this machine's GPU. Raises RuntimeError in one line where there is none."""
    kernels = kernels_for("cuda")
    assert isinstance(kernels, CudaKernels)
    return kernels
