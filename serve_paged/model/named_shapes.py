"""Shapes of published models, to be filled with random weights: what their config.json says, without the files."""

from collections.abc import Mapping
from typing import Any

from serve_paged.model.config import ModelConfig, parse_config
from serve_paged.model.errors import ModelNotFound


def _llama3_rope(factor: float) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }


# The keys and values of https://huggingface.co/{the id beside each}/blob/main/config.json.
NAMED_SHAPES: Mapping[str, Mapping[str, Any]] = {
    "smollm2-135m": {  # HuggingFaceTB/SmolLM2-135M
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 8192,
        "rope_theta": 100000,
        "tie_word_embeddings": True,
        "eos_token_id": 0,
    },
    "llama-3.2-1b": {  # meta-llama/Llama-3.2-1B
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": _llama3_rope(32.0),
        "tie_word_embeddings": True,
        "eos_token_id": 128001,
    },
    "llama-3.1-8b": {  # meta-llama/Llama-3.1-8B
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": _llama3_rope(8.0),
        "tie_word_embeddings": False,
        "eos_token_id": 128001,
    },
    "qwen3-8b": {  # Qwen/Qwen3-8B
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "eos_token_id": 151645,
    },
}


def shape_values(name: str, *, num_layers: int | None = None) -> dict[str, Any]:
    """The contents of a named shape's config.json, with another number of layers if one is given.

    Raises `ModelNotFound` for a name that is not in the table, ValueError for less than one layer.
    """
    if name not in NAMED_SHAPES:
        raise ModelNotFound(f"no shape is called {name!r}; there are {', '.join(NAMED_SHAPES)}")
    if num_layers is not None and num_layers < 1:
        raise ValueError(f"num_layers must be at least 1, got {num_layers}")
    values = dict(NAMED_SHAPES[name])
    return values if num_layers is None else values | {"num_hidden_layers": num_layers}


def named_config(name: str, *, num_layers: int | None = None) -> ModelConfig:
    """A named shape as the decoder takes it."""
    return parse_config(shape_values(name, num_layers=num_layers), {})
