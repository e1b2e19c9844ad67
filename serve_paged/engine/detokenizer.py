"""The text of one choice as it may be sent: no split character, no part of a stop string, nothing after one."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.stop_strings import StopStrings
from serve_paged.engine.text_stream import TextStream


class Detokenizer:
    """Turns output tokens into deltas of text that are safe to send, and finds stop strings.

    The stop string that ends first in the text counts (of several that end together, the longest), so the result
    does not depend on how the text falls into tokens. It must end in text that came after the first min_tokens
    tokens, as in vLLM. The text is cut before it, or after it with include_stop_str_in_output. The token that ends a
    choice, end-of-sequence or of stop_token_ids, has no text unless include_stop_str_in_output.

    `stops` is the search for params.stop, if the caller has built it already: the choices of a request share one.
    To resume, pass the output so far: its text is not returned again, `num_safe_chars` says how long it was.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        prompt_token_ids: Sequence[int],
        output_token_ids: Sequence[int] = (),
        eos_token_ids: Sequence[int] = (),
        stops: StopStrings | None = None,
    ) -> None:
        self.stopped_by: str | None = None  # the stop string that was found
        self.num_safe_chars = 0  # characters returned, or that would have been for `output_token_ids`
        self._stream = TextStream(tokenizer, prompt_token_ids, skip_special_tokens=params.skip_special_tokens)
        self._stops = stops or (StopStrings(params.stop) if params.stop else None)
        self._state = 0  # of the search for stop strings
        self._held = ""  # decoded, but may begin a stop string
        self._include_stop = params.include_stop_str_in_output
        silent = () if params.ignore_eos else eos_token_ids
        self._silent_token_ids = () if self._include_stop else (*params.stop_token_ids, *silent)
        self._min_tokens = params.min_tokens
        self._num_tokens = 0
        for token_id in output_token_ids:
            self.append(token_id)

    def append(self, token_id: int) -> str:
        """Take in the next output token; returns the text that has become safe to send."""
        self._num_tokens += 1
        may_stop = self._num_tokens > self._min_tokens
        if self.stopped_by is not None or (may_stop and token_id in self._silent_token_ids):
            return ""
        text = self._search(self._stream.step(token_id), may_stop)
        self.num_safe_chars += len(text)
        return text

    def finish(self) -> str:
        """The rest, once no token follows: what was held back, and U+FFFD for bytes that make no character."""
        if self.stopped_by is not None:
            return ""
        text = self._held + self._stream.flush()
        self._held = ""
        self.num_safe_chars += len(text)
        return text

    def _search(self, text: str, may_stop: bool) -> str:
        stops, state = self._stops, self._state
        if stops is None:
            return text
        whole = self._held + text
        for index, char in enumerate(text, start=len(self._held) + 1):
            state = stops.step(state, char)
            found = stops.found(state)
            if found and may_stop:
                self.stopped_by = found
                self._held = ""
                return whole[: index if self._include_stop else index - len(found)]
        self._state = state
        num_safe = len(whole) - (0 if self._include_stop else stops.num_held(state))
        self._held = whole[num_safe:]
        return whole[:num_safe]
