"""What the protocol accepts, what it refuses by name, and what reaches the engine."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serve_paged.core.errors import InvalidRequest
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.serve.protocol import (
    ChatCompletionRequest,
    ChatRequest,
    CompletionRequest,
    GenerateRequest,
    parse_arguments,
    parse_body,
)

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def chat(**fields: Any) -> ChatCompletionRequest:
    return parse_body(ChatCompletionRequest, json.dumps(CHAT | fields).encode())


def completion(**fields: Any) -> CompletionRequest:
    return parse_body(CompletionRequest, json.dumps({"model": "m", "prompt": "hi"} | fields).encode())


def refused_chat(**fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        chat(**fields).sampling_params()
    return refused.value


def test_defaults_reach_the_engine_as_its_own_defaults() -> None:
    assert chat().sampling_params() == SamplingParams()


def test_completions_default_to_sixteen_tokens() -> None:
    assert completion().sampling_params() == SamplingParams(max_tokens=16)


def test_every_sampling_field_reaches_the_engine() -> None:
    fields: dict[str, Any] = {
        "n": 2, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1,
        "presence_penalty": 0.2, "frequency_penalty": -0.3, "logit_bias": {"7": -5}, "seed": 11, "max_tokens": 9,
        "min_tokens": 2, "stop": ["a", "b"], "stop_token_ids": [3], "include_stop_str_in_output": True,
        "ignore_eos": True, "skip_special_tokens": False, "prompt_logprobs": 1, "logprobs": True, "top_logprobs": 4,
    }  # fmt: skip
    expected = fields | {"logit_bias": {7: -5.0}, "stop": ("a", "b"), "stop_token_ids": (3,), "logprobs": 4}
    del expected["top_logprobs"]
    assert chat(**fields).sampling_params() == SamplingParams(**expected)


def test_a_single_stop_string_may_stand_alone() -> None:
    assert completion(stop="END").sampling_params().stop == ("END",)


def test_null_means_the_default() -> None:
    assert chat(temperature=None, stop=None, max_tokens=None, stream=None).sampling_params() == SamplingParams()


def test_logprobs_without_alternatives_ask_for_the_chosen_token_only() -> None:
    assert chat(logprobs=True).sampling_params().logprobs == 0


def test_max_completion_tokens_is_the_newer_name_of_max_tokens() -> None:
    assert chat(max_completion_tokens=7).sampling_params().max_tokens == 7


def test_fields_that_cannot_change_the_output_are_accepted() -> None:
    chat(user="u", metadata={"k": "v"}, store=False, service_tier="auto", response_format={"type": "text"})


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": []}, "tools"),
        ({"best_of": 3}, "best_of"),
        ({"store": True}, "store"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": True}, "n"),
        ({"top_p": 0}, "top_p"),
        ({"seed": 2**63}, "seed"),
        ({"priority": -11}, "priority"),
        ({"priority": 11}, "priority"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"stop": [""]}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_completion_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"foo": 1}}, "stream_options.foo"),
        ({"stream": True, "prompt_logprobs": 1}, "prompt_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format.type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "wizard", "content": ""}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
    ],
)
def test_a_bad_field_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    assert (refused_chat(**fields).param or "").startswith(param)


def test_a_missing_model_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="Missing required argument: model") as refused:
        parse_body(ChatCompletionRequest, b'{"messages": [{"role": "user", "content": "hi"}]}')
    assert refused.value.param == "model"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"a": "\xff"}', b'{"model": NaN}'])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidRequest):
        parse_body(CompletionRequest, body)


def test_nan_is_not_a_temperature() -> None:
    with pytest.raises(InvalidRequest):
        parse_body(CompletionRequest, b'{"model": "m", "prompt": "a", "temperature": NaN}')


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_comes_in_four_shapes(prompt: Any, prompts: list[Any]) -> None:
    assert completion(prompt=prompt).prompts() == prompts


@pytest.mark.parametrize("prompt", [[1, "a"], [[1], "a"], 5, None, [-1], {"a": 1}])
def test_other_shapes_of_a_prompt_are_refused_by_name(prompt: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(prompt=prompt)
    assert (refused.value.param or "").startswith("prompt")


def test_an_empty_list_of_prompts_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        completion(prompt=[]).prompts()


@pytest.mark.parametrize(("num_prompts", "n"), [(128, 1), (64, 2), (1, 128)])
def test_a_body_may_ask_for_128_completions(num_prompts: int, n: int) -> None:
    assert len(completion(prompt=["a"] * num_prompts, n=n).prompts()) == num_prompts


@pytest.mark.parametrize(("num_prompts", "n"), [(129, None), (65, 2), (2, 65)])
def test_more_than_128_completions_in_one_body_are_refused(num_prompts: int, n: int | None) -> None:
    with pytest.raises(InvalidRequest, match="at most 128") as refused:
        completion(prompt=["a"] * num_prompts, n=n).prompts()
    assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("prompt", [1] * (2**20 + 1), "prompt"),
        ("prompt", [["x"]] * 10, "prompt[0][0]"),
        ("stop", ["x"] * 65, "stop"),
        ("stop_token_ids", [1] * 257, "stop_token_ids"),
    ],
    ids=["prompt", "bad prompts", "stop", "stop_token_ids"],
)
def test_a_list_that_is_too_long_or_wrong_is_refused_by_name(field: str, value: Any, param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(**{field: value})
    assert refused.value.param == param


def test_a_conversation_that_is_too_long_is_refused_by_name() -> None:
    assert refused_chat(messages=[{"role": "user", "content": ""}] * 8193).param == "messages"


def test_of_many_wrong_items_only_the_first_is_noted() -> None:
    body = json.dumps({"model": "m", "prompt": [None] * 100_000}).encode()
    with pytest.raises(InvalidRequest) as refused:
        parse_body(CompletionRequest, body)
    cause = refused.value.__cause__
    assert isinstance(cause, ValidationError)
    assert cause.error_count() < 10


def test_too_many_choices_of_one_prompt_are_refused_as_n() -> None:
    request = completion(prompt=["a"], n=129)
    assert request.prompts() == ["a"]
    with pytest.raises(InvalidRequest) as refused:
        request.sampling_params()
    assert refused.value.param == "n"


@pytest.mark.parametrize("priority", [-10, 10])
def test_the_most_extreme_priorities_are_accepted(priority: int) -> None:
    assert completion(priority=priority).priority == priority


def test_echo_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        completion(echo=True)
    assert refused.value.param == "echo"


def test_text_parts_are_joined_for_the_template() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    request = chat(messages=[{"role": "developer", "content": parts}])
    assert request.messages[0].for_template() == {"role": "system", "content": "one\ntwo"}


def test_an_answer_can_be_sent_back_as_it_came() -> None:
    answered = {"role": "assistant", "content": "hello", "refusal": None}
    assert chat(messages=[answered]).messages[0].for_template() == {"role": "assistant", "content": "hello"}


def test_the_python_handle_takes_tuples_for_lists() -> None:
    request = parse_arguments(GenerateRequest, {"prompt": (1, 2), "stop": ("x",), "stop_token_ids": (4,)})
    assert request.prompt == [1, 2]
    assert request.sampling_params() == SamplingParams(stop=("x",), stop_token_ids=(4,))


def test_the_python_handle_takes_tuples_of_messages_and_of_their_parts() -> None:
    parts = ({"type": "text", "text": "one"},)
    request = parse_arguments(ChatRequest, {"messages": ({"role": "user", "content": parts},)})
    assert request.messages[0].for_template() == {"role": "user", "content": "one"}


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"temperature": True}, "temperature"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 5.0}, "max_tokens"),
        ({"prompt": b"ab"}, "prompt"),
        ({"prompt": [1, True]}, "prompt[1]"),
        ({"prompt": {1, 2}}, "prompt"),
        ({"ignore_eos": 1}, "ignore_eos"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"stop": b"x"}, "stop"),
        ({"temperature": float("nan")}, "temperature"),
    ],
)
def test_the_python_handle_converts_no_value(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_arguments(GenerateRequest, {"prompt": "a", **arguments})
    assert refused.value.param == param


@pytest.mark.parametrize(
    ("arguments", "param"),
    [({"prompt": "\ud800"}, "prompt"), ({"stop": ["a\udfff"]}, "stop[0]"), ({"cache_salt": "\ud800"}, "cache_salt")],
    ids=["prompt", "stop", "cache_salt"],
)
def test_text_that_utf8_cannot_hold_is_refused_by_name(arguments: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest, match="surrogates not allowed") as refused:
        parse_arguments(GenerateRequest, {"prompt": "a", **arguments})
    assert refused.value.param == param


@pytest.mark.parametrize(
    "message", [{"content": "\ud800"}, {"content": [{"type": "text", "text": "\ud800"}]}], ids=repr
)
def test_a_message_that_utf8_cannot_hold_is_refused_by_name(message: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="surrogates not allowed") as refused:
        parse_arguments(ChatRequest, {"messages": [{"role": "user", **message}]})
    assert (refused.value.param or "").startswith("messages[0].content")


def test_the_python_handle_refuses_an_unknown_argument_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_arguments(GenerateRequest, {"prompt": "a", "temprature": 1.0})
    assert refused.value.param == "temprature"
