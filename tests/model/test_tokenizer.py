"""Tokenizer and chat template of a folder, read without transformers."""

import json
from pathlib import Path

import pytest

from serve_paged.model.errors import ModelNotFound
from serve_paged.model.tokenizer import load_chat_template, load_tokenizer
from tests.tiny_models import CHAT_TEMPLATE


def write_json(file: Path, contents: object) -> None:
    file.write_text(json.dumps(contents))


def test_the_tokenizer_encodes_and_decodes(tiny_model_folder: Path) -> None:
    tokenizer = load_tokenizer(tiny_model_folder)
    ids = tokenizer.encode("<|im_start|>héllo").ids
    assert ids[0] == tokenizer.token_to_id("<|im_start|>")
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|im_start|>héllo"


def test_a_file_that_asks_for_truncation_does_not_get_it(tiny_model_folder: Path, tmp_path: Path) -> None:
    contents = json.loads((tiny_model_folder / "tokenizer.json").read_text())
    contents["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    write_json(tmp_path / "tokenizer.json", contents)
    assert len(load_tokenizer(tmp_path).encode("a long text").ids) == 11


def test_a_folder_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="save_pretrained"):
        load_tokenizer(tmp_path)


def test_the_chat_template_comes_with_its_special_tokens(tiny_model_folder: Path) -> None:
    template = load_chat_template(tiny_model_folder)
    assert template is not None
    assert template.source == CHAT_TEMPLATE
    assert template.special_tokens["eos_token"] == "<|im_end|>"


def test_the_older_places_of_a_chat_template_are_read(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": named, "eos_token": {"content": "</s>"}})
    template = load_chat_template(tmp_path)
    assert template is not None
    assert (template.source, template.special_tokens) == ("D", {"eos_token": "</s>"})


def test_settings_that_end_like_a_token_are_no_tokens(tmp_path: Path) -> None:
    write_json(tmp_path / "tokenizer_config.json", {"chat_template": "D", "add_bos_token": True, "pad_token": None})
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.special_tokens == {}


def test_a_folder_without_a_chat_template_has_none(tmp_path: Path) -> None:
    assert load_chat_template(tmp_path) is None
