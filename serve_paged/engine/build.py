"""From settings to a running engine: load the model, size the KV cache, wire the parts together."""

import logging
import os
from collections.abc import Callable

import torch

from serve_paged.config import EngineConfig
from serve_paged.core.block_pool import BlockPool
from serve_paged.core.preemption import PreemptionCosts
from serve_paged.core.scheduler import Scheduler
from serve_paged.engine.device import choose_cache_dtype, choose_dtype, choose_kernels, runs_behind
from serve_paged.engine.engine import Engine
from serve_paged.engine.gpu_memory import TorchGauge, bytes_for_blocks
from serve_paged.engine.graphs import CudaGraphs, Graphs
from serve_paged.engine.kv_cache import GIB, BlockShape, KVCache
from serve_paged.engine.model_runner import EagerRunner, ModelRunner
from serve_paged.engine.sampler import Sampler
from serve_paged.engine.text import TextModel
from serve_paged.engine.threads import usable_cores, use_threads
from serve_paged.model.decoder import Decoder
from serve_paged.model.loader import LoadedModel, load_model
from serve_paged.model.tokenizer import load_chat_template, load_tokenizer, number_tokenizer

logger = logging.getLogger(__name__)

CPU_KV_CACHE_GB = 1.0  # a default: the CPU's memory belongs to others too


def build_engine(config: EngineConfig, *, load: Callable[..., LoadedModel] = load_model) -> Engine:
    """Load the model that `config` names and return an engine that is warm: every kernel compiled.

    `load` takes what `load_model` takes.
    Raises `ValueError` when the model is unknown or unsupported, or the KV cache cannot hold `max_model_len` tokens.
    """
    use_threads(config.threads or usable_cores())
    kernels = choose_kernels(config.device)
    dtype = choose_dtype(config.dtype, kernels)
    choose_cache_dtype(config.kv_cache_dtype, dtype, kernels)  # what is not possible is refused before weights are read
    graphs = CudaGraphs(kernels.device) if kernels.device.type == "cuda" else None
    return assemble_engine(config, load(config.model, dtype, kernels=kernels), dtype, graphs=graphs)


def assemble_engine(
    config: EngineConfig,
    model: LoadedModel,
    dtype: torch.dtype,
    *,
    graphs: Graphs | None = None,
    run_ahead: bool | None = None,
) -> Engine:
    """The same over a model that is loaded already, in a thread whose `use_threads` was called.

    `graphs` captures decode steps; without, every step is run operation by operation.
    `run_ahead`: launch each step before the tokens of the one before it are read (engine.py). None: on a GPU, also on
    a simulated one.
    """
    shape = BlockShape(model.config.num_layers, model.config.num_kv_heads, config.block_size, model.config.head_dim)
    cache_dtype = choose_cache_dtype(config.kv_cache_dtype, dtype, model.decoder.kernels)
    num_blocks = shape.num_blocks_in(choose_kv_cache_gb(config, model.decoder, shape, cache_dtype), cache_dtype)
    max_model_len = fit_context(config.max_model_len, model.config.max_position_embeddings, num_blocks, shape)
    kv_cache = KVCache(
        shape,
        cache_dtype,
        model.decoder.kernels,
        num_blocks=num_blocks,
        num_host_blocks=shape.num_blocks_in(config.swap_space_gb, cache_dtype),
    )
    runner = build_runner(config, model.decoder, kv_cache, graphs, max_model_len)
    text_model = describe_text(config, model, kv_numbers(dtype, cache_dtype))
    sampler = Sampler(text_model.vocab_size, text_model.eos_token_ids, model.decoder.kernels)
    sampler.warm_up()
    costs = PreemptionCosts()
    return Engine(
        text_model,
        build_scheduler(config, kv_cache, costs),
        kv_cache,
        runner,
        sampler,
        costs,
        model.decoder.kernels,
        max_model_len=max_model_len,
        num_threads=config.threads or usable_cores(),
        run_ahead=runs_behind(model.decoder.kernels) if run_ahead is None else run_ahead,
    )


