"""Whatever JSON a client sends, the answer is never a server error."""

import asyncio
import json
from typing import Any

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_paged.core.sequence import FinishReason
from serve_paged.serve.protocol import ChatCompletionRequest, CompletionRequest
from serve_paged.serve.routes import Routes
from serve_paged.serve.service import TextService
from tests.serve.fakes import NO_RESUME, ScriptedClient, delta, tiny_card

SERVICE = TextService(ScriptedClient([]), tiny_card(), NO_RESUME)  # type: ignore[arg-type]
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
LIKELY = st.sampled_from([0, 1, -1, 2, 0.5, 258, 259, 2**31, True, False, "", "a", [], ["a"], [1], {}, {"1": 5}])


def bodies(fields: list[str], valid: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """A valid body with some of its fields replaced or added."""
    names = st.sampled_from(fields) | st.text(max_size=8)
    return st.dictionaries(names, LIKELY | JSON, max_size=4).map(lambda changes: valid | changes)


def status(path: str, body: Any) -> int:
    client = ScriptedClient([[delta("a", FinishReason.STOP)]])

    async def run() -> int:
        SERVICE.client = client  # type: ignore[assignment]
        transport = httpx.ASGITransport(Routes(SERVICE).app(), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            response = await http.post(path, content=json.dumps(body))
            if response.status_code != 200:
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}
            return response.status_code

    return asyncio.run(run())


@settings(max_examples=300, deadline=None, derandomize=True)
@given(bodies([*ChatCompletionRequest.model_fields], {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}))
def test_no_chat_body_is_a_server_error(body: dict[str, Any]) -> None:
    assert status("/v1/chat/completions", body) in (200, 400, 404)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(bodies([*CompletionRequest.model_fields], {"model": "tiny", "prompt": "a"}))
def test_no_completion_body_is_a_server_error(body: dict[str, Any]) -> None:
    assert status("/v1/completions", body) in (200, 400, 404)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(JSON, max_size=3))
def test_no_list_of_messages_is_a_server_error(messages: list[Any]) -> None:
    assert status("/v1/chat/completions", {"model": "tiny", "messages": messages}) in (400, 404)
