"""The Python handle: `generate` and `chat` of the app, streamed, unary and cancelled."""

import asyncio
import time
from typing import Any

import pytest
from ray.serve.exceptions import RequestCancelledError
from tokenizers import Tokenizer

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.outputs import EngineStats

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def idle_stats(engine_handle: Any, within_s: float = 10.0) -> EngineStats:
    """The engine's state once nothing runs any more."""
    deadline = time.monotonic() + within_s
    while True:
        stats: EngineStats = engine_handle.stats.remote().result()
        if stats.num_running + stats.num_waiting == 0 or time.monotonic() > deadline:
            return stats
        time.sleep(0.02)


def assert_all_free(stats: EngineStats) -> None:
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def test_chat_answers_as_a_whole(app_handle: Any) -> None:
    result = app_handle.chat.remote(QUESTION, stream=False, temperature=0).result(timeout_s=60)
    assert "Paris" in result.text
    assert result.choices[0].finish_reason == "stop"


def test_chat_streams_the_same_answer(app_handle: Any) -> None:
    whole = app_handle.chat.remote(QUESTION, stream=False, temperature=0).result(timeout_s=60)
    deltas = list(app_handle.options(stream=True).chat.remote(QUESTION, temperature=0))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert deltas[-1].finish_reason == "stop"


def test_generate_takes_text_or_token_ids(app_handle: Any, tokenizer: Tokenizer) -> None:
    settings = {"stream": False, "temperature": 0, "max_tokens": 8}
    text = app_handle.generate.remote("The sky is", **settings).result(timeout_s=60)
    token_ids = app_handle.generate.remote(tokenizer.encode("The sky is").ids, **settings).result(timeout_s=60)
    assert text.choices[0].token_ids == token_ids.choices[0].token_ids
    assert text.num_output_tokens == 8


def test_generate_streams_every_choice(app_handle: Any) -> None:
    deltas = list(app_handle.options(stream=True).generate.remote("Hello", n=2, max_tokens=5, ignore_eos=True, seed=1))
    counts = [sum(len(delta.token_ids) for delta in deltas if delta.choice == choice) for choice in (0, 1)]
    assert counts == [5, 5]


def test_an_async_driver_can_stream_too(app_handle: Any) -> None:
    async def run() -> str:
        response = app_handle.options(stream=True).chat.remote(QUESTION, temperature=0)
        return "".join([delta.text async for delta in response])

    assert "Paris" in asyncio.run(run())


def test_an_unknown_argument_is_refused_by_name(app_handle: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        app_handle.generate.remote("a", stream=False, temprature=1).result(timeout_s=30)
    assert refused.value.param == "temprature"


def test_cancelling_a_stream_frees_its_blocks(app_handle: Any, engine_handle: Any) -> None:
    response = app_handle.options(stream=True).generate.remote("Hello", max_tokens=1500, ignore_eos=True)
    next(response)
    assert engine_handle.stats.remote().result().num_running == 1
    response.cancel()
    assert_all_free(idle_stats(engine_handle))


def test_cancelling_a_unary_call_frees_its_blocks(app_handle: Any, engine_handle: Any) -> None:
    response = app_handle.generate.remote("Hello", stream=False, max_tokens=1500, ignore_eos=True)
    deadline = time.monotonic() + 20
    while engine_handle.stats.remote().result().num_running == 0:
        assert time.monotonic() < deadline
    response.cancel()
    with pytest.raises(RequestCancelledError):
        response.result(timeout_s=30)
    assert_all_free(idle_stats(engine_handle))
