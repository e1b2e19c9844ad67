"""Every kernel, compiled for three generations of GPU: no spills, wide loads, tensor cores, no float64.

Needs the CUDA compiler (`make install-cuda`); without it these tests fail, they are not skipped.
"""

import inspect

import pytest

from numba_kernels.cuda.build import Build, architectures_of
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.ptx_twins import PtxTwins
from tests.kernels_cuda.gate import gated_kernels, violations


@pytest.mark.parametrize("name", gated_kernels())
def test_every_kernel_is_clean_on_every_architecture(name: str, builds: dict[str, dict[str, Build]]) -> None:
    assert list(builds[name]) == architectures_of(gated_kernels()[name])
    for build in builds[name].values():
        assert violations(build) == [], build.architecture


def test_a_variant_is_one_object_whose_name_is_a_file_name() -> None:
    once, again = catalog(), catalog()
    assert all(again[name] is kernel and kernel.name == name for name, kernel in once.items())
    assert all(name.replace("-", "").isalnum() and name == name.lower() for name in once)


def test_every_twin_takes_what_its_instruction_takes() -> None:
    from numba_kernels.cuda import ptx  # needs numba-cuda

    for name in (name for name in vars(PtxTwins) if not name.startswith("_")):
        real = inspect.signature(getattr(ptx, name))
        twin = inspect.signature(getattr(PtxTwins, name))
        if not any(p.kind is p.VAR_POSITIONAL for p in twin.parameters.values()):
            assert len(real.parameters) == len(twin.parameters), name
