"""A sequence: the tokens of one choice of one request, and where the engine stands with them."""

from dataclasses import dataclass, field
from enum import Enum, StrEnum

from serve_paged.core.sampling_params import SamplingParams


class SequenceStatus(Enum):
    """Where a sequence stands. Only RUNNING ones hold blocks."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"  # waits again, with its output so far
    FINISHED = "finished"


class FinishReason(StrEnum):
    """Why a sequence ended; every accepted one ends with exactly one of these."""

    STOP = "stop"  # end-of-sequence token, stop token or stop string
    LENGTH = "length"  # max_tokens or the context length
    ABORT = "abort"  # the client went away
    ERROR = "error"  # the engine failed


@dataclass(eq=False, slots=True)
class Sequence:
    """Tokens and progress of one choice. `num_computed_tokens` catches up with `num_tokens`: there are no phases."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    arrival_time: float  # seconds, of the scheduler's clock
    seed: int  # drawn once; with choice and position it determines every random number
    max_num_tokens: int  # prompt + output at most: min(context length, prompt + max_tokens)
    choice: int = 0  # index among the n of the request
    priority: int = 0  # lower is served first, as in vLLM
    cache_root: bytes = b""  # start of the hash chain (core/block_hash.py)
    output_token_ids: list[int] = field(default_factory=list)
    siblings: list["Sequence"] = field(default_factory=list)  # the other n-1, forked once the prompt is computed
    block_table: list[int] = field(default_factory=list)  # append-only until preempted or finished
    block_hashes: list[bytes] = field(default_factory=list)  # one per full block of tokens known so far
    num_computed_tokens: int = 0  # tokens whose K and V are in the cache, or will be once what was launched has run
    pending_sample: int | None = None  # its newest token is not known yet: it is this one of the latest samples
    num_cached_tokens: int = 0  # of these, found in the prefix cache at first admission
    num_preemptions: int = 0
    first_scheduled_time: float | None = None  # seconds; when it first left the waiting line
    order: tuple[float, int, int] = (0.0, 0, 0)  # place in line, fixed when added (core/priority.py)
    status: SequenceStatus = SequenceStatus.WAITING
    finish_reason: FinishReason | None = None

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_output_tokens(self) -> int:
        """Output tokens known so far."""
        return len(self.output_token_ids)

    @property
    def num_tokens(self) -> int:
        """Prompt and output tokens; a pending one has its place already."""
        return len(self.prompt_token_ids) + len(self.output_token_ids) + (self.pending_sample is not None)

    @property
    def finished(self) -> bool:
        """Whether it has ended."""
        return self.status is SequenceStatus.FINISHED

    def tokens(self, start: int, stop: int) -> list[int]:
        """Token ids in [start, stop), over prompt and output alike; a pending one is left out."""
        num_prompt = len(self.prompt_token_ids)
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]
