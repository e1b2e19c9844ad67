"""Prompts to tokens, and tokens to bytes."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.serve.token_bytes import TokenBytes
from serve_paged.serve.tokenization import PromptTokenizer
from tests.serve.fakes import tiny_card

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 世界! 🙂"}]


def tokenizer(max_model_len: int = 128) -> PromptTokenizer:
    return PromptTokenizer(tiny_card(max_model_len))


def test_a_conversation_gets_the_tokens_that_transformers_gives_it(tiny_model_folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_model_folder)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert asyncio.run(tokenizer().encode_chat(MESSAGES)) == expected


def test_a_long_text_gets_the_same_tokens_as_its_parts() -> None:
    long = "abcd" * 5000
    assert asyncio.run(tokenizer().encode(long)) == asyncio.run(tokenizer().encode("abcd")) * 5000


def test_token_ids_pass_unchanged() -> None:
    assert asyncio.run(tokenizer().encode([5, 6, 7])) == [5, 6, 7]


def test_a_token_id_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="outside the vocabulary") as refused:
        asyncio.run(tokenizer().encode([5, 259]))
    assert refused.value.param == "prompt"


def test_a_model_without_a_template_refuses_conversations() -> None:
    bare = PromptTokenizer(replace(tiny_card(), chat_template=None))
    with pytest.raises(InvalidRequest) as refused:
        asyncio.run(bare.encode_chat(MESSAGES))
    assert refused.value.param == "messages"


def test_what_a_template_refuses_is_a_bad_request() -> None:
    picky = PromptTokenizer(replace(tiny_card(), chat_template="{{ raise_exception('roles must alternate') }}"))
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        asyncio.run(picky.encode_chat(MESSAGES))


def test_a_template_cannot_reach_python() -> None:
    evil = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(InvalidRequest, match="unsafe"):
        asyncio.run(PromptTokenizer(replace(tiny_card(), chat_template=evil)).encode_chat(MESSAGES))


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="at least one token"):
        tokenizer().check([], SamplingParams(), "prompt", "max_tokens")


@pytest.mark.parametrize(
    ("num_prompt", "max_tokens", "param"), [(10, None, "messages"), (11, 1, "messages"), (9, 2, "limit")]
)
def test_what_exceeds_the_context_is_refused(num_prompt: int, max_tokens: int | None, param: str) -> None:
    with pytest.raises(RequestTooLong) as refused:
        tokenizer(max_model_len=10).check([1] * num_prompt, SamplingParams(max_tokens=max_tokens), "messages", "limit")
    assert refused.value.param == param


def test_what_fills_the_context_exactly_is_accepted() -> None:
    tokenizer(max_model_len=10).check([1] * 9, SamplingParams(max_tokens=1), "messages", "max_tokens")


@pytest.mark.parametrize(
    "params", [SamplingParams(logit_bias={259: 1.0}), SamplingParams(stop_token_ids=(259,))], ids=["bias", "stop"]
)
def test_parameters_naming_a_token_outside_the_vocabulary_are_refused(params: SamplingParams) -> None:
    with pytest.raises(InvalidRequest, match="outside the vocabulary"):
        tokenizer().check([1], params, "prompt", "max_tokens")


def test_the_tokens_of_a_text_are_its_bytes() -> None:
    text = "Grüße 🙂\n"
    service = tokenizer()
    token_ids = asyncio.run(service.encode(text))
    assert b"".join(map(service.token_bytes, token_ids)) == text.encode()


def test_sentencepiece_tokens_have_bytes_too() -> None:
    spec = {"decoder": {"type": "Sequence"}, "added_tokens": [{"content": "</s>"}]}
    bytes_of = TokenBytes(json.dumps(spec))
    assert [bytes_of(token) for token in ("▁the", "<0xE2>", "</s>")] == [b" the", b"\xe2", b"</s>"]
