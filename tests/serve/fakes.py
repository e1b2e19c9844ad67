"""A scripted engine client and a tiny model card: the HTTP side without Ray and without a model."""

import asyncio
import zlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from serve_paged.core.outputs import ChoiceDelta, EngineStats
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.model_card import ModelCard
from serve_paged.serve.resume import ResumePolicy
from tests.tiny_models import CHAT_TEMPLATE, EOS_TOKEN, byte_level_tokenizer


def tiny_card(max_model_len: int = 128) -> ModelCard:
    """A model named `tiny` whose tokens are bytes."""
    tokenizer = byte_level_tokenizer()
    return ModelCard(
        name="tiny",
        created=1,
        max_model_len=max_model_len,
        vocab_size=tokenizer.get_vocab_size(),
        eos_token_ids=(tokenizer.token_to_id(EOS_TOKEN),),
        fingerprint="0" * 32,
        kv_dtype="float32",
        block_size=16,
        tokenizer_json=zlib.compress(tokenizer.to_str().encode()),
        chat_template=CHAT_TEMPLATE,
        special_tokens={"eos_token": EOS_TOKEN},
    )


NO_RESUME = ResumePolicy(max_resumes=0, recovery_s=1.0)


@dataclass
class ScriptedClient:
    """Plays the same steps for every request, and remembers what it was asked and what was closed early."""

    steps: list[list[ChoiceDelta] | Exception]
    requests: list[EngineRequest] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)
    never_ends: bool = False
    dead: Exception | None = None

    async def stream(self, request: EngineRequest) -> AsyncGenerator[list[ChoiceDelta], None]:
        self.requests.append(request)
        complete = False
        try:
            for step in self.steps:
                if isinstance(step, Exception):
                    raise step
                yield step
            if self.never_ends:
                await asyncio.Event().wait()
            complete = True
        finally:
            if not complete:
                self.aborted.append(request.request_id)

    async def stats(self) -> EngineStats:
        if self.dead is not None:
            raise self.dead
        return EngineStats(num_running=0, num_waiting=0, num_blocks=1, num_free_blocks=1)


def delta(text: str, finish_reason: FinishReason | None = None, *, choice: int = 0, **more: object) -> ChoiceDelta:
    """One token that stands for `text`."""
    known = {"token_ids": [ord(text[0]) if text else 0], "num_prompt_tokens": 5, **more}
    return ChoiceDelta(request_id="r", choice=choice, text=text, finish_reason=finish_reason, **known)  # type: ignore[arg-type]
