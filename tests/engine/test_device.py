"""Where an engine may run, and with which numbers."""

import pytest
import torch

from numba_kernels import CpuKernels
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from serve_paged.config import EngineConfig
from serve_paged.engine.device import choose_dtype, choose_kernels, why_no_gpu


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch tells of one GPU, an H100."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    return monkeypatch


def test_a_gpu_of_enough_capability_is_used(a_gpu: pytest.MonkeyPatch) -> None:
    assert why_no_gpu() == ""


def test_a_torch_without_cuda_is_named(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.version, "cuda", None)
    with pytest.raises(ValueError, match=r"device: cuda is not possible: torch .* is built without CUDA"):
        choose_kernels("cuda")


def test_a_process_that_was_given_no_gpu_is_told_what_gives_it_one(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch sees no GPU .*num_gpus"):
        choose_kernels("cuda")


def test_a_gpu_that_is_too_old_is_named(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"NVIDIA H100 has compute capability 7\.5, and 8\.0 is needed"):
        choose_kernels("cuda")


def test_without_a_gpu_auto_is_the_cpu(a_gpu: pytest.MonkeyPatch) -> None:
    a_gpu.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_kernels("auto").device == torch.device("cpu")


def test_a_dtype_that_the_device_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="dtype: float16 is not possible on cpu; possible: float32, bfloat16"):
        choose_dtype("float16", CpuKernels())


def test_float32_is_refused_on_a_gpu_by_name() -> None:
    with pytest.raises(ValueError, match="dtype: float32 is not possible on cuda; possible: bfloat16, float16"):
        choose_dtype("float32", CudaKernels(SimulatedLauncher()))


def test_a_gpu_is_given_bfloat16_unless_told_otherwise() -> None:
    assert choose_dtype("auto", CudaKernels(SimulatedLauncher())) is torch.bfloat16


def test_a_step_of_more_tokens_than_a_gpu_s_grid_has_is_refused_by_the_setting_s_name() -> None:
    with pytest.raises(ValueError, match="max_num_batched_tokens must be at most 65535, got 65536"):
        EngineConfig(max_num_batched_tokens=65536)
