from collections.abc import Callable
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from serve_paged.config import DEFAULT_MODEL
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.detokenizer import Detokenizer
from serve_paged.model.source import model_folder
from tests.engine.tiny_tokenizers import TEXTS, byte_fallback, byte_level, metaspace

REPLACEMENT = "\ufffd"
BYTE_LEVEL, BYTE_FALLBACK, METASPACE = byte_level(), byte_fallback(), metaspace()
KEEP_SPECIAL = SamplingParams(skip_special_tokens=False)


def deltas(
    tokenizer: Tokenizer, prompt: list[int], output: list[int], params: SamplingParams | None = None
) -> list[str]:
    """One delta per token, and the rest."""
    detokenizer = Detokenizer(tokenizer, params or SamplingParams(), prompt, [])
    return [*(detokenizer.append(token_id) for token_id in output), detokenizer.finish()]


def added_text(tokenizer: Tokenizer, prompt: list[int], output: list[int], *, skip_special_tokens: bool) -> str:
    """What decoding prompt and output at once adds to the prompt's own text."""
    before = tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)
    whole = tokenizer.decode(prompt + output, skip_special_tokens=skip_special_tokens)
    same = 0
    while same < min(len(before), len(whole)) and before[same] == whole[same]:
        same += 1
    return whole[same:]


