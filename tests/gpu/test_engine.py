"""The whole engine on a GPU: captured decode steps, preemption and swap, its tokens those of the CPU's float32."""

from typing import Any

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from serve_paged.engine.build import assemble_engine
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.graphs import CudaGraphs
from serve_paged.model.config import ModelConfig
from tests.engine.lookback_model import FIRST_LAG, lookback_config, lookback_model, prompt_of
from tests.engine.simulated_gpu import cpu_engine, sized
from tests.engine.test_simulated_gpu import MIX, TIGHT, assert_same, greedy, run

pytestmark = pytest.mark.gpu


LLAMA = lookback_config()


def gpu_engine(
    kernels: CudaKernels, dtype: torch.dtype, *, config: ModelConfig = LLAMA, captured: bool = True, **settings: Any
) -> Engine:
    """Over the lookback model."""
    model = lookback_model(config, dtype, kernels=kernels)
    graphs = CudaGraphs(kernels.device) if captured else None
    return assemble_engine(sized(config, dtype, **settings), model, dtype, graphs=graphs)


@pytest.mark.parametrize("captured", [True, False], ids=["graphs", "eager"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
def test_its_tokens_are_those_of_the_cpu(kernels: CudaKernels, dtype: torch.dtype, captured: bool) -> None:
    settings = {**TIGHT, "num_host_blocks": 10, "preemption": "swap"}
    gpu = gpu_engine(kernels, dtype, captured=captured, **settings)
    assert_same(run(gpu, MIX), run(cpu_engine(lookback_config(), dtype, **settings), MIX))
    assert gpu.stats().num_preemptions_swap > 0


def test_over_a_cache_of_8_bits_too(e4m3_kernels: CudaKernels) -> None:
    settings = {**TIGHT, "num_host_blocks": 10, "preemption": "swap"}
    gpu = gpu_engine(e4m3_kernels, torch.bfloat16, **settings, kv_cache_dtype="fp8")
    assert_same(run(gpu, MIX), run(cpu_engine(lookback_config(), torch.bfloat16, **settings), MIX))
    assert gpu.stats().num_preemptions_swap > 0


def test_a_captured_step_gives_the_bits_of_an_eager_one(kernels: CudaKernels) -> None:
    """Four sequences of one length: the bucket is full, and both ways run the same matrix products."""
    requests = [Request(f"request {i}", prompt_of(i, 30), greedy(24)) for i in range(4)]
    settings: dict[str, Any] = {"num_blocks": 40, "max_num_seqs": 4, "max_num_batched_tokens": 128}
    captured, eager = (
        run(gpu_engine(kernels, torch.bfloat16, captured=c, **settings), requests) for c in (True, False)
    )
    assert captured.token_ids == eager.token_ids
    assert captured.difference(eager) == 0.0


@pytest.mark.parametrize(
    "config",
    [lookback_config(window=FIRST_LAG), lookback_config(qk_norm=True)],
    ids=["sliding window", "norms of queries and keys"],
)
def test_of_other_models_too(kernels: CudaKernels, config: ModelConfig) -> None:
    requests = [Request("a", prompt_of(2, 33), greedy(24)), Request("b", prompt_of(3, 26), greedy(24))]
    settings: dict[str, Any] = {"num_blocks": 10, "max_num_seqs": 2, "max_num_batched_tokens": 48}
    gpu = gpu_engine(kernels, torch.bfloat16, config=config, **settings)
    assert_same(run(gpu, requests), run(cpu_engine(config, torch.bfloat16, **settings), requests))
