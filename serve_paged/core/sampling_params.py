"""How one request wants its tokens chosen and when it wants them to end. Immutable, validated at construction."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from serve_paged.core.errors import InvalidRequest

MAX_LOGPROBS = 20
MAX_CHOICES = 128
MAX_STOP_STRINGS = 64
# A request's own lists cost time in every step of all requests: bounded well above what clients use.
MAX_STOP_CHARS = 4096
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """Sampling and stopping of one request. Names and meanings follow OpenAI's API and vLLM's extras.

    Raises `InvalidRequest` naming the field when a value is out of range.
    """

    n: int = 1  # parallel completions of one prompt, sharing its KV blocks
    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0  # 0 or -1: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output only
    frequency_penalty: float = 0.0  # over output only
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None  # None: the engine draws one
    max_tokens: int | None = None  # None: up to the context length
    min_tokens: int = 0  # no end-of-sequence or stop token before this many
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None  # alternatives per output token; 0: only the chosen one's
    prompt_logprobs: int | None = None  # the same for each prompt token but the first

    def __post_init__(self) -> None:
        _check_range("n", self.n, 1, MAX_CHOICES)
        _check_range("temperature", self.temperature, 0.0, 100.0)
        _check_range("top_k", self.top_k, -1, math.inf)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise InvalidRequest("top_p must be above 0", "top_p")
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100.0)  # logits stay finite in float32
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        for token_id, bias in self.logit_bias.items():
            _check_range(f"logit_bias[{token_id}]", bias, -100.0, 100.0, param="logit_bias")
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, math.inf)
        _check_range("min_tokens", self.min_tokens, 0, math.inf)
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise InvalidRequest("min_tokens must not exceed max_tokens", "min_tokens")
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequest(f"stop takes at most {MAX_STOP_STRINGS} strings", "stop")
        if sum(map(len, self.stop)) > MAX_STOP_CHARS:
            raise InvalidRequest(f"stop takes at most {MAX_STOP_CHARS} characters in all", "stop")
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest(f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids", "stop_token_ids")
        if len(self.logit_bias) > MAX_LOGIT_BIASES:
            raise InvalidRequest(f"logit_bias takes at most {MAX_LOGIT_BIASES} tokens", "logit_bias")
        if any(not text for text in self.stop):
            raise InvalidRequest("stop strings must not be empty", "stop")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _check_range(name, value, 0, MAX_LOGPROBS)

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0.0


def _check_range(name: str, value: float, low: float, high: float, *, param: str | None = None) -> None:
    if not low <= value <= high:  # also refuses NaN
        bound = f"between {low} and {high}" if math.isfinite(high) else f"at least {low}"
        raise InvalidRequest(f"{name} must be {bound}, got {value}", param or name)
