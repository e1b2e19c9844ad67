"""What the ingress must know about the served model. The replica reads it from the model's folder and sends it over.

The ingress never opens the model's folder itself: it may run on another machine. Knows no torch.
"""

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Name, limits and tokenizer of the served model. Crosses process boundaries."""

    name: str  # what clients put into `model`
    created: int  # seconds since 1970, when the replica loaded it
    max_model_len: int  # tokens of prompt + output
    vocab_size: int
    tokenizer_json: bytes  # zlib-compressed: it crosses the network once per ingress
    chat_template: str | None  # jinja
    special_tokens: dict[str, str]  # bos_token, eos_token, ...: what a chat template may name


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The parts of a model's folder that turn text into tokens."""

    tokenizer_json: bytes
    chat_template: str | None
    special_tokens: dict[str, str]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read `tokenizer.json`, the chat template and the special tokens as transformers saves them.

    Raises FileNotFoundError without a `tokenizer.json`.
    """
    config_file = folder / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.exists() else {}
    tokens = {name: _token_text(config[name]) for name in _NAMED_TOKENS if config.get(name) is not None}
    return TokenizerFiles(
        tokenizer_json=zlib.compress((folder / "tokenizer.json").read_bytes()),
        chat_template=_chat_template(folder, config),
        special_tokens=tokens,
    )


def _token_text(token: str | dict[str, Any]) -> str:
    return token if isinstance(token, str) else token["content"]


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The default template: its own file since transformers 4.50, a key of the tokenizer's config before."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
