"""The real engine on a GPU that is not there: CUDA kernel sources in the simulator, graphs replayed step by step."""

from typing import Any

import torch

from numba_kernels import CpuKernels
from numba_kernels.cuda.kernels import CudaKernels
from serve_paged.config import EngineConfig
from serve_paged.engine.build import assemble_engine
from serve_paged.engine.engine import Engine
from serve_paged.engine.graphs import Graphs
from serve_paged.engine.kv_cache import GIB, BlockShape
from serve_paged.model.config import ModelConfig
from tests.engine.lookback_model import lookback_model


def simulated_engine(
    config: ModelConfig, dtype: torch.dtype, *, graphs: Graphs | None = None, **settings: Any
) -> Engine:
    """An engine on the simulated GPU over the lookback model; `graphs`: None for simulated ones."""
    # Here: a machine with a real GPU, where the rest is used too, may not have what the simulator needs.
    from serve_paged.engine.simulated_graphs import CapturableLauncher, SimulatedGraphs

    launcher = CapturableLauncher()
    model = lookback_model(config, dtype, kernels=CudaKernels(launcher))
    graphs = graphs or SimulatedGraphs(launcher)
    return assemble_engine(sized(config, dtype, **settings), model, dtype, graphs=graphs, run_ahead=True)


def cpu_engine(config: ModelConfig, exact_in: torch.dtype, **settings: Any) -> Engine:
    """An engine on the CPU in float32, over the same weights as a GPU's in `exact_in`."""
    model = lookback_model(config, torch.float32, kernels=CpuKernels(), exact_in=exact_in)
    return assemble_engine(sized(config, torch.float32, **settings), model, torch.float32)


def sized(
    config: ModelConfig, dtype: torch.dtype, *, num_blocks: int, num_host_blocks: int = 0, **settings: Any
) -> EngineConfig:
    """Settings with a cache of exactly so many blocks, the null block not counted."""
    shape = BlockShape(config.num_layers, config.num_kv_heads, 16, config.head_dim)
    cache_dtype = torch.float8_e4m3fn if settings.get("kv_cache_dtype") == "fp8" else dtype
    gib_per_block = shape.num_bytes(cache_dtype) / GIB
    return EngineConfig(
        kv_cache_gb=(num_blocks + 1.5) * gib_per_block,
        swap_space_gb=(num_host_blocks + 0.5) * gib_per_block if num_host_blocks else 0.0,
        threads=1,
        **settings,
    )
