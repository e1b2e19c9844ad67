"""The compiled kernels, made once for all tests and kept between runs."""

import pytest

from numba_kernels.cuda.build import Build, build_all
from tests.kernels_cuda.gate import gated_kernels


@pytest.fixture(scope="session")
def builds(pytestconfig: pytest.Config) -> dict[str, dict[str, Build]]:
    """By name and architecture. Without the CUDA compiler this is an error, not a skip: ToolchainMissing."""
    return build_all(gated_kernels, pytestconfig.cache.mkdir("cuda-builds"))
