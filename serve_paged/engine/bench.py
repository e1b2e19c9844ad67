"""Offline throughput and latency of the engine: all requests at once, no server in between."""

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.engine import Engine, Request

# Lengths in tokens of ShareGPT's first turns as vLLM's benchmark filters them: lognormal (mu, sigma) and cuts.
SHAREGPT_INPUT = (4.54, 1.58)
SHAREGPT_OUTPUT = (4.55, 1.50)
SHAREGPT_MAX_INPUT = 1024
SHAREGPT_MAX_TOTAL = 2048


@dataclass(frozen=True, slots=True)
class Percentiles:
    """Milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What one run measured. Times include prefill."""

    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    elapsed_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Percentiles
    itl_ms: Percentiles
    num_steps: int
    num_preemptions: int
    kv_slot_share: float  # of the slots in allocated blocks, the share that holds a token; mean over steps
    load_average: float  # of the machine, at the end

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one request."""

    num_input: int
    num_output: int


def fixed_lengths(num_requests: int, num_input: int, num_output: int) -> list[Lengths]:
    """All requests alike."""
    return [Lengths(num_input, num_output)] * num_requests


def sharegpt_lengths(num_requests: int, max_model_len: int, seed: int = 0) -> list[Lengths]:
    """Lengths drawn like ShareGPT's, cut as vLLM's benchmark cuts them and to the context."""
    rng = np.random.default_rng(seed)
    total = min(SHAREGPT_MAX_TOTAL, max_model_len)
    inputs = np.clip(rng.lognormal(*SHAREGPT_INPUT, num_requests), 4, min(SHAREGPT_MAX_INPUT, total // 2)).astype(int)
    outputs = np.clip(rng.lognormal(*SHAREGPT_OUTPUT, num_requests), 4, None).astype(int)
    return [Lengths(int(i), int(min(o, total - i))) for i, o in zip(inputs, outputs, strict=True)]


def run_bench(engine: Engine, lengths: list[Lengths], *, seed: int = 0, show_progress: bool = False) -> BenchResult:
    """Serve random prompts of these lengths greedily to their full output length, all added at the start."""
    rng = np.random.default_rng(seed)
    before = engine.stats()
    start = time.perf_counter()
    for index, length in enumerate(lengths):
        prompt = rng.integers(0, engine.text_model.vocab_size, length.num_input).tolist()
        params = SamplingParams(temperature=0.0, max_tokens=length.num_output, ignore_eos=True)
        engine.add(Request(f"bench-{index}", prompt, params))
    token_times: dict[str, list[float]] = {f"bench-{i}": [] for i in range(len(lengths))}
    shares: list[float] = []
    total = sum(length.num_output for length in lengths)
    with tqdm(total=total, unit="tok", disable=not show_progress) as progress:
        while engine.has_unfinished():
            deltas = engine.step()
            now = time.perf_counter()
            for delta in deltas:
                token_times[delta.request_id].append(now)
            shares.extend(_slot_share(engine.scheduler.running, engine.block_size))
            progress.update(len(deltas))
    elapsed = time.perf_counter() - start
    after = engine.stats()
    return BenchResult(
        num_requests=len(lengths),
        num_prompt_tokens=sum(length.num_input for length in lengths),
        num_output_tokens=total,
        elapsed_s=elapsed,
        output_tokens_per_s=total / elapsed,
        total_tokens_per_s=(total + sum(length.num_input for length in lengths)) / elapsed,
        ttft_ms=_percentiles([times[0] - start for times in token_times.values()]),
        itl_ms=_percentiles([gap for times in token_times.values() for gap in np.diff(times)]),
        num_steps=after.num_steps - before.num_steps,
        num_preemptions=after.num_preemptions - before.num_preemptions,
        kv_slot_share=float(np.mean(shares)) if shares else 1.0,
        load_average=_load_average(),
    )


def _slot_share(running: Iterable[Sequence], block_size: int) -> list[float]:
    """Share of slots in use over distinct blocks; nothing while no block is allocated."""
    filled: dict[int, int] = {}
    for seq in running:
        for index, block in enumerate(seq.block_table):
            tokens = min(max(seq.num_computed_tokens - index * block_size, 0), block_size)
            filled[block] = max(filled.get(block, 0), tokens)
    return [sum(filled.values()) / (len(filled) * block_size)] if filled else []


def _percentiles(seconds: list[float]) -> Percentiles:
    if not seconds:
        return Percentiles(0.0, 0.0, 0.0, 0.0)
    values = np.asarray(seconds) * 1e3
    p50, p90, p99 = np.percentile(values, [50, 90, 99])
    return Percentiles(float(values.mean()), float(p50), float(p90), float(p99))


def _load_average() -> float:
    return os.getloadavg()[0]
