"""The deployment that owns one engine: token chunks out, health and statistics for whoever asks."""

import os
import time
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from serve_paged.config import EngineConfig, prepare_environment
from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.serve.chunks import ChunkPolicy, chunked
from serve_paged.serve.engine_client import EngineRequest
from serve_paged.serve.model_card import ModelCard

if TYPE_CHECKING:
    from serve_paged.engine.text import TextModel


class EngineReplica:
    """One engine in one Ray actor, a Ray Serve deployment. Each open stream is one call of `generate`."""

    def __init__(self, config: EngineConfig) -> None:
        prepare_environment(os.environ)
        # Imported here: this module is also loaded by the controller and the ingress, which must stay free of torch.
        from serve_paged.engine.async_engine import AsyncEngine
        from serve_paged.engine.build import build_engine
        from serve_paged.engine.engine import Request

        engine = build_engine(config)
        self._request_type = Request
        self._card = _describe(engine.text_model, engine.max_model_len)
        self._engine = AsyncEngine(engine)
        self._policy = ChunkPolicy()
        self._num_streams = 0

    async def generate(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        """Run a request and yield its chunks. Cancelling the call aborts it within one step of the engine.

        Raises `InvalidRequest` before the first chunk, `EngineDead` when the engine fails.
        """
        steps = self._engine.generate(
            self._request_type(
                request.request_id,
                request.prompt_token_ids,
                request.params,
                priority=request.priority,
                cache_salt=request.cache_salt,
                output_token_ids=request.output_token_ids,
            )
        )
        self._num_streams += 1
        try:
            async with aclosing(chunked(steps, self._policy, self._count_streams, time.monotonic)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            self._num_streams -= 1

    async def describe(self) -> ModelCard:
        """What an ingress must know about the model."""
        return self._card

    async def stats(self) -> EngineStats:
        """The engine's state after its latest step. Raises `EngineDead` when it has stopped."""
        self._engine.check_health()
        return self._engine.stats()

    async def check_health(self) -> None:
        """Called by Ray Serve, which replaces this replica when it raises."""
        self._engine.check_health()

    def _count_streams(self) -> int:
        return self._num_streams


def _describe(text_model: "TextModel", max_model_len: int) -> ModelCard:
    template = text_model.chat_template
    return ModelCard(
        name=text_model.name,
        created=int(time.time()),
        max_model_len=max_model_len,
        vocab_size=text_model.vocab_size,
        eos_token_ids=tuple(text_model.eos_token_ids),
        tokenizer_json=zlib.compress(text_model.tokenizer.to_str().encode("utf-8")),
        chat_template=None if template is None else template.source,
        special_tokens={} if template is None else template.special_tokens,
    )
