"""The GPU that the tests of this folder run on, and all kernels that they need there."""

import functools

from numba_kernels import kernels_for
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.rms_norm import ELEMENTS, RmsNormVariant, rms_norm_kernel
from numba_kernels.cuda.sample import sample_kernel
from numba_kernels.cuda.sample_row import SampleVariant
from numba_kernels.cuda.target import Kernel
from tests.gpu.probes import probe_kernels


def all_kernels() -> dict[str, Kernel]:
    """The catalogue, what the tests' own shapes need, and the probes: what `python -m tests.gpu.prebuild` compiles."""
    return catalog() | {kernel.name: kernel for kernel in kernels_of_other_shapes()} | probe_kernels()


def kernels_of_other_shapes() -> list[Kernel]:
    """What the checks and the tests' small model launch beside the catalogue's."""
    norms = [RmsNormVariant(w, e, r) for w in (64, 128, 576, 2048, 5120) for e in ELEMENTS for r in (False, True)]
    samples = [
        *(SampleVariant("f32", num_threads) for num_threads in (32, 256)),
        *(SampleVariant(e, num_threads) for e in ELEMENTS for num_threads in (32, 128)),
    ]
    return [*map(rms_norm_kernel, norms), *map(sample_kernel, samples)]


@functools.cache
def gpu_kernels() -> CudaKernels:
    """The operations of this machine's GPU. Raises RuntimeError in one line where there is none."""
    kernels = kernels_for("cuda")
    assert isinstance(kernels, CudaKernels)
    return kernels
