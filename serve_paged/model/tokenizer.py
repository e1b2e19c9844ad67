"""The tokenizer of a model folder, read without transformers."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers

from serve_paged.model.errors import ModelNotFound


@dataclass(frozen=True, slots=True)
class ChatTemplate:
    """A Jinja template that turns messages into a prompt, and the special tokens it may name."""

    source: str
    special_tokens: dict[str, str]  # bos_token, eos_token, ... as the template calls them


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read tokenizer.json. Raises `ModelNotFound` when there is none."""
    file = folder / "tokenizer.json"
    if not file.exists():
        raise ModelNotFound(
            f"{folder} has no tokenizer.json; make one with transformers: "
            f"AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
        )
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()  # some files ask for it; a prompt is never cut silently
    tokenizer.no_padding()
    return tokenizer


def number_tokenizer(vocab_size: int) -> Tokenizer:
    """For a model without a tokenizer: token 17 reads "17", and tokens are separated by spaces."""
    tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(vocab_size)}, unk_token="0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """Read the chat template, wherever the folder keeps it; None if the model has none."""
    config = _read_json(folder / "tokenizer_config.json")
    source = config.get("chat_template")
    if isinstance(source, list):  # several templates, each with a name
        source = next((item["template"] for item in source if item["name"] == "default"), None)
    source = _read_json(folder / "chat_template.json").get("chat_template", source)
    file = folder / "chat_template.jinja"
    if file.exists():
        source = file.read_text(encoding="utf-8")
    if source is None:
        return None
    named = _read_json(folder / "special_tokens_map.json") | config
    tokens = {key: _content(value) for key, value in named.items() if key.endswith("_token") and value is not None}
    return ChatTemplate(source, {key: text for key, text in tokens.items() if text is not None})


def _content(token: Any) -> str | None:
    """Read a special token, written as a string or as an object; settings such as add_bos_token are neither."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
