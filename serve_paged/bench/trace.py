"""What a benchmark asks for: prompts of random tokens and how many tokens each answer has."""

from dataclasses import dataclass

import numpy as np

# Lengths in tokens of ShareGPT's first turns as vLLM's benchmark filters them: lognormal (mu, sigma) and cuts.
SHAREGPT_INPUT = (4.54, 1.58)
SHAREGPT_OUTPUT = (4.55, 1.50)
SHAREGPT_MAX_INPUT = 1024
SHAREGPT_MAX_TOTAL = 2048


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of one request."""

    num_input: int
    num_output: int


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One prompt, answered greedily with exactly `num_output` tokens."""

    prompt_token_ids: list[int]
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


def random_trace(lengths: list[Lengths], vocab_size: int, seed: int = 0) -> list[TraceRequest]:
    """Prompts of these lengths, tokens drawn evenly from the vocabulary."""
    rng = np.random.default_rng(seed)
    return [TraceRequest(rng.integers(0, vocab_size, n.num_input).tolist(), n.num_output) for n in lengths]
