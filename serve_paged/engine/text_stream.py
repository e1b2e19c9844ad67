"""Token ids to text, one by one, with the tokenizer library's own stream decoder. Knows nothing of stopping."""

from collections.abc import Sequence
from itertools import takewhile

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_REPLACEMENT = "\ufffd"  # what an incomplete character decodes to
_NUM_CONTEXT = 8  # prompt tokens that the first output token is decoded after
_MAX_INCOMPLETE = 3  # tokens that can belong to an incomplete UTF-8 character of four bytes
_MAX_PENDING = 32  # tokens without text after which they are no longer taken for the start of a character


class TextStream:
    """The text of output tokens in the context of their prompt: spaces are those of the whole, decoded at once.

    An incomplete character waits for its other tokens. The concatenated text is what `Tokenizer.decode` adds to the
    prompt's text. Two exceptions, since text once given is never changed: bytes that turn an earlier byte token's
    character invalid (byte-fallback vocabularies), and more than 32 tokens that never become a character.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], *, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._context, incomplete = self._split_prompt(prompt_token_ids)  # tokens before `_pending`
        self._pending: list[int] = []  # tokens whose text is not given yet
        self._stream = self._new_stream()
        self._prompt_rest = ""
        for token_id in incomplete:
            self.step(token_id)
        self._prompt_rest = self._pending_text(self._pending)  # belongs to the prompt as far as it stays the same

    def step(self, token_id: int) -> str:
        """Take in one token; returns the characters that it completes, "" if none."""
        self._pending.append(token_id)
        text = self._decode_next(token_id)
        if text is None:
            return self._release_pending() if len(self._pending) >= _MAX_PENDING else ""
        if text:
            self._context = self._pending
            self._pending = []
        return self._without_prompt(text)

    def flush(self) -> str:
        """The text of what is still incomplete: U+FFFD, as `Tokenizer.decode` would end."""
        text = self._pending_text(self._pending)
        self._pending = []
        return self._without_prompt(text)

    def _decode_next(self, token_id: int) -> str | None:
        try:
            return self._stream.step(self._tokenizer, token_id)
        except Exception as error:  # the library has no type of its own
            if not str(error).startswith("Invalid prefix"):
                raise
        # A byte token made the previous text invalid. What was given stays; go on after it.
        text = self._pending_text(self._pending)
        self._context, self._pending = self._pending, []
        self._stream = self._new_stream()
        return text

    def _release_pending(self) -> str:
        """Give the text of pending tokens that cannot become a character any more; keep those that may."""
        settled, recent = self._pending[:-_MAX_INCOMPLETE], self._pending[-_MAX_INCOMPLETE:]
        text = self._without_prompt(self._pending_text(settled))
        self._pending = []
        self._stream = self._new_stream()
        return text + "".join(self.step(token_id) for token_id in recent)

    def _pending_text(self, pending: list[int]) -> str:
        before, after = self._decode(self._context), self._decode([*self._context, *pending])
        return after[len(before) :] if after.startswith(before) else self._decode(pending)

    def _without_prompt(self, text: str) -> str:
        if not text or not self._prompt_rest:
            return text
        same = (a == b for a, b in zip(text, self._prompt_rest, strict=False))
        overlap = sum(1 for _ in takewhile(bool, same))
        self._prompt_rest = ""
        return text[overlap:]

    def _split_prompt(self, prompt_token_ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """Enough of the prompt's end to decode after, and the tokens of an incomplete character behind that."""
        size = _NUM_CONTEXT
        while True:
            context, incomplete = self._split_end(prompt_token_ids, size)
            if size >= len(prompt_token_ids) or self._decode(context):
                return context, incomplete
            size *= 4  # only special tokens, or byte tokens spoilt by a beginning within a character

    def _split_end(self, prompt_token_ids: Sequence[int], size: int) -> tuple[list[int], list[int]]:
        """The last `size` tokens, so cut that the first part ends with a whole character."""
        num_tokens = len(prompt_token_ids)
        first = max(num_tokens - size, 0)
        ends = range(num_tokens, max(num_tokens - _MAX_INCOMPLETE, first) - 1, -1)
        for end in ends:
            context = list(prompt_token_ids[first:end])
            if not self._decode(context).endswith(_REPLACEMENT):
                return context, list(prompt_token_ids[end:])
        return [], list(prompt_token_ids[ends[-1] :])  # no text so far

    def _new_stream(self) -> DecodeStream:
        return DecodeStream(ids=self._context, skip_special_tokens=self._skip)

    def _decode(self, token_ids: list[int]) -> str:
        text: str = self._tokenizer.decode(token_ids, skip_special_tokens=self._skip)
        return text
