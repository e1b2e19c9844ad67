"""The real server over real HTTP: Ray Serve, engine and default model."""

import json
from typing import Any

import httpx
import openai
import pytest
from tokenizers import Tokenizer

from tests.serve.server import Server

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def test_a_streamed_chat_answers_a_question(client: openai.OpenAI, model: str) -> None:
    stream = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert "Paris" in text
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "stop"
    assert chunks[-1].usage.completion_tokens == len(chunks) - 1  # alone: every token travels at once


def test_an_unstreamed_chat_gives_the_same_answer(client: openai.OpenAI, model: str) -> None:
    whole = client.chat.completions.create(model=model, messages=QUESTION, temperature=0)
    stream = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, stream=True)
    assert whole.choices[0].message.content == "".join(chunk.choices[0].delta.content or "" for chunk in stream)


def test_choices_of_one_seed_differ_from_each_other_and_repeat(client: openai.OpenAI, model: str) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(model=model, prompt="Once upon a time", n=3, seed=5, max_tokens=12)
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) == 3
    assert ask() == first


def test_token_ids_and_their_text_are_the_same_prompt(client: openai.OpenAI, tokenizer: Tokenizer, model: str) -> None:
    prompts: list[Any] = ["The sky is", tokenizer.encode("The sky is").ids]
    texts = [client.completions.create(model=model, prompt=p, temperature=0).choices[0].text for p in prompts]
    assert texts[0] == texts[1]


def test_a_second_turn_finds_the_first_in_the_prefix_cache(client: openai.OpenAI, model: str) -> None:
    messages = [{"role": "user", "content": "Tell me about the history of bread. " * 4}]
    client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    again = client.chat.completions.create(model=model, messages=messages, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens >= 16


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(model=model, messages=QUESTION, temperature=0, stop=" France")
    assert answer.choices[0].message.content == "The capital of"
    assert answer.choices[0].finish_reason == "stop"


def test_log_probabilities_are_of_the_tokens_sent(client: openai.OpenAI, model: str) -> None:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=4, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == answer.choices[0].message.content
    assert all(entry.logprob == max(top.logprob for top in entry.top_logprobs) for entry in entries)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"foo": 1}, 400, "foo"),
        ({"model": "other"}, 404, "model"),
        ({"temperature": -1}, 400, "temperature"),
        ({"max_tokens": 10**6}, 400, "max_tokens"),
        ({"messages": []}, 400, "messages"),
        ({"logit_bias": {"49152": 1}}, 400, "logit_bias"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_refused_by_name(
    server: Server, model: str, fields: dict[str, Any], status: int, param: str, stream: bool
) -> None:
    body = {"model": model, "messages": QUESTION, "stream": stream} | fields
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=30)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    "fields",
    [
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"top_k": -1, "min_p": 1.0, "top_p": 1e-9},
        {"temperature": 1e-6},
        {"temperature": 100.0},
        {"logit_bias": {"0": 100, "49151": -100}},
        {"stop_token_ids": [0, 49151], "min_tokens": 4},
        {"stop": ["\n", "é", "🙂"], "include_stop_str_in_output": True},
        {"repetition_penalty": 0.01, "frequency_penalty": -2, "presence_penalty": 2},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "user", "content": "🙂\u0000<|im_end|>\n{{ x }}"}]},
        {"logprobs": True, "top_logprobs": 20, "prompt_logprobs": 20, "stream": False},
        {"n": 5, "cache_salt": "é", "priority": -5},
    ],
    ids=str,
)
def test_odd_but_valid_values_are_served(server: Server, model: str, fields: dict[str, Any]) -> None:
    body = {"model": model, "messages": QUESTION, "max_tokens": 4} | fields
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert response.status_code == 200, response.text
    assert all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])


@pytest.mark.parametrize("path", ["/v1/nowhere", "/"])
def test_an_unknown_route_is_a_404_in_openais_shape(server: Server, path: str) -> None:
    response = httpx.get(server.url + path)
    assert response.status_code == 404
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_the_clients_request_id_comes_back(server: Server, model: str) -> None:
    response = httpx.get(f"{server.url}/v1/models", headers={"X-Request-Id": "mine"})
    assert response.headers.get_list("x-request-id") == ["mine"]


def test_the_server_is_healthy(server: Server) -> None:
    assert httpx.get(f"{server.url}/health").status_code == 200


def test_the_printed_curl_line_streams_the_answer(server: Server, model: str) -> None:
    printed = "".join(server.output)
    body = printed[printed.index("-d '{") + 4 : printed.index("}'") + 1]
    response = httpx.post(f"{server.url}/v1/chat/completions", content=body, timeout=60)
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines.pop() == "[DONE]"
    assert "Paris" in "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines)


def test_the_server_listens_for_http_on_this_machine_only(server: Server) -> None:
    import psutil

    port = httpx.URL(server.url).port
    family = psutil.Process(server.process.pid).children(recursive=True)
    listening = {c.laddr for p in family for c in p.net_connections("tcp") if c.status == "LISTEN"}
    assert {address.ip for address in listening if address.port == port} == {"127.0.0.1"}
