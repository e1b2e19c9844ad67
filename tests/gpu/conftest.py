"""Tests that need a GPU: `make gpu` runs them, `make test` does not. Without a GPU they fail, they are not skipped."""

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu.device import gpu_kernels, why_no_gpu


@pytest.fixture(scope="session")
def kernels() -> CudaKernels:
    """The GPU's."""
    reason = why_no_gpu()
    if reason is not None:
        pytest.fail(reason, pytrace=False)
    torch.set_grad_enabled(False)
    return gpu_kernels()
