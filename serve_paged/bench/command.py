"""`python -m serve_paged bench`: from its options to a comparison."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from serve_paged.bench.comparison import Comparison, compare
from serve_paged.bench.rivals import RIVALS, Limits, random_transformers_model, stored_transformers_model
from serve_paged.bench.trace import TraceRequest, fixed_lengths, random_trace, sharegpt_lengths
from serve_paged.config import EngineConfig
from serve_paged.engine.build import build_engine
from serve_paged.engine.engine import Engine
from serve_paged.model.loader import load_model
from serve_paged.model.random_weights import load_random
from serve_paged.model.source import model_folder


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """The command's options, by the same names."""

    model: str
    random_weights: str | None
    num_layers: int | None
    dtype: str
    device: str
    threads: int | None
    num_requests: int
    input_len: int
    output_len: int
    lengths: str
    seed: int
    max_model_len: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    kv_cache_dtype: str
    kv_cache_gb: float | None
    vs: tuple[str, ...]
    static_batch_size: int
    vs_limit_s: float

    @property
    def rivals(self) -> list[str]:
        """In the order of `RIVALS`, each once."""
        return [name for name in RIVALS if name in self.vs or "transformers" in self.vs]

    def trace(self, engine: Engine) -> list[TraceRequest]:
        """The requests, within the engine's context and vocabulary."""
        if self.lengths == "sharegpt":
            lengths = sharegpt_lengths(self.num_requests, engine.max_model_len, self.seed)
        else:
            lengths = fixed_lengths(self.num_requests, self.input_len, self.output_len)
        return random_trace(lengths, engine.text_model.vocab_size, self.seed)


@dataclass(slots=True)
class _Models:
    """Makes our model and transformers' from the same weights, in the dtype and on the device that ours came to."""

    options: BenchOptions
    dtype: torch.dtype | None = None
    device: torch.device | None = None

    def load(self, name: str, dtype: torch.dtype, **where: Any) -> Any:
        """What `build_engine` loads by."""
        options = self.options
        if options.random_weights is None:
            loaded = load_model(name, dtype, **where)
        else:
            loaded = load_random(name, dtype, **where, num_layers=options.num_layers, seed=options.seed)
        self.dtype, self.device = loaded.decoder.dtype, loaded.decoder.kernels.device
        return loaded

    def rival(self) -> Any:
        """transformers' model; our engine was built before."""
        options = self.options
        assert self.dtype is not None
        assert self.device is not None
        if options.random_weights is None:
            return stored_transformers_model(str(model_folder(options.model)), self.dtype, self.device)
        return random_transformers_model(
            options.random_weights, self.dtype, self.device, num_layers=options.num_layers, seed=options.seed
        )


def run(options: BenchOptions, *, show_progress: bool) -> Comparison:
    """Measure. Raises ValueError for settings that do not fit, `InvalidRequest` among them."""
    if options.num_layers is not None and options.random_weights is None:
        raise ValueError("--num-layers is for --random-weights: a stored model has the layers it has")
    models = _Models(options)
    config = EngineConfig(
        model=options.random_weights or options.model,
        dtype=options.dtype,  # type: ignore[arg-type]
        device=options.device,  # type: ignore[arg-type]
        threads=options.threads,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        kv_cache_dtype=options.kv_cache_dtype,  # type: ignore[arg-type]
        kv_cache_gb=options.kv_cache_gb,
    )
    make_engine: Callable[[], Engine] = partial(build_engine, config, load=models.load)
    limits = Limits(options.static_batch_size, options.vs_limit_s)
    return compare(make_engine, options.trace, models.rival, options.rivals, limits, show_progress=show_progress)
