"""The config inside a GGUF file, as transformers would write it. Keys: llama.cpp's gguf-py/gguf/constants.py.

transformers reads GGUF configs too, but for these architectures drops RoPE scaling and explicit head sizes.
"""

from typing import Any

from gguf import GGUFReader, dequantize
from transformers import AutoConfig

from serve_paged.model.errors import UnsupportedModel

# llama.cpp stores Mistral as llama: without its sliding window, the two are one architecture.
ARCHITECTURE_OF = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1 and later: one divisor per RoPE frequency

_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}
_SPECIAL_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}


def read_gguf_field(reader: GGUFReader, name: str) -> Any:
    """Return the value of a metadata key, None if it is absent."""
    field = reader.get_field(name)
    return None if field is None else field.contents()


def read_gguf_config(reader: GGUFReader) -> Any:
    """Return a transformers config. Raises `UnsupportedModel` for what the decoder does not run."""
    architecture = read_gguf_field(reader, "general.architecture")
    if architecture not in ARCHITECTURE_OF:
        raise UnsupportedModel(
            f"unsupported GGUF architecture: {architecture}; supported: {', '.join(ARCHITECTURE_OF)}"
        )
    settings = {key: read_gguf_field(reader, f"{architecture}.{name}") for key, name in _SIZES.items()}
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight":  # its rows may be more than the tokenizer's tokens
            settings["vocab_size"] = int(tensor.shape[1])
    if settings["num_key_value_heads"] is None:
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    wrong = [_SIZES[key] for key, value in settings.items() if not isinstance(value, int | float)]
    if wrong:
        raise UnsupportedModel(f"a GGUF file without a single number for {', '.join(wrong)}")
    head_dim = read_gguf_field(reader, f"{architecture}.attention.key_length")
    settings["head_dim"] = head_dim or settings["hidden_size"] // settings["num_attention_heads"]
    rotated = read_gguf_field(reader, f"{architecture}.rope.dimension_count")
    if rotated not in (None, settings["head_dim"]):
        raise UnsupportedModel(f"unsupported rope.dimension_count: {rotated} of {settings['head_dim']} dimensions")
    special = {key: read_gguf_field(reader, f"tokenizer.ggml.{name}_token_id") for key, name in _SPECIAL_TOKENS.items()}
    return AutoConfig.for_model(
        architecture,
        architectures=[ARCHITECTURE_OF[architecture]],
        dtype="float32",
        tie_word_embeddings=all(tensor.name != "output.weight" for tensor in reader.tensors),
        rope_parameters=_rope_parameters(reader, architecture, settings["max_position_embeddings"]),
        **settings,
        **special,
    )


def _rope_parameters(reader: GGUFReader, architecture: str, context_length: int) -> dict[str, Any]:
    theta = read_gguf_field(reader, f"{architecture}.rope.freq_base") or 10000.0
    scaling = read_gguf_field(reader, f"{architecture}.rope.scaling.type") or "none"
    factor = read_gguf_field(reader, f"{architecture}.rope.scaling.factor")
    original = read_gguf_field(reader, f"{architecture}.rope.scaling.original_context_length") or context_length
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            # The general form of the same frequencies: longrope whose factors are the same at every length.
            factors = dequantize(tensor.data, tensor.tensor_type).tolist()
            return {
                "rope_type": "longrope",
                "rope_theta": theta,
                "short_factor": factors,
                "long_factor": factors,
                "factor": 1.0,
                "attention_factor": 1.0,
                "original_max_position_embeddings": context_length,
            }
    if scaling == "none":
        return {"rope_type": "default", "rope_theta": theta}
    if scaling == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": factor}
    if scaling == "yarn":
        return {
            "rope_type": "yarn",
            "rope_theta": theta,
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    raise UnsupportedModel(f"unsupported rope.scaling.type in a GGUF file: {scaling}; supported: linear, yarn")
