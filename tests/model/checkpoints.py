"""Tiny random checkpoints of every supported architecture and feature, made by transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 304


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How to make one model; `settings` overrides the tiny sizes."""

    config: Callable[..., Any]
    model: Callable[[Any], PreTrainedModel]
    settings: dict[str, Any]


def _llama(**settings: Any) -> Checkpoint:
    return Checkpoint(LlamaConfig, LlamaForCausalLM, settings)


def _mistral(**settings: Any) -> Checkpoint:
    return Checkpoint(MistralConfig, MistralForCausalLM, settings)


def _qwen2(**settings: Any) -> Checkpoint:
    return Checkpoint(Qwen2Config, Qwen2ForCausalLM, settings)


def _qwen3(**settings: Any) -> Checkpoint:
    return Checkpoint(Qwen3Config, Qwen3ForCausalLM, {"head_dim": 16, **settings})


def _rope(rope_type: str, **parameters: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}}


CHECKPOINTS = {
    "llama-untied": _llama(),
    "llama-tied": _llama(tie_word_embeddings=True),
    "llama-every-head-its-own-kv": _llama(num_key_value_heads=4),
    "llama-biases": _llama(attention_bias=True, mlp_bias=True),
    "llama-wide-heads": _llama(head_dim=32),
    "llama-linear-rope": _llama(**_rope("linear", factor=4.0)),
    "llama-llama3-rope": _llama(
        **_rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16)
    ),
    "llama-yarn-rope": _llama(**_rope("yarn", factor=4.0, original_max_position_embeddings=16)),
    "mistral-full": _mistral(sliding_window=None),
    "mistral-window": _mistral(sliding_window=9),
    "qwen2": _qwen2(),
    "qwen2-window-in-upper-layers": _qwen2(use_sliding_window=True, sliding_window=9, max_window_layers=1),
    "qwen3": _qwen3(),
    "qwen3-window-by-layer-type": _qwen3(
        use_sliding_window=True,
        sliding_window=9,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}


def make_model(name: str, **overrides: Any) -> PreTrainedModel:
    """Make a model with random weights everywhere, biases and norms included."""
    checkpoint = CHECKPOINTS[name]
    sizes = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "initializer_range": 0.15,
        "eos_token_id": 2,
    }
    torch.manual_seed(0)
    model = checkpoint.model(checkpoint.config(**{**sizes, **checkpoint.settings, **overrides})).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # transformers starts norms at 1 and biases at 0, which hides a missing one
                parameter.normal_(mean=1.0 if "norm" in parameter_name else 0.0, std=0.3)
    return model


def save_model(folder: Path, name: str, **overrides: Any) -> PreTrainedModel:
    """Save such a model into `folder` and return it."""
    model = make_model(name, **overrides)
    model.save_pretrained(folder)
    return model
