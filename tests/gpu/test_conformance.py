"""Every instruction of `ptx.py` on a GPU against its twin: what no simulator can show."""

import pytest

from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu.probes import disagreements, probes

pytestmark = pytest.mark.gpu

NUM_LANES = 1 << 14


@pytest.mark.parametrize("name", list(probes()))
def test_an_instruction_does_what_its_twin_does(kernels: CudaKernels, name: str) -> None:
    probe = probes()[name]
    if kernels.launcher.properties.compute_capability < probe.kernel.min_compute_capability:
        pytest.skip(f"this GPU does not have it: {probe.kernel.min_compute_capability} is needed")
    assert disagreements(kernels.launcher, probe, NUM_LANES, seed=0) == []
    assert disagreements(kernels.launcher, probe, NUM_LANES, seed=1) == []
