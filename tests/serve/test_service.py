"""From a validated request to one that the engine can run."""

import asyncio
from typing import Any

import pytest

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.serve.protocol import ChatRequest, GenerateRequest, parse_arguments
from serve_paged.serve.service import TextService
from tests.serve.fakes import NO_RESUME, ScriptedClient, tiny_card

SERVICE = TextService(ScriptedClient([]), tiny_card(max_model_len=64), NO_RESUME)  # type: ignore[arg-type]
VOCAB_SIZE = SERVICE.card.vocab_size


def refused(**fields: Any) -> InvalidRequest:
    request = parse_arguments(GenerateRequest, {"prompt": "a", **fields})
    with pytest.raises(InvalidRequest) as raised:
        asyncio.run(SERVICE.text_request(request.prompt, request))
    return raised.value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [VOCAB_SIZE]}, "prompt"),
        ({"logit_bias": {VOCAB_SIZE: 1}}, "logit_bias"),
        ({"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids"),
        ({"repetition_penalty": 0.001}, "repetition_penalty"),
        ({"stop": ["x" * 5000]}, "stop"),
    ],
)
def test_what_can_never_be_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert refused(**fields).param == param


def test_what_fills_the_context_exactly_is_accepted() -> None:
    request = parse_arguments(GenerateRequest, {"prompt": [1] * 60, "max_tokens": 4})
    assert asyncio.run(SERVICE.text_request(request.prompt, request)).prompt_token_ids == [1] * 60


@pytest.mark.parametrize(("num_prompt", "max_tokens", "param"), [(60, 5, "max_tokens"), (64, None, "prompt")])
def test_what_exceeds_the_context_is_refused_by_name(num_prompt: int, max_tokens: int | None, param: str) -> None:
    error = refused(prompt=[1] * num_prompt, max_tokens=max_tokens)
    assert isinstance(error, RequestTooLong)
    assert error.param == param


def test_a_conversation_that_exceeds_the_context_is_refused_as_messages() -> None:
    request = parse_arguments(ChatRequest, {"messages": [{"role": "user", "content": "x" * 64}]})
    with pytest.raises(RequestTooLong) as raised:
        asyncio.run(SERVICE.chat_request(request.messages, request))
    assert raised.value.param == "messages"
