"""What an engine tells about a request while it runs. Plain data: it crosses process boundaries."""

from dataclasses import dataclass, field

from serve_paged.core.sequence import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """One token's log probability and the most likely alternatives at its place, best first."""

    token_id: int
    logprob: float  # natural log under the model's own distribution, before penalties and temperature
    rank: int  # 1 is the most likely
    top: tuple[tuple[int, float], ...] = ()  # (token id, log probability)


@dataclass(frozen=True, slots=True)
class ChoiceDelta:
    """What is new in one choice of one request since the last delta."""

    request_id: str
    choice: int
    token_ids: list[int]
    text: str  # safe to send: no split character, no part of a stop string
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None  # the stop token id or stop string that ended it; None for end-of-sequence
    logprobs: list[TokenLogprobs] = field(default_factory=list)  # one per token id, if asked for
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=list)  # on the first delta; None for token 0
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    events_seq_no: int = 0  # of the batch of KV events that covers the blocks computed so far (core/kv_events.py)


@dataclass(frozen=True, slots=True)
class EngineStats:
    """The engine's state and counters at one moment. Counters only grow."""

    num_running: int
    num_waiting: int
    num_blocks: int  # without the null block
    num_free_blocks: int  # free or cached and unreferenced
    num_steps: int = 0
    num_preemptions_recompute: int = 0
    num_preemptions_swap: int = 0
    num_swapped_out_blocks: int = 0
    num_swapped_in_blocks: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0  # prefix-cache hits, in tokens
    num_finished: dict[str, int] = field(default_factory=dict)  # by finish reason

    @property
    def num_preemptions(self) -> int:
        """Preemptions of either kind."""
        return self.num_preemptions_recompute + self.num_preemptions_swap

    @property
    def kv_cache_usage(self) -> float:
        """Share of blocks in use, 0 to 1; cached blocks nobody refers to count as free (as vLLM's gauge)."""
        return 1.0 - self.num_free_blocks / self.num_blocks
