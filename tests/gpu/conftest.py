"""Tests that need a GPU: `make gpu` runs them, `make test` does not. Without a GPU they fail, they are not skipped."""

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu.device import gpu_kernels


@pytest.fixture(scope="session")
def kernels() -> CudaKernels:
    """The GPU's."""
    try:
        found = gpu_kernels()
    except RuntimeError as missing:
        pytest.fail(f"no GPU for a test that needs one: {missing}", pytrace=False)
    torch.set_grad_enabled(False)
    return found


@pytest.fixture
def e4m3_kernels(kernels: CudaKernels) -> CudaKernels:
    """The same, where it takes a cache of 8-bit numbers."""
    if torch.float8_e4m3fn not in kernels.quantised_dtypes:
        pytest.skip("this GPU is too old for a cache of 8-bit numbers, and the product refuses one")
    return kernels
