"""Without a GPU, the whole CUDA path of the engine: its tokens are those of the CPU's.

The CUDA side computes in bfloat16 or float16 with the CUDA kernels' own sources, the CPU side in float32 with its
kernels, both over the same weights. That the tokens are the same is no luck: between the best two logits there is
always ten times what the log probabilities of the two sides differ by at most, and the tests say so.
"""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from numba_kernels import Kernels
from numba_kernels.cuda.kernels import CudaKernels
from serve_paged.core.outputs import EngineStats, TokenLogprobs
from serve_paged.core.sampling_params import MAX_LOGPROBS, SamplingParams
from serve_paged.engine import model_runner
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.kv_cache import BlockShape, KVCache
from serve_paged.engine.logprobs import LogprobsCopy
from serve_paged.engine.model_runner import EagerRunner
from serve_paged.model.config import ModelConfig
from tests.engine.lookback_model import FIRST_LAG, lookback_config, lookback_model, prompt_of
from tests.engine.simulated_gpu import cpu_engine, simulated_engine

NUM_TOP = 5


@dataclass(slots=True)
class Texts:
    """What an engine said, by request and choice."""

    token_ids: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    logprobs: dict[tuple[str, int], list[TokenLogprobs]] = field(default_factory=dict)

    def margin(self) -> float:
        """The smallest difference between a best logit and the next."""
        return min(token.top[0][1] - token.top[1][1] for tokens in self.logprobs.values() for token in tokens)

    def difference(self, other: "Texts") -> float:
        """The largest between log probabilities of the same token at the same place, for our best tokens.

        One that is not among their best has at most the log probability of the last of these.
        """
        found = [0.0]
        for key, tokens in self.logprobs.items():
            for ours, theirs in zip(tokens, other.logprobs[key], strict=True):
                known, last = dict(theirs.top), theirs.top[-1][1]
                found += [abs(logprob - known[i]) if i in known else logprob - last for i, logprob in ours.top]
        return max(found)


def greedy(max_tokens: int, n: int = 1) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, n=n, ignore_eos=True, logprobs=NUM_TOP)


def run(engine: Engine, requests: list[Request]) -> Texts:
    """All requests at once, until all have ended."""
    texts = Texts()
    for request in requests:
        engine.add(request)
    while engine.has_unfinished():
        for delta in engine.step():
            key = (delta.request_id, delta.choice)
            texts.token_ids.setdefault(key, []).extend(delta.token_ids)
            texts.logprobs.setdefault(key, []).extend(delta.logprobs)
        engine.scheduler.check()
    return texts


def assert_same(gpu: Texts, cpu: Texts) -> None:
    assert gpu.token_ids == cpu.token_ids
    difference = max(gpu.difference(cpu), cpu.difference(gpu))
    assert 0.0 < 10 * difference < min(gpu.margin(), cpu.margin())


MIX = [
    Request("forked", prompt_of(0, 40), greedy(12, n=2)),  # two chunks; the choices share a half-filled block
    Request("long", prompt_of(1, 27), greedy(32)),
    Request("prefix", prompt_of(0, 36), greedy(8)),  # of the first request's prompt
]
TIGHT: dict[str, Any] = {"num_blocks": 7, "max_num_seqs": 4, "max_num_batched_tokens": 24, "watermark": 0.0}


def engines(config: ModelConfig, dtype: torch.dtype, **settings: Any) -> tuple[Engine, Engine]:
    """The simulated GPU's and the CPU's."""
    return simulated_engine(config, dtype, **settings), cpu_engine(config, dtype, **settings)


def assert_everything_happened(engine: Engine) -> EngineStats:
    stats = engine.stats()
    assert stats.num_cached_tokens == 32  # prefix hits: two blocks
    assert engine.scheduler.stats.num_copied_blocks == 1  # copy-on-write
    assert max(len(request.prompt_token_ids) for request in MIX) > TIGHT["max_num_batched_tokens"]  # chunked prefill
    return stats


