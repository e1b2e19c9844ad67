"""fp32 greedy output is token-identical to transformers, however the engine gets there.

Proof by one forward pass per prompt: if transformers' most likely token after prompt + output[:t] is output[t] for
every t, its own greedy output is `output`.
"""

from functools import cache
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from serve_paged.config import DEFAULT_MODEL
from serve_paged.core.outputs import EngineStats
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.offline import generate
from serve_paged.model.source import model_folder
from tests.engine.conftest import EngineFactory
from tests.engine.real_text import real_prompts

NUM_OUTPUT = 16
GREEDY = SamplingParams(temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True)
ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1)

Outputs = list[list[int]]


@cache
def transformers_model() -> AutoModelForCausalLM:
    return AutoModelForCausalLM.from_pretrained(model_folder(DEFAULT_MODEL), dtype=torch.float32).eval()


@torch.inference_mode()
def transformers_choices(prompt: list[int], output: list[int]) -> list[int]:
    """What transformers would have said at each place of `output`."""
    ids = torch.tensor([prompt + output])
    logits = transformers_model()(ids, use_cache=False, logits_to_keep=len(output) + 1).logits
    return logits[0, :-1].argmax(-1).tolist()


def run(engine: Engine, prompts: list[list[int]], params: SamplingParams = GREEDY) -> Outputs:
    return [completion.token_ids for completion in generate(engine, prompts, params)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((8, 220), id="8 prompts"),
        pytest.param((48, 1500), id="48 prompts", marks=pytest.mark.slow),
    ],
)
def prompts(request: pytest.FixtureRequest, real_engine: EngineFactory) -> list[list[int]]:
    num_prompts, longest = request.param
    return real_prompts(real_engine().text_model.tokenizer, num_prompts, longest=longest)


@pytest.fixture(scope="module")
def alone(prompts: list[list[int]], real_engine: EngineFactory) -> Outputs:
    """Each prompt by itself, nothing cached."""
    engine = real_engine(prefix_caching=False)
    return [run(engine, [prompt])[0] for prompt in prompts]


def preempted_halfway(prompt: list[int], build: EngineFactory, **settings: Any) -> tuple[list[int], EngineStats]:
    """The output of a request that loses all its blocks halfway to an urgent rival, which needs every one of them."""
    num_blocks = -(-(len(prompt) + NUM_OUTPUT) // 16)
    engine = build(num_blocks=num_blocks + 1, watermark=0.0, max_num_seqs=4, **settings)
    engine.add(Request("victim", prompt, GREEDY))
    output: list[int] = []
    while engine.has_unfinished():
        output += [token for delta in engine.step() if delta.request_id == "victim" for token in delta.token_ids]
        if len(output) == NUM_OUTPUT // 2 and engine.stats().num_preemptions == 0:
            engine.add(Request("rival", [7] * (16 * num_blocks - 1), ONE_TOKEN, priority=-1000))
            engine.step()
    return output, engine.stats()


def test_alone(prompts: list[list[int]], alone: Outputs) -> None:
    for prompt, output in zip(prompts, alone, strict=True):
        assert len(output) == NUM_OUTPUT
        assert transformers_choices(prompt, output) == output


def test_in_mixed_batches(prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory) -> None:
    engine = real_engine(num_blocks=1200, max_num_seqs=16)
    outputs: dict[str, list[int]] = {f"{i}": [] for i in range(len(prompts))}
    pending = list(enumerate(prompts))
    while pending or engine.has_unfinished():
        if pending:  # one joins at every step, so prefills and decodes of all ages share batches
            index, prompt = pending.pop()
            engine.add(Request(f"{index}", prompt, GREEDY))
        for delta in engine.step():
            outputs[delta.request_id] += delta.token_ids
    assert list(outputs.values()) == alone


def test_with_prefix_hits(prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory) -> None:
    engine = real_engine(num_blocks=1200)
    run(engine, prompts, SamplingParams(temperature=0.0, max_tokens=1))
    before = engine.stats().num_cached_tokens
    assert run(engine, prompts) == alone
    hits = engine.stats().num_cached_tokens - before
    assert hits == sum((len(prompt) - 1) // 16 * 16 for prompt in prompts)


@pytest.mark.parametrize("budget", [17, *(pytest.param(budget, marks=pytest.mark.slow) for budget in (64, 512))])
def test_with_chunked_prefill(
    prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory, budget: int
) -> None:
    engine = real_engine(num_blocks=1200, max_num_batched_tokens=budget, max_num_seqs=16)
    assert run(engine, prompts) == alone
    assert engine.stats().num_steps >= sum(map(len, prompts)) / budget


def test_after_preemption_by_recompute(prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory) -> None:
    for prompt, expected in zip(prompts, alone, strict=True):
        output, stats = preempted_halfway(
            prompt, real_engine, num_host_blocks=0, preemption="recompute", prefix_caching=False
        )
        assert (stats.num_preemptions_recompute, stats.num_preemptions_swap) == (1, 0)
        assert output == expected


def test_after_preemption_by_swap(prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory) -> None:
    for prompt, expected in zip(prompts, alone, strict=True):
        output, stats = preempted_halfway(prompt, real_engine, num_host_blocks=200, preemption="swap")
        num_full_blocks = (len(prompt) + NUM_OUTPUT // 2 - 1) // 16
        assert (stats.num_preemptions_recompute, stats.num_preemptions_swap) == (
            num_full_blocks == 0,
            num_full_blocks > 0,
        )
        assert stats.num_swapped_in_blocks == num_full_blocks
        assert output == expected


def test_in_a_crowd_that_preempts_each_other(
    prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory
) -> None:
    longest = max(len(prompt) for prompt in prompts)
    engine = real_engine(num_blocks=6 + (longest + NUM_OUTPUT) // 16, num_host_blocks=200, watermark=0.0)
    assert run(engine, prompts) == alone
    assert engine.stats().num_preemptions > 0


def test_as_forks(prompts: list[list[int]], alone: Outputs, real_engine: EngineFactory) -> None:
    engine = real_engine(num_blocks=1200)
    params = SamplingParams(temperature=0.0, max_tokens=NUM_OUTPUT, ignore_eos=True, n=3)
    outputs = run(engine, prompts, params)
    assert outputs == [output for output in alone for _ in range(3)]
    partial_tails = sum(len(prompt) % 16 != 0 for prompt in prompts)
    assert engine.scheduler.stats.num_copied_blocks == 2 * partial_tails  # the last writer keeps the original
