"""The tokenizer inside a GGUF file. transformers rebuilds it but drops how text is split before byte-pair encoding;
here that is put back, else numbers after indentation are cut into other tokens than the model was trained on. The same
goes for the token that starts every text, where the file asks for one.
"""

from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import Regex, pre_tokenizers, processors
from transformers import AutoTokenizer

from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.gguf_config import read_gguf_field

# Tokens that end a turn; a GGUF file names one end-of-sequence token, which need not be the one of the chat template.
END_OF_TURN = ("<|im_end|>", "<|eot_id|>")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
QWEN2_SPLIT = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL


def load_gguf_tokenizer(gguf_file: Path, reader: GGUFReader, *, model_max_length: int) -> Any:
    """Return the tokenizer as a transformers one, chat template and special tokens included.

    Raises `UnsupportedModel` for a way of splitting text that is not known here.
    """
    tokenizer = AutoTokenizer.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, model_max_length=model_max_length
    )
    if read_gguf_field(reader, "tokenizer.ggml.model") == "gpt2":  # byte-level byte-pair encoding
        split = read_gguf_field(reader, "tokenizer.ggml.pre") or "default"
        tokenizer.backend_tokenizer.pre_tokenizer = _pre_tokenizer(split)
    if read_gguf_field(reader, "tokenizer.ggml.add_bos_token"):
        _start_with_bos(tokenizer)
    return tokenizer


def end_token_ids(tokenizer: Any, end_of_turn_id: int | None) -> list[int]:
    """List the tokens that end a text. Raises `UnsupportedModel` if there is none."""
    vocabulary = tokenizer.get_vocab()
    ids = [tokenizer.eos_token_id, end_of_turn_id, *(vocabulary.get(token) for token in END_OF_TURN)]
    found = list(dict.fromkeys(token_id for token_id in ids if token_id is not None))
    if not found:
        raise UnsupportedModel("the GGUF file names no end-of-sequence token")
    return found


def _start_with_bos(tokenizer: Any) -> None:
    backend, bos = tokenizer.backend_tokenizer, tokenizer.bos_token
    if backend.encode("").ids[:1] == [tokenizer.bos_token_id]:
        return
    backend.post_processor = processors.TemplateProcessing(
        single=[bos, "$A"], pair=[bos, "$A", bos, "$B:1"], special_tokens=[(bos, tokenizer.bos_token_id)]
    )


def _pre_tokenizer(name: str) -> Any:
    """Build the splitter that llama.cpp knows by this name (its llama-vocab.cpp lists them)."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name in ("default", "gpt-2"):
        return byte_level
    if name == "smollm":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    patterns = {"llama-bpe": LLAMA3_SPLIT, "llama3": LLAMA3_SPLIT, "qwen2": QWEN2_SPLIT}
    if name not in patterns:
        raise UnsupportedModel(
            f"unsupported tokenizer.ggml.pre in a GGUF file: {name}; supported: smollm, {', '.join(patterns)}"
        )
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(patterns[name]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