def test_with_forks_chunks_prefix_hits_and_preemption_by_swap() -> None:
    gpu, cpu = engines(lookback_config(), torch.bfloat16, **TIGHT, num_host_blocks=10, preemption="swap")
    assert_same(run(gpu, MIX), run(cpu, MIX))
    stats = assert_everything_happened(gpu)
    assert stats.num_preemptions_swap > 0
    assert stats.num_swapped_in_blocks > 0


@pytest.mark.slow
def test_the_same_over_a_cache_of_8_bits() -> None:
    """Against the CPU's float32: what 3 bits of mantissa change is still less than a tenth of the margins."""
    settings = {**TIGHT, "num_host_blocks": 10, "preemption": "swap"}
    gpu = simulated_engine(lookback_config(), torch.bfloat16, **settings, kv_cache_dtype="fp8")
    assert_same(run(gpu, MIX), run(cpu_engine(lookback_config(), torch.bfloat16, **settings), MIX))
    assert gpu._kv_cache.blocks.dtype == torch.float8_e4m3fn
    stats = assert_everything_happened(gpu)
    assert stats.num_preemptions_swap > 0
    assert stats.num_swapped_in_blocks > 0


@pytest.mark.slow
def test_with_preemption_by_recompute() -> None:
    gpu, cpu = engines(lookback_config(), torch.bfloat16, **TIGHT, preemption="recompute")
    assert_same(run(gpu, MIX), run(cpu, MIX))
    assert assert_everything_happened(gpu).num_preemptions_recompute > 0


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        pytest.param(lookback_config(vocab_size=97), torch.float16, id="float16 and an odd vocabulary"),
        # One token more, and layer 0 saw what it looks for.
        pytest.param(lookback_config(window=FIRST_LAG), torch.bfloat16, id="sliding window"),
        pytest.param(
            lookback_config(qk_norm=True), torch.bfloat16, id="norms of queries and keys", marks=pytest.mark.slow
        ),
    ],
)
def test_of_other_models(config: ModelConfig, dtype: torch.dtype) -> None:
    requests = [Request("a", prompt_of(2, 33), greedy(4)), Request("b", prompt_of(3, 26), greedy(4))]
    gpu, cpu = engines(config, dtype, num_blocks=10, max_num_seqs=2, max_num_batched_tokens=48)
    assert_same(run(gpu, requests), run(cpu, requests))


def test_over_a_cache_of_8_bits() -> None:
    """A prompt in two chunks, then captured decode steps."""
    settings: dict[str, Any] = {"num_blocks": 4, "max_num_seqs": 1, "max_num_batched_tokens": 20}
    requests = [Request("a", prompt_of(2, 26), greedy(4))]
    gpu = simulated_engine(lookback_config(), torch.bfloat16, **settings, kv_cache_dtype="fp8")
    assert_same(run(gpu, requests), run(cpu_engine(lookback_config(), torch.bfloat16, **settings), requests))
    assert gpu._kv_cache.blocks.dtype == torch.float8_e4m3fn
    assert gpu._kv_cache.block_bytes == gpu._kv_cache.blocks[0].numel()


def test_the_step_that_memory_is_measured_with_asks_for_all_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    # Here: the GPU's tests import this module, on machines that may not have what the simulator needs.
    from numba_kernels.cuda.simulated_launcher import SimulatedLauncher

    config, kernels, asked = lookback_config(), CudaKernels(SimulatedLauncher()), []

    def copying(logits: torch.Tensor, token_ids: torch.Tensor, num_top: list[int], kernels: Kernels) -> None:
        asked.append((logits.shape, LogprobsCopy(logits, token_ids, num_top, kernels).read()))

    monkeypatch.setattr(model_runner, "LogprobsCopy", copying)
    decoder = lookback_model(config, torch.bfloat16, kernels=kernels).decoder
    shape = BlockShape(config.num_layers, config.num_kv_heads, 16, config.head_dim)
    EagerRunner(decoder, KVCache(shape, torch.bfloat16, kernels, num_blocks=1, num_host_blocks=0)).run_largest(2, 5)
    [(shape_of_logits, found)] = asked
    assert shape_of_logits == (10, config.vocab_size)
    assert [len(token.top) for token in found] == [MAX_LOGPROBS] * 10
