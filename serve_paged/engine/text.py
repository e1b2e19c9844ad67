"""What the engine knows of a model beyond its weights: vocabulary, end tokens, identity."""

from dataclasses import dataclass

from tokenizers import Tokenizer

from serve_paged.model.tokenizer import ChatTemplate


@dataclass(frozen=True, slots=True)
class TextModel:
    """The text side of a loaded model."""

    name: str  # what clients call it
    folder: str  # config, tokenizer and chat template lie here
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    fingerprint: str  # of the weights; root of the prefix-cache hash chain
    kv_dtype: str
