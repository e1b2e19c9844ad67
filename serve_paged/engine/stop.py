"""Decides after each token whether a sequence has ended, and why."""

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import FinishReason, Sequence
from serve_paged.engine.detokenizer import Detokenizer


class StopChecker:
    """The end of one choice, by vLLM's rules.

    Neither a token nor a string among the first min_tokens tokens ends it. An end-of-sequence token, a stop token or
    a stop string counts before the length does.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: tuple[int, ...]) -> None:
        self._min_tokens = params.min_tokens
        self._eos_token_ids = () if params.ignore_eos else eos_token_ids
        self._stop_token_ids = params.stop_token_ids

    def check(
        self, seq: Sequence, token_id: int, detokenizer: Detokenizer
    ) -> tuple[FinishReason | None, int | str | None]:
        """Reason, and the stop token or string behind it, once token_id is in both `seq` and `detokenizer`."""
        if seq.num_output_tokens > self._min_tokens:
            if token_id in self._eos_token_ids:
                return FinishReason.STOP, None
            if token_id in self._stop_token_ids:
                return FinishReason.STOP, token_id
        if detokenizer.stopped_by is not None:
            return FinishReason.STOP, detokenizer.stopped_by
        if seq.num_tokens >= seq.max_num_tokens:
            return FinishReason.LENGTH, None
        return None, None
