"""Offline throughput and latency of the engine: all requests at once, no server in between."""

import os
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import numpy as np
from tqdm import tqdm

from serve_paged.bench.trace import TraceRequest
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.engine import Engine, Request

SHARE_SAMPLED_EVERY = 32  # steps: looking at every block takes milliseconds, and they would count as the engine's


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
    kv_slot_share: float  # of the slots in allocated blocks, the share that holds a token; mean over sampled steps
    load_average: float  # of the machine, at the end

    def as_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EngineRun:
    """The figures, and what was generated."""

    result: BenchResult
    outputs: list[list[int]]  # token ids, in the trace's order


def run_bench(engine: Engine, trace: list[TraceRequest], *, show_progress: bool = False) -> EngineRun:
    """Answer a trace greedily to its full output lengths, all requests added at the start."""
    before = engine.stats()
    start = time.perf_counter()
    for index, wanted in enumerate(trace):
        params = SamplingParams(temperature=0.0, max_tokens=wanted.num_output, ignore_eos=True)
        engine.add(Request(f"bench-{index}", wanted.prompt_token_ids, params))
    outputs: dict[str, list[int]] = {f"bench-{i}": [] for i in range(len(trace))}
    token_times: dict[str, list[float]] = {request_id: [] for request_id in outputs}
    shares: list[float] = []
    num_steps = 0
    total = sum(wanted.num_output for wanted in trace)
    with tqdm(total=total, unit="tok", disable=not show_progress) as progress:
        while engine.has_unfinished():
            deltas = engine.step()
            now = time.perf_counter()
            for delta in deltas:
                outputs[delta.request_id].extend(delta.token_ids)
                token_times[delta.request_id].extend([now] * len(delta.token_ids))
                progress.update(len(delta.token_ids))
            if not shares or num_steps % SHARE_SAMPLED_EVERY == 0:
                shares.extend(_slot_share(engine.scheduler.running, engine.block_size))
            num_steps += 1
    elapsed = time.perf_counter() - start
    after = engine.stats()
    num_prompt_tokens = sum(len(wanted.prompt_token_ids) for wanted in trace)
    result = BenchResult(
        num_requests=len(trace),
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=total,
        elapsed_s=elapsed,
        output_tokens_per_s=total / elapsed,
        total_tokens_per_s=(total + num_prompt_tokens) / elapsed,
        ttft_ms=_percentiles([times[0] - start for times in token_times.values()]),
        itl_ms=_percentiles([gap for times in token_times.values() for gap in np.diff(times)]),
        num_steps=after.num_steps - before.num_steps,
        num_preemptions=after.num_preemptions - before.num_preemptions,
        kv_slot_share=float(np.mean(shares)) if shares else 1.0,
        load_average=_load_average(),
    )
    return EngineRun(result, list(outputs.values()))


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