def build_runner(
    config: EngineConfig, decoder: Decoder, kv_cache: KVCache, graphs: Graphs | None, max_model_len: int
) -> ModelRunner:
    """A runner that is warm."""
    eager = EagerRunner(decoder, kv_cache)
    prefill = (1, min(config.max_num_batched_tokens, max_model_len))
    if graphs is None:
        eager.warm_up((2, 1), (32, 1), prefill)
        return eager
    eager.warm_up(prefill)
    # Here, so that on a CPU nothing of CUDA is imported.
    from serve_paged.engine.cuda_runner import CudaRunner

    return CudaRunner(eager, decoder, kv_cache, graphs, max_num_seqs=config.max_num_seqs, max_model_len=max_model_len)


def choose_kv_cache_gb(config: EngineConfig, decoder: Decoder, shape: BlockShape, dtype: torch.dtype) -> float:
    """GiB for KV blocks: what is asked for; else on a GPU what the largest steps leave, on the CPU a fixed amount."""
    if config.kv_cache_gb is not None:
        return config.kv_cache_gb
    kernels = decoder.kernels
    if kernels.device.type != "cuda":
        return CPU_KV_CACHE_GB
    runner = EagerRunner(decoder, KVCache(shape, dtype, kernels, num_blocks=1, num_host_blocks=0))
    length = min(config.max_num_batched_tokens, decoder.max_positions)
    room = bytes_for_blocks(
        TorchGauge(kernels.device),
        config.gpu_memory_utilization,
        largest_step=lambda: runner.run_largest(-(-config.max_num_batched_tokens // length), length),
        largest_graph=lambda: runner.run_largest(config.max_num_seqs, 1),
    )
    return room / GIB


def fit_context(wanted: int | None, of_model: int, num_blocks: int, shape: BlockShape) -> int:
    """The context length in tokens: what was asked for, or as much of the model's as the KV cache holds."""
    capacity = (num_blocks - 1) * shape.block_size  # block 0 is the null block
    if wanted is not None:
        if wanted > of_model:
            raise ValueError(f"max_model_len={wanted} exceeds the model's context of {of_model} tokens")
        if wanted > capacity:
            raise ValueError(
                f"max_model_len={wanted} does not fit: kv_cache_gb holds {max(capacity, 0)} tokens; raise kv_cache_gb"
            )
        return wanted
    if capacity < shape.block_size:
        raise ValueError("kv_cache_gb is too small for a single block")
    if capacity < of_model:
        logger.warning("kv_cache_gb holds %d tokens: the context is cut from %d to that", capacity, of_model)
    return min(of_model, capacity)


def build_scheduler(config: EngineConfig, kv_cache: KVCache, costs: PreemptionCosts) -> Scheduler:
    """A scheduler over a pool that has one block for each row of the cache."""
    pool = BlockPool(kv_cache.blocks.shape[0], kv_cache.host_blocks.shape[0])
    return Scheduler(
        pool,
        costs=costs,
        preemption=config.preemption,
        block_size=config.block_size,
        max_num_seqs=config.max_num_seqs,
        max_num_batched_tokens=config.max_num_batched_tokens,
        watermark=config.watermark,
        prefix_caching=config.prefix_caching,
        ageing_s=config.ageing_s,
    )


def kv_numbers(dtype: torch.dtype, cache_dtype: torch.dtype) -> str:
    """What tells apart caches of the same model that hold different numbers: how they are computed and stored."""
    computed, stored = (str(x).removeprefix("torch.") for x in (dtype, cache_dtype))
    return computed if computed == stored else f"{stored} of {computed}"


def describe_text(config: EngineConfig, model: LoadedModel, kv_dtype: str) -> TextModel:
    """The text side of what was loaded; a model without files gets a vocabulary of numbers."""
    folder = model.folder
    return TextModel(
        name=config.served_model_name or os.path.basename(config.model.rstrip("/")),
        folder="" if folder is None else str(folder),
        tokenizer=number_tokenizer(model.config.vocab_size) if folder is None else load_tokenizer(folder),
        chat_template=None if folder is None else load_chat_template(folder),
        vocab_size=model.config.vocab_size,
        eos_token_ids=model.config.eos_token_ids,
        fingerprint=model.fingerprint,
        kv_dtype=kv_dtype,
    )
