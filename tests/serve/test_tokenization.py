"""Prompts to tokens, and tokens to bytes."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.serve.token_bytes import TokenBytes
from serve_paged.serve.tokenization import PromptTokenizer
from tests.serve.fakes import tiny_card
from tests.tiny_models import byte_level_tokenizer

LONGEST_TOKEN = max(byte_level_tokenizer().get_vocab(), key=len)
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüße, 世界! 🙂"}]


def tokenizer(max_model_len: int = 128) -> PromptTokenizer:
    return PromptTokenizer(tiny_card(max_model_len))


def test_a_conversation_gets_the_tokens_that_transformers_gives_it(tiny_model_folder: Path) -> None:
    theirs = AutoTokenizer.from_pretrained(tiny_model_folder)
    expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert asyncio.run(tokenizer().encode_chat(MESSAGES)) == expected


def test_a_long_text_gets_the_same_tokens_as_its_parts() -> None:
    long = "abcd" * 5000
    assert asyncio.run(tokenizer(max_model_len=20_001).encode(long)) == asyncio.run(tokenizer().encode("abcd")) * 5000


def test_token_ids_pass_unchanged() -> None:
    assert asyncio.run(tokenizer().encode([5, 6, 7])) == [5, 6, 7]


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


@pytest.mark.parametrize("field", ["prompt", "messages"])
def test_a_text_too_long_for_any_tokens_is_refused_unread(field: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = tokenizer(max_model_len=4)
    monkeypatch.setattr(service, "_tokenizer", None)  # using it would be an AttributeError
    text = "a" * (4 * len(LONGEST_TOKEN) + 1)
    encoding = service.encode(text) if field == "prompt" else service.encode_chat([{"role": "user", "content": text}])
    with pytest.raises(RequestTooLong) as refused:
        asyncio.run(encoding)
    assert refused.value.param == field


def test_a_text_of_the_longest_tokens_may_fill_the_context() -> None:
    assert len(asyncio.run(tokenizer(max_model_len=4).encode(LONGEST_TOKEN * 4))) == 4


def test_the_event_loop_turns_while_a_long_text_is_tokenised() -> None:
    service = tokenizer(max_model_len=10**7)

    async def run() -> tuple[float, float]:
        encoding = asyncio.ensure_future(service.encode("word " * 100_000))
        began = last = time.perf_counter()
        longest_s = 0.0
        while not encoding.done():
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest_s, last = max(longest_s, now - last), now
        return longest_s, last - began

    longest_s, total_s = asyncio.run(run())
    assert longest_s < total_s / 2


def test_the_tokens_of_a_text_are_its_bytes() -> None:
    text = "Grüße 🙂\n"
    service = tokenizer()
    token_ids = asyncio.run(service.encode(text))
    assert b"".join(map(service.token_bytes, token_ids)) == text.encode()


def test_sentencepiece_tokens_have_bytes_too() -> None:
    spec = {"decoder": {"type": "Sequence"}, "added_tokens": [{"content": "</s>"}]}
    bytes_of = TokenBytes(json.dumps(spec))
    assert [bytes_of(token) for token in ("▁the", "<0xE2>", "</s>")] == [b" the", b"\xe2", b"</s>"]
