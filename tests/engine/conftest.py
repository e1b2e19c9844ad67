"""Engines over a real and over a tiny model, each loaded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from serve_paged.config import DEFAULT_MODEL, EngineConfig
from serve_paged.engine.build import assemble_engine
from serve_paged.engine.engine import Engine
from serve_paged.engine.kv_cache import GIB, BlockShape
from serve_paged.model.loader import LoadedModel, load_model

EngineFactory = Callable[..., Engine]


def engine_factory(model: LoadedModel, name: str) -> EngineFactory:
    """Builds engines over one loaded model; `num_blocks` and `num_host_blocks` size the cache exactly."""

    def build(
        *, num_blocks: int = 400, num_host_blocks: int = 100, run_ahead: bool | None = None, **settings: Any
    ) -> Engine:
        shape = BlockShape(
            model.config.num_layers, model.config.num_kv_heads, settings.get("block_size", 16), model.config.head_dim
        )
        gib_per_block = shape.num_bytes(torch.float32) / GIB
        config = EngineConfig(
            model=name,
            dtype="float32",
            kv_cache_gb=(num_blocks + 0.5) * gib_per_block,
            swap_space_gb=(num_host_blocks + 0.5) * gib_per_block if num_host_blocks else 0.0,
            **settings,
        )
        return assemble_engine(config, model, torch.float32, run_ahead=run_ahead)

    return build


@pytest.fixture(scope="session")
def real_engine() -> EngineFactory:
    """Engines over the default model in fp32."""
    return engine_factory(load_model(DEFAULT_MODEL, torch.float32), DEFAULT_MODEL)


@pytest.fixture(scope="session")
def tiny_engine(tiny_model_folder: Path) -> EngineFactory:
    """Engines over a tiny random model in fp32."""
    return engine_factory(load_model(str(tiny_model_folder), torch.float32), str(tiny_model_folder))
