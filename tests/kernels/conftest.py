"""Which attention paths this machine can run."""

import pytest

from numba_kernels.cpu.attention import AttentionPath, runs_here


@pytest.fixture(params=list(AttentionPath))
def path(request: pytest.FixtureRequest) -> AttentionPath:
    if not runs_here(request.param):
        pytest.skip(f"this processor has no instructions for {request.param}")
    return request.param
