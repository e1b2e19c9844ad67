"""One choice of a request on its way out: its text, its log probabilities, and whether it has ended."""

from serve_paged.core.outputs import ChoiceDelta, TokenLogprobs
from serve_paged.core.sequence import Sequence
from serve_paged.engine.detokenizer import Detokenizer
from serve_paged.engine.sampler import SampledToken
from serve_paged.engine.stop import StopChecker
from serve_paged.engine.stop_strings import StopStrings
from serve_paged.engine.text import TextModel


class Choice:
    """Turns sampled tokens into deltas, one by one."""

    def __init__(self, text_model: TextModel, seq: Sequence, stops: StopStrings | None) -> None:
        self._seq = seq
        self._detokenizer = Detokenizer(
            text_model.tokenizer,
            seq.params,
            seq.prompt_token_ids,
            seq.output_token_ids,
            text_model.eos_token_ids,
            stops,
        )
        self._stop_checker = StopChecker(seq.params, text_model.eos_token_ids)
        self._prompt_logprobs: list[TokenLogprobs | None] = []
        self._first = True

    def add_prompt_logprobs(self, found: list[TokenLogprobs], *, start: int) -> None:
        """Keep the log probabilities of prompt tokens [start + 1, ...); a recomputed part replaces the old one."""
        del self._prompt_logprobs[start + 1 :]
        if not self._prompt_logprobs:
            self._prompt_logprobs.append(None)  # nothing predicts the first token
        self._prompt_logprobs.extend(found)

    def advance(self, token: SampledToken, events_seq_no: int = 0) -> ChoiceDelta:
        """Take in the token just appended to the sequence; batch `events_seq_no` covers the blocks it came from."""
        seq, first = self._seq, self._first
        self._first = False
        text = self._detokenizer.append(token.token_id)
        reason, stop_reason = self._stop_checker.check(seq, token.token_id, self._detokenizer)
        if reason is not None:
            text += self._detokenizer.finish()
        return ChoiceDelta(
            request_id=seq.request_id,
            choice=seq.choice,
            token_ids=[token.token_id],
            text=text,
            finish_reason=reason,
            stop_reason=stop_reason,
            logprobs=[] if token.logprobs is None else [token.logprobs],
            prompt_logprobs=self._prompt_logprobs if first else [],
            num_prompt_tokens=seq.num_prompt_tokens,
            num_cached_tokens=seq.num_cached_tokens,
            events_seq_no=events_seq_no,
        )
