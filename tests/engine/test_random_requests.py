"""Any mix of valid requests, at the edges of what is valid, ends well: no fault, one end for each choice, no leak."""

import random
from typing import Any

import pytest

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.engine import Engine, Request
from tests.engine.conftest import EngineFactory

VOCAB = range(259)

CHOICES: dict[str, list[Any]] = {
    "n": [1, 1, 1, 2, 3],
    "temperature": [0.0, 1.0, 5e-324, 1e-38, 100.0, 0.7],
    "top_k": [0, -1, 1, 2, 258, 259, 10**20],
    "top_p": [1.0, 5e-324, 0.5, 1 - 2**-53],
    "min_p": [0.0, 1.0, 0.5, 5e-324],
    "repetition_penalty": [1.0, 1.0, 0.01, 100.0],
    "presence_penalty": [0.0, 2.0, -2.0],
    "frequency_penalty": [0.0, 2.0, -2.0],
    "logit_bias": [{}, {7: 100.0}, dict.fromkeys(VOCAB, -100.0)],
    "seed": [None, 0, -(2**63), 2**63 - 1],
    "min_tokens": [0, 0, 2, 10**20],
    "max_tokens": [1, 3, 20, None],
    "stop": [(), (), ("a",), ("é", "\n", "ab" * 9)],
    "stop_token_ids": [(), (1, 2), (258,), tuple(range(200))],
    "include_stop_str_in_output": [True, False],
    "ignore_eos": [True, False],
    "skip_special_tokens": [True, False],
    "logprobs": [None, 0, 20],
    "prompt_logprobs": [None, None, 0, 20],
}


def random_engine(rng: random.Random, factory: EngineFactory) -> Engine:
    return factory(
        num_blocks=rng.choice([6, 12, 40]),
        num_host_blocks=rng.choice([0, 6]),
        max_num_seqs=rng.choice([4, 8]),
        max_num_batched_tokens=rng.choice([8, 16, 64]),
        preemption=rng.choice(["auto", "swap", "recompute"]),
        prefix_caching=rng.choice([True, False]),
        watermark=rng.choice([0.0, 0.1]),
    )


def add_random_requests(rng: random.Random, engine: Engine) -> set[tuple[str, int]]:
    """(request, choice) of all that were accepted."""
    accepted: set[tuple[str, int]] = set()
    for index in range(rng.randrange(1, 9)):
        prompt = [rng.choice([rng.choice(VOCAB), 258]) for _ in range(rng.randrange(1, 60))]
        try:
            params = SamplingParams(**{name: rng.choice(values) for name, values in CHOICES.items()})
            engine.add(Request(f"r{index}", prompt, params, rng.choice([0, 0, -1, 2]), rng.choice(["", "x"])))
        except InvalidRequest:
            continue
        accepted |= {(f"r{index}", choice) for choice in range(params.n)}
    return accepted


def run_to_the_end(rng: random.Random, engine: Engine) -> tuple[list[tuple[str, int]], set[str]]:
    """What ended, and which requests were aborted on the way."""
    ended: list[tuple[str, int]] = []
    aborted: set[str] = set()
    while engine.has_unfinished():
        ended += [(delta.request_id, delta.choice) for delta in engine.step() if delta.finish_reason is not None]
        engine.scheduler.check()
        if rng.random() < 0.02:
            aborted.add(f"r{rng.randrange(8)}")
            engine.abort(max(aborted))
    return ended, aborted


@pytest.mark.parametrize("seed", [*range(20), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(20, 200))])
def test_every_accepted_choice_ends_once_and_nothing_leaks(seed: int, tiny_engine: EngineFactory) -> None:
    rng = random.Random(seed)
    engine = random_engine(rng, tiny_engine)
    accepted = add_random_requests(rng, engine)
    ended, aborted = run_to_the_end(rng, engine)
    assert len(ended) == len(set(ended))
    assert set(ended) <= accepted
    assert {choice for choice in accepted if choice[0] not in aborted} <= set(ended)
    stats = engine.stats()
    assert sum(stats.num_finished.values()) == len(accepted)
    assert stats.num_free_blocks == stats.num_blocks
