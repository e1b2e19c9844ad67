"""Frequencies of scaled RoPE (linear, llama3, yarn, longrope), computed by transformers. Imported only when needed."""

import torch
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from serve_paged.model.config import ModelConfig


def scaled_inv_freq(config: ModelConfig) -> tuple[torch.Tensor, float]:
    """Return the inverse frequencies, float32 [head_dim / 2], and the factor on cosines and sines."""
    like = PreTrainedConfig(
        rope_parameters=dict(config.rope_parameters),
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position_embeddings,
    )
    return ROPE_INIT_FUNCTIONS[config.rope_parameters["rope_type"]](like, torch.device("cpu"))
