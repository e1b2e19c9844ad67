"""Rotary position embedding: the tables of cosines and sines that the kernels look up."""

from dataclasses import dataclass

import torch

from serve_paged.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class RopeTables:
    """Cosine and sine per position and frequency, already times the attention scaling."""

    cos: torch.Tensor  # float32 [num_positions, head_dim / 2]
    sin: torch.Tensor  # float32 [num_positions, head_dim / 2]


def rope_tables(config: ModelConfig, num_positions: int, device: torch.device) -> RopeTables:
    """Compute the tables for positions 0 to `num_positions` - 1 on `device`, in float32 as transformers does."""
    if config.rope_parameters["rope_type"] == "default":
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
        inv_freq, scaling = 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0
    else:
        # Here, not at the top: it imports transformers, seconds that a model without RoPE scaling need not wait.
        from serve_paged.model.rope_scaling import scaled_inv_freq

        inv_freq, scaling = scaled_inv_freq(config)
    angles = torch.outer(torch.arange(num_positions, dtype=torch.float32), inv_freq)  # on the CPU: the same anywhere
    return RopeTables((angles.cos() * scaling).to(device), (angles.sin() * scaling).to(device))