def join(parts: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def token_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Random ids, and encodings of real text cut anywhere."""
    random_ids = st.lists(st.integers(0, tokenizer.get_vocab_size() - 1), max_size=6)
    encoded = [tokenizer.encode(text).ids for text in TEXTS]
    bounds = st.integers(0, 60)
    slices = st.builds(lambda ids, start, size: ids[start : start + size], st.sampled_from(encoded), bounds, bounds)
    return st.lists(st.one_of(random_ids, slices), max_size=4).map(join)


def assert_text_is_that_of_the_whole(tokenizer: Tokenizer, prompt: list[int], output: list[int], skip: bool) -> None:
    params = SamplingParams(skip_special_tokens=skip)
    *parts, rest = deltas(tokenizer, prompt, output, params)
    text = "".join(parts) + rest
    assert text == added_text(tokenizer, prompt, output, skip_special_tokens=skip)
    assert not any(part.endswith(REPLACEMENT) for part in parts)  # such an end may still become a character
    assert rest == "" or rest.endswith(REPLACEMENT)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(token_ids(BYTE_LEVEL), token_ids(BYTE_LEVEL), st.booleans())
def test_byte_level_text_is_that_of_the_whole(prompt: list[int], output: list[int], skip: bool) -> None:
    assert_text_is_that_of_the_whole(BYTE_LEVEL, prompt, output, skip)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(token_ids(METASPACE), token_ids(METASPACE), st.booleans())
def test_metaspace_text_is_that_of_the_whole(prompt: list[int], output: list[int], skip: bool) -> None:
    assert_text_is_that_of_the_whole(METASPACE, prompt, output, skip)


def sentencepiece_ids() -> st.SearchStrategy[list[int]]:
    """Words, special tokens and characters spelled in bytes, each complete."""
    spelled = st.sampled_from("é日😀aß\n").map(lambda char: [3 + byte for byte in char.encode()])
    words = st.integers(259, BYTE_FALLBACK.get_vocab_size() - 1).map(lambda token_id: [token_id])
    special = st.sampled_from([[1], [2]])
    return st.lists(st.one_of(spelled, words, special), max_size=12).map(join)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(sentencepiece_ids(), st.sampled_from("日😀"), sentencepiece_ids(), st.integers(0, 2), st.booleans())
@example([3 + byte for byte in "日😀".encode()], "日", [], 2, False)  # eight tokens back lies within a character
def test_byte_fallback_text_is_that_of_the_whole(
    prompt: list[int], char: str, output: list[int], num_in_prompt: int, skip: bool
) -> None:
    spelled = [3 + byte for byte in char.encode()]  # the prompt may end within this character
    parts = deltas(
        BYTE_FALLBACK,
        prompt + spelled[:num_in_prompt],
        spelled[num_in_prompt:] + output,
        SamplingParams(skip_special_tokens=skip),
    )
    whole = BYTE_FALLBACK.decode(prompt + spelled + output, skip_special_tokens=skip)
    before = BYTE_FALLBACK.decode(prompt, skip_special_tokens=skip)
    assert before + "".join(parts) == whole
    assert not any(REPLACEMENT in part for part in parts)


@pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, BYTE_FALLBACK])
@pytest.mark.parametrize("text", TEXTS)
def test_real_text_arrives_without_a_replacement_character(tokenizer: Tokenizer, text: str) -> None:
    prompt = tokenizer.encode("a").ids
    output = [token_id for char in text for token_id in spell(tokenizer, char)]
    parts = deltas(tokenizer, prompt, output)
    assert "".join(parts) == text
    assert not any(REPLACEMENT in part for part in parts)


def spell(tokenizer: Tokenizer, char: str) -> list[int]:
    if tokenizer is BYTE_FALLBACK:
        return [3 + byte for byte in char.encode()]
    ids: list[int] = tokenizer.encode(char).ids
    return ids


def test_an_incomplete_character_at_the_end_becomes_one_replacement_character() -> None:
    output = BYTE_LEVEL.encode("é").ids + [BYTE_LEVEL.token_to_id(c) for c in "ðŁ"]  # the first half of an emoji
    parts = deltas(BYTE_LEVEL, BYTE_LEVEL.encode("x").ids, output)
    assert "".join(parts) == "é" + REPLACEMENT
    assert parts[-1] == REPLACEMENT


def test_a_character_that_the_prompt_began_is_given_whole() -> None:
    whole = [BYTE_LEVEL.token_to_id(c) for c in "ðŁĺĢ"]
    prompt = BYTE_LEVEL.encode("Hello").ids
    assert "".join(deltas(BYTE_LEVEL, prompt + whole[:2], whole[2:])) == "😀"


def test_the_first_word_keeps_its_space_after_a_prompt_but_not_at_the_start() -> None:
    hello = BYTE_FALLBACK.token_to_id("▁Hello")
    assert "".join(deltas(BYTE_FALLBACK, [1, hello], [hello])) == " Hello"
    assert "".join(deltas(BYTE_FALLBACK, [1], [hello])) == "Hello"
    assert "".join(deltas(BYTE_FALLBACK, [1], [hello], KEEP_SPECIAL)) == " Hello"


def test_special_tokens_are_text_only_if_asked_for() -> None:
    end, tool = BYTE_LEVEL.token_to_id("<|end|>"), BYTE_LEVEL.token_to_id("<tool>")
    prompt = BYTE_LEVEL.encode("x").ids
    assert "".join(deltas(BYTE_LEVEL, prompt, [end, tool, end])) == "<tool>"
    assert "".join(deltas(BYTE_LEVEL, prompt, [end, tool], KEEP_SPECIAL)) == "<|end|><tool>"


@pytest.mark.parametrize("token", ["<|end|>", "Ģ"])  # a skipped token, and a byte that begins no character
def test_tokens_that_never_make_a_character_do_not_pile_up(token: str) -> None:
    prompt, hello = BYTE_LEVEL.encode("x").ids, BYTE_LEVEL.encode(" Hello").ids
    output = [BYTE_LEVEL.token_to_id(token)] * 500 + hello
    parts = deltas(BYTE_LEVEL, prompt, output)
    assert "".join(parts) == BYTE_LEVEL.decode(output)
    longest_wait = 40
    assert len("".join(parts[:500])) >= len(BYTE_LEVEL.decode(output[:500])) - longest_wait


def test_the_next_word_keeps_its_space_after_many_skipped_tokens() -> None:
    hello = BYTE_FALLBACK.token_to_id("▁Hello")
    assert "".join(deltas(BYTE_FALLBACK, [], [hello, *[2] * 50, hello])) == "Hello Hello"


def test_bytes_that_turn_an_earlier_one_invalid_do_not_change_what_was_given() -> None:
    letter, stray, word = 3 + ord("A"), 3 + 0x80, BYTE_FALLBACK.token_to_id("lo")
    parts = deltas(BYTE_FALLBACK, [BYTE_FALLBACK.token_to_id("a")], [letter, stray, word, word])
    assert parts == ["A", "", REPLACEMENT + "lo", "lo", ""]


def test_a_long_prompt_of_special_tokens_is_looked_through_for_text() -> None:
    hello = BYTE_FALLBACK.token_to_id("▁Hello")
    assert "".join(deltas(BYTE_FALLBACK, [hello, *[1] * 50], [hello])) == " Hello"


@pytest.mark.parametrize("make", [byte_level, byte_fallback, metaspace])
def test_nothing_in_gives_nothing_out(make: Callable[[], Tokenizer]) -> None:
    assert deltas(make(), [], []) == [""]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(token_ids(BYTE_LEVEL), token_ids(BYTE_LEVEL), st.integers(0, 60), st.booleans())
def test_a_resumed_text_goes_on_where_the_first_attempt_was(
    prompt: list[int], output: list[int], num_sent: int, include: bool
) -> None:
    params = SamplingParams(stop=("lo", "😀", "\n\n"), include_stop_str_in_output=include)
    first = Detokenizer(BYTE_LEVEL, params, prompt)
    sent = "".join(first.append(token_id) for token_id in output[:num_sent])
    second = Detokenizer(BYTE_LEVEL, params, prompt, output[:num_sent])
    assert second.num_safe_chars == first.num_safe_chars == len(sent)
    assert second.stopped_by == first.stopped_by
    for token_id in output[num_sent:]:
        assert second.append(token_id) == first.append(token_id)
    assert second.finish() == first.finish()
    assert second.num_safe_chars == first.num_safe_chars


@pytest.fixture(scope="module")
def default_tokenizer() -> Tokenizer:
    folder: Path = model_folder(DEFAULT_MODEL)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.data())
def test_text_of_the_default_model_s_tokenizer_is_that_of_the_whole(
    default_tokenizer: Tokenizer, data: st.DataObject
) -> None:
    ids = token_ids(default_tokenizer)
    assert_text_is_that_of_the_whole(default_tokenizer, data.draw(ids), data.draw(ids), data.draw(st.booleans()))


@pytest.mark.parametrize("text", TEXTS)
def test_the_default_model_s_tokenizer_streams_real_text(default_tokenizer: Tokenizer, text: str) -> None:
    prompt = default_tokenizer.encode("<|im_start|>assistant\n").ids
    parts = deltas(default_tokenizer, prompt, default_tokenizer.encode(text).ids)
    assert "".join(parts) == text
    assert not any(REPLACEMENT in part for part in parts)
