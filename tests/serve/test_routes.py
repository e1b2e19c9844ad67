"""The HTTP routes over a scripted engine, in process."""

import asyncio
import json
from typing import Any

import httpx
import pytest
from ray.exceptions import RayTaskError
from ray.serve.exceptions import BackPressureError

from serve_paged.core.errors import EngineDead, InvalidRequest
from serve_paged.core.outputs import TokenLogprobs
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.request_body import MAX_BODY_BYTES
from serve_paged.serve.routes import Routes
from serve_paged.serve.service import TextService
from tests.serve.fakes import NO_RESUME, ScriptedClient, delta, tiny_card

HELLO = [[delta("H", num_cached_tokens=2)], [delta("i")], [delta("!", FinishReason.STOP)]]


def send(client: ScriptedClient, method: str, path: str, body: dict[str, Any] | bytes | None = None) -> httpx.Response:
    async def run() -> httpx.Response:
        app = Routes(TextService(client, tiny_card(), NO_RESUME)).app()  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as http:
            content = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
            return await http.request(method, path, content=content)

    return asyncio.run(run())


def chat(client: ScriptedClient, **fields: Any) -> httpx.Response:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], **fields}
    return send(client, "POST", "/v1/chat/completions", body)


def complete(client: ScriptedClient, **fields: Any) -> httpx.Response:
    return send(client, "POST", "/v1/completions", {"model": "tiny", "prompt": "hi", **fields})


