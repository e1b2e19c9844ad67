"""From a validated request to a running one: tokenise, check, draw the seed, start the stream.

Both ways in, HTTP and the Python handle, go through here.
"""

import uuid
from collections.abc import AsyncGenerator

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.request_limits import check_request
from serve_paged.serve.block_chain import with_chain
from serve_paged.serve.engine_client import EngineClient
from serve_paged.serve.engine_request import EngineRequest, with_seed
from serve_paged.serve.model_card import ModelCard
from serve_paged.serve.protocol import Message, SamplingFields
from serve_paged.serve.resume import ResumePolicy, resumed
from serve_paged.serve.tokenization import PromptTokenizer


class TextService:
    """Prepares and runs requests for one model."""

    def __init__(self, client: EngineClient, card: ModelCard, resume: ResumePolicy) -> None:
        self.card = card
        self.client = client
        self.tokenizer = PromptTokenizer(card)
        self._resume = resume

    async def text_request(self, prompt: str | list[int], fields: SamplingFields) -> EngineRequest:
        """Prepare a plain prompt. Raises `InvalidRequest` for what can never be served."""
        return self._request(await self.tokenizer.encode(prompt), fields, "prompt")

    async def chat_request(self, messages: list[Message], fields: SamplingFields) -> EngineRequest:
        """Prepare a conversation. Raises `InvalidRequest` for what can never be served."""
        token_ids = await self.tokenizer.encode_chat([message.for_template() for message in messages])
        return self._request(token_ids, fields, "messages")

    def _request(self, prompt_token_ids: list[int], fields: SamplingFields, param: str) -> EngineRequest:
        params = fields.sampling_params()
        check_request(
            prompt_token_ids,
            params,
            max_model_len=self.card.max_model_len,
            vocab_size=self.card.vocab_size,
            eos_token_ids=self.card.eos_token_ids,
            prompt_field=param,
            limit_field=fields.limit_field,
        )
        return EngineRequest(
            uuid.uuid4().hex,
            prompt_token_ids,
            with_seed(params),
            priority=fields.priority,
            cache_salt=fields.cache_salt,
        )

    def stream(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Run a request, on another replica if one is lost; closing the stream aborts it."""
        return resumed(request, self._attempt, self._resume)

    def _attempt(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        return self.client.stream(with_chain(request, self.card))
