"""Where an engine may run, and with which numbers."""

import pytest
import torch

from numba_kernels import CpuKernels, Kernels
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.launcher import DeviceProperties
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from serve_paged.config import EngineConfig
from serve_paged.core.block_hash import root_hash
from serve_paged.engine.build import build_engine, kv_numbers
from serve_paged.engine.device import choose_cache_dtype, choose_dtype, choose_kernels, why_no_gpu


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


def test_a_cache_is_of_the_weights_dtype_unless_told_otherwise() -> None:
    assert choose_cache_dtype("auto", torch.float16, CudaKernels(SimulatedLauncher())) is torch.float16
    assert choose_cache_dtype("fp8", torch.float16, CudaKernels(SimulatedLauncher())) is torch.float8_e4m3fn


@pytest.mark.parametrize(
    "kernels",
    [CpuKernels(), CudaKernels(SimulatedLauncher(properties=DeviceProperties(108, (8, 0))))],
    ids=["cpu", "A100"],
)
def test_a_cache_of_8_bits_is_refused_by_name_where_there_are_no_kernels(kernels: Kernels) -> None:
    with pytest.raises(ValueError, match=rf"kv_cache_dtype: fp8 is not possible on {kernels.name}: .* 8\.9 is needed"):
        choose_cache_dtype("fp8", torch.bfloat16, kernels)


def test_it_is_refused_before_weights_are_read() -> None:
    def load(*_arguments: object, **_options: object) -> None:
        raise AssertionError("weights were read")

    with pytest.raises(ValueError, match="kv_cache_dtype: fp8 is not possible on cpu"):
        build_engine(EngineConfig(device="cpu", kv_cache_dtype="fp8"), load=load)  # type: ignore[arg-type]


def test_caches_of_other_numbers_share_no_hashes() -> None:
    bf16, f16, e4m3 = torch.bfloat16, torch.float16, torch.float8_e4m3fn
    kinds = [kv_numbers(*dtypes) for dtypes in ((bf16, bf16), (f16, f16), (bf16, e4m3), (f16, e4m3))]
    assert kinds[0] == "bfloat16"
    assert len({root_hash("weights", kind, 16) for kind in kinds}) == len(kinds)