def events(response: httpx.Response) -> list[Any]:
    """The objects of a stream, which must end with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def error_of(response: httpx.Response) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] is None or isinstance(error["code"], str)
    return error


def test_a_chat_is_answered_in_openais_shape() -> None:
    answer = chat(ScriptedClient(HELLO)).json()
    assert answer["object"] == "chat.completion"
    assert answer["model"] == "tiny"
    assert answer["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi!", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert answer["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_a_chat_streams_the_same_text_under_one_id() -> None:
    response = chat(ScriptedClient(HELLO), stream=True)
    chunks = events(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": "H"}, {"content": "i"}, {"content": "!"}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_is_streamed_last_when_asked_for() -> None:
    *chunks, last = events(chat(ScriptedClient(HELLO), stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["usage"]["prompt_tokens_details"] == {"cached_tokens": 2}


def test_held_back_text_makes_no_chunk_but_the_first_delta_does() -> None:
    steps = [[delta("")], [delta("")], [delta("é")], [delta("", FinishReason.LENGTH)]]
    texts = [chunk["choices"][0]["text"] for chunk in events(complete(ScriptedClient(steps), stream=True))]
    assert texts == ["", "é", ""]


def test_completions_number_the_choices_of_all_prompts() -> None:
    steps = [
        [delta("a"), delta("b", choice=1)],
        [delta("x", FinishReason.STOP), delta("y", FinishReason.STOP, choice=1)],
    ]
    client = ScriptedClient(steps)
    answer = complete(client, prompt=["p", "q"], n=2).json()
    assert [(choice["index"], choice["text"]) for choice in answer["choices"]] == [
        (0, "ax"), (1, "by"), (2, "ax"), (3, "by"),
    ]  # fmt: skip
    assert answer["usage"]["prompt_tokens"] == 10
    streamed = events(complete(client, prompt=["p", "q"], n=2, stream=True, stream_options={"include_usage": True}))
    texts = ["".join(c["text"] for e in streamed for c in e["choices"] if c["index"] == index) for index in range(4)]
    assert texts == ["ax", "by", "ax", "by"]
    assert streamed[-1]["usage"] == answer["usage"]


def test_chat_log_probabilities_carry_bytes_and_alternatives() -> None:
    token = TokenLogprobs(5, -0.5, 2, top=((6, -0.25), (5, -0.5)))
    step = [delta("x", FinishReason.STOP, token_ids=[5], logprobs=[token])]
    (entry,) = chat(ScriptedClient([step]), logprobs=True, top_logprobs=2).json()["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == -0.5
    assert bytes(entry["bytes"]).decode() == entry["token"]
    assert [found["logprob"] for found in entry["top_logprobs"]] == [-0.25, -0.5]


def test_completion_log_probabilities_say_where_each_token_begins() -> None:
    steps = [[delta(char, token_ids=[i], logprobs=[TokenLogprobs(i, -1.0, 1)])] for i, char in enumerate("ab")]
    steps.append([delta("c", FinishReason.LENGTH, token_ids=[2], logprobs=[TokenLogprobs(2, float("-inf"), 9)])])
    logprobs = complete(ScriptedClient(steps), logprobs=0).json()["choices"][0]["logprobs"]
    assert logprobs["text_offset"] == [0, 1, 2]
    assert logprobs["token_logprobs"] == [-1.0, -1.0, -9999.0]
    streamed = events(complete(ScriptedClient(steps), logprobs=0, stream=True))
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in streamed] == [[0], [1], [2]]


def test_prompt_log_probabilities_come_in_vllms_shape() -> None:
    found = [None, TokenLogprobs(7, -2.0, 3, top=((8, -0.5),))]
    answer = complete(
        ScriptedClient([[delta("x", FinishReason.STOP, prompt_logprobs=found)]]), prompt_logprobs=1
    ).json()
    first, second = answer["choices"][0]["prompt_logprobs"]
    assert first is None
    assert {key: (entry["logprob"], entry["rank"]) for key, entry in second.items()} == {"8": (-0.5, 1), "7": (-2.0, 3)}


def test_a_stop_string_that_ended_a_choice_is_named() -> None:
    client = ScriptedClient([[delta("x", FinishReason.STOP, stop_reason="END")]])
    assert complete(client, stop="END").json()["choices"][0]["stop_reason"] == "END"


def test_a_seed_is_drawn_where_the_client_gives_none() -> None:
    client = ScriptedClient(HELLO)
    complete(client)
    complete(client)
    complete(client, seed=7)
    seeds = [request.params.seed for request in client.requests]
    assert None not in seeds
    assert seeds[0] != seeds[1]
    assert seeds[2] == 7


def test_priority_and_cache_salt_reach_the_engine() -> None:
    client = ScriptedClient(HELLO)
    complete(client, priority=-3, cache_salt="tenant")
    assert (client.requests[0].priority, client.requests[0].cache_salt) == (-3, "tenant")


def test_models_are_listed_and_found() -> None:
    listed = send(ScriptedClient([]), "GET", "/v1/models").json()
    assert [model["id"] for model in listed["data"]] == ["tiny"]
    assert send(ScriptedClient([]), "GET", "/v1/models/tiny").json() == listed["data"][0]
    assert listed["data"][0]["max_model_len"] == 128


@pytest.mark.parametrize("path", ["/v1/models/other", "/v1/models/org/other"])
def test_an_unknown_model_is_not_found(path: str) -> None:
    response = send(ScriptedClient([]), "GET", path)
    assert (response.status_code, error_of(response)["code"]) == (404, "model_not_found")


def test_a_request_for_another_model_is_not_found() -> None:
    response = complete(ScriptedClient(HELLO), model="other")
    assert (response.status_code, error_of(response)["code"], error_of(response)["param"]) == (
        404,
        "model_not_found",
        "model",
    )


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)])
def test_unknown_routes_answer_in_the_same_shape(method: str, path: str, status: int) -> None:
    response = send(ScriptedClient([]), method, path)
    assert response.status_code == status
    error_of(response)


def test_bad_json_is_a_bad_request() -> None:
    response = send(ScriptedClient([]), "POST", "/v1/completions", b'{"model": ')
    assert (response.status_code, error_of(response)["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_a_body_above_the_limit_is_refused_before_it_is_read_to_its_end(path: str, declared: bool) -> None:
    app = Routes(TextService(ScriptedClient([]), tiny_card(), NO_RESUME)).app()  # type: ignore[arg-type]
    headers = [(b"content-length", str(MAX_BODY_BYTES + 1).encode())] if declared else []
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    num_read, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal num_read
        num_read += 1
        return {"type": "http.request", "body": b" " * (MAX_BODY_BYTES // 2), "more_body": True}  # without end

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert (sent[0]["status"], json.loads(sent[1]["body"])["error"]["code"]) == (413, "body_too_large")
    assert num_read == (0 if declared else 3)


def test_a_body_at_the_limit_is_read() -> None:
    body = json.dumps({"model": "tiny", "prompt": "hi"}).encode().ljust(MAX_BODY_BYTES)
    assert send(ScriptedClient(HELLO), "POST", "/v1/completions", body).status_code == 200


def test_what_exceeds_the_context_says_so_by_code() -> None:
    response = complete(ScriptedClient(HELLO), prompt="x" * 200)
    assert (response.status_code, error_of(response)["code"]) == (400, "context_length_exceeded")


def test_an_output_limit_above_the_context_is_refused_under_the_name_that_the_client_used() -> None:
    response = chat(ScriptedClient(HELLO), max_completion_tokens=200)
    assert (response.status_code, error_of(response)["param"]) == (400, "max_completion_tokens")


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_has_its_own_status(stream: bool) -> None:
    refused = RayTaskError("generate", "traceback", InvalidRequest("no such thing", "stop")).as_instanceof_cause()
    response = complete(ScriptedClient([refused]), stream=stream)
    assert (response.status_code, error_of(response)["param"]) == (400, "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_dead_engine_is_unavailable(stream: bool) -> None:
    assert complete(ScriptedClient([EngineDead("gone")]), stream=stream).status_code == 503


def test_backpressure_says_when_to_come_back() -> None:
    full = BackPressureError(num_queued_requests=1, max_queued_requests=1, status_code=429, retry_after_s=2)
    response = complete(ScriptedClient([full]))
    assert (response.status_code, response.headers["retry-after"]) == (429, "2")


def test_our_own_bug_is_a_500_without_details() -> None:
    response = complete(ScriptedClient([KeyError("secret")]))
    assert response.status_code == 500
    assert "secret" not in response.text


def test_an_engine_that_dies_midway_ends_the_stream_with_an_error_and_without_done() -> None:
    response = complete(ScriptedClient([[delta("a")], EngineDead("gone")]), stream=True)
    last = [line for line in response.text.split("\n\n") if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"


@pytest.mark.parametrize("dead", [EngineDead("gone"), TimeoutError()])
def test_health_follows_the_engine(dead: Exception) -> None:
    assert send(ScriptedClient([]), "GET", "/health").status_code == 200
    assert send(ScriptedClient([], dead=dead), "GET", "/health").status_code == 503


@pytest.mark.parametrize("sends", [False, True], ids=["before the status is sent", "while it waits for a token"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_cancelled_request_closes_its_engine_streams(stream: bool, sends: bool) -> None:
    client = ScriptedClient([[delta("a")], [delta("b")]], never_ends=True)
    app = Routes(TextService(client, tiny_card(), NO_RESUME)).app()  # type: ignore[arg-type]
    body = json.dumps({"model": "tiny", "prompt": ["p", "q"], "stream": stream}).encode()
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}

    async def run() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def nowhere(message: Any) -> None:
            if not sends:
                await asyncio.Event().wait()

        serving = asyncio.ensure_future(app(scope, receive, nowhere))
        for _ in range(100):  # let it come to wait for a token that never comes
            await asyncio.sleep(0)
        assert len(client.requests) == 2
        assert client.aborted == []
        serving.cancel()
        await asyncio.wait({serving})
        assert sorted(client.aborted) == sorted(request.request_id for request in client.requests)

    asyncio.run(run())
