"""The default model, as it is installed: its conversion, tokenizer, chat format and next tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve_paged.config import DEFAULT_MODEL
from serve_paged.model.loader import LoadedModel, load_model
from serve_paged.model.tokenizer import load_chat_template, load_tokenizer
from tests.model.paged import run_in_chunks

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "<|im_start|>user\nName three colours.<|im_end|>\n<|im_start|>assistant\n",
]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(DEFAULT_MODEL, torch.float32, max_model_len=256)


@pytest.fixture(scope="module")
def theirs(model: LoadedModel) -> Any:
    return AutoModelForCausalLM.from_pretrained(model.folder, dtype=torch.float32)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_equal_those_of_transformers(prompt: str, model: LoadedModel, theirs: Any) -> None:
    ids = load_tokenizer(model.folder).encode(prompt).ids
    generated = theirs.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0].tolist()
    with torch.inference_mode():
        expected = theirs(torch.tensor([generated])).logits[0]
    logits = run_in_chunks(model, generated, 16)
    assert logits[len(ids) - 1 : -1].argmax(-1).tolist() == generated[len(ids) :]
    torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)


def test_it_ends_where_its_chat_format_does(model: LoadedModel) -> None:
    tokenizer = load_tokenizer(model.folder)
    assert [tokenizer.id_to_token(token_id) for token_id in model.config.eos_token_ids] == ["<|im_end|>"]


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world!",
        "x = [1998,  3.14]\n\tif  42:",
        "naïve 你好 🙂 it's",
        "<|im_start|>user\nhi<|im_end|>\n",
        "   ",
        "",
    ],
)
def test_the_tokenizer_gives_back_any_text_and_agrees_with_transformers(text: str, model: LoadedModel) -> None:
    tokenizer = load_tokenizer(model.folder)
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert AutoTokenizer.from_pretrained(model.folder)(text).input_ids == ids


def test_numbers_are_split_into_digits_apart_from_the_space_before_them(model: LoadedModel) -> None:
    assert load_tokenizer(model.folder).encode("    128").tokens == ["ĠĠĠĠ", "1", "2", "8"]


def test_the_chat_template_adds_its_system_prompt(model: LoadedModel) -> None:
    theirs = AutoTokenizer.from_pretrained(model.folder)
    template = load_chat_template(model.folder)
    assert template is not None
    assert theirs.chat_template == template.source
    assert template.special_tokens["eos_token"] == "<|im_end|>"
    text = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_installed_file_is_converted_once(model: LoadedModel) -> None:
    converted = {file.name: file.stat().st_mtime_ns for file in Path(model.folder).iterdir()}
    again = load_model(DEFAULT_MODEL, torch.bfloat16, max_model_len=256)
    assert again.fingerprint == model.fingerprint
    assert {file.name: file.stat().st_mtime_ns for file in again.folder.iterdir()} == converted
