"""Text to tokens, once per request, in the ingress; and tokens to text for log probabilities."""

import asyncio
import zlib

from tokenizers import Tokenizer

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.serve.chat_template import render_chat
from serve_paged.serve.model_card import ModelCard
from serve_paged.serve.token_bytes import TokenBytes

_LONG_TEXT_CHARS = 8192  # tokenising more than this takes milliseconds: keep it off the event loop


class PromptTokenizer:
    """Tokenises prompts and conversations of one model, and checks that they can be served."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        tokenizer_json = zlib.decompress(card.tokenizer_json).decode("utf-8")
        self._tokenizer = Tokenizer.from_str(tokenizer_json)
        self._token_bytes = TokenBytes(tokenizer_json)

    async def encode(self, prompt: str | list[int]) -> list[int]:
        """Token ids of a plain prompt, the model's own start token included. Raises `InvalidRequest`."""
        if isinstance(prompt, str):
            return await self._encode(prompt, add_special_tokens=True)
        outside = next((token_id for token_id in prompt if token_id >= self._card.vocab_size), None)
        if outside is not None:
            raise InvalidRequest(f"token id {outside} is outside the vocabulary ({self._card.vocab_size})", "prompt")
        return prompt

    async def encode_chat(self, messages: list[dict[str, str]]) -> list[int]:
        """Token ids of a conversation in the model's own template, ready for the assistant's turn.

        Raises `InvalidRequest` when the model has no template or its template refuses the conversation.
        """
        prompt = render_chat(self._card.chat_template, self._card.special_tokens, messages)
        return await self._encode(prompt, add_special_tokens=False)

    async def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if len(text) > _LONG_TEXT_CHARS:
            return (await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)).ids
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def check(self, prompt_token_ids: list[int], params: SamplingParams, param: str, limit_field: str) -> None:
        """Raise `InvalidRequest` for what can never be served.

        `param` and `limit_field` name the fields of the prompt and of the output limit.
        """
        limit, num_prompt = self._card.max_model_len, len(prompt_token_ids)
        if not prompt_token_ids:
            raise InvalidRequest("The prompt must hold at least one token", param)
        if num_prompt >= limit:
            message = f"The prompt has {num_prompt} tokens; the context length is {limit}, at least one is for output"
            raise RequestTooLong(message, param)
        if params.max_tokens is not None and num_prompt + params.max_tokens > limit:
            message = f"The prompt has {num_prompt} tokens and {limit_field} is {params.max_tokens}: above the context"
            raise RequestTooLong(f"{message} length of {limit}", limit_field)
        for field, token_ids in (("logit_bias", params.logit_bias), ("stop_token_ids", params.stop_token_ids)):
            if any(token_id >= self._card.vocab_size for token_id in token_ids):
                raise InvalidRequest(f"{field} names a token outside the vocabulary ({self._card.vocab_size})", field)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for; those of a single token need not be valid UTF-8."""
        token = self._tokenizer.id_to_token(token_id)
        return b"" if token is None else self._token_bytes(token)
