"""Text to tokens, once per request, in the ingress; and tokens to text for log probabilities."""

import asyncio
import zlib

from tokenizers import Tokenizer

from serve_paged.core.errors import RequestTooLong
from serve_paged.serve.chat_template import render_chat
from serve_paged.serve.model_card import ModelCard
from serve_paged.serve.token_bytes import TokenBytes

_LONG_TEXT_CHARS = 2048  # tokenising more than this takes milliseconds: keep it off the event loop


class PromptTokenizer:
    """Tokenises prompts and conversations of one model."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        tokenizer_json = zlib.decompress(card.tokenizer_json).decode("utf-8")
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._token_bytes = TokenBytes(tokenizer_json)
        self._max_chars = card.max_model_len * max(map(len, self._tokenizer.get_vocab()))

    async def encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a plain prompt, the model's own start token included.

        Raises `RequestTooLong` for a text that cannot fit into the context, whatever its tokens are.
        """
        if isinstance(prompt, str):
            return await self._encode(prompt, "prompt", add_special_tokens=True)
        return prompt

    async def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's own template, ready for the assistant's turn.

        Raises `InvalidRequest` when the model has no template or its template refuses the conversation,
        `RequestTooLong` like `encode`.
        """
        prompt = render_chat(self._card.chat_template, self._card.special_tokens, messages)
        return await self._encode(prompt, "messages", add_special_tokens=False)

    async def _encode(self, text: str, field: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) > self._max_chars:
            limit = self._card.max_model_len
            raise RequestTooLong(f"{len(text)} characters cannot fit into the context of {limit} tokens", field)
        if len(text) <= _LONG_TEXT_CHARS:
            await asyncio.sleep(0)  # a body may hold many prompts: others get their turn between them
            return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids
        encode = self._tokenizer.encode_batch_fast  # releases the GIL, which `encode` holds to the end
        (encoding,) = await asyncio.to_thread(encode, [text], add_special_tokens=add_special_tokens)
        return encoding.ids

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; those of a single token need not be valid UTF-8."""
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._token_bytes(token)
