"""What the ingress must know about the served model. The replica sends it over.

The ingress never opens the model's folder itself: it may run on another machine.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Name, limits and tokenizer of the served model. Crosses process boundaries."""

    name: str  # what clients put into `model`
    created: int  # seconds since 1970, when the replica loaded it
    max_model_len: int  # tokens of prompt + output
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str  # these three name the root of every block's hash (core/block_hash.py)
    kv_dtype: str
    block_size: int  # tokens
    tokenizer_json: bytes  # zlib-compressed: it crosses the network once per ingress
    chat_template: str | None  # Jinja
    special_tokens: dict[str, str]  # bos_token, eos_token, ...: what the chat template may name
