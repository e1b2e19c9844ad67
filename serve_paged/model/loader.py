"""Loading a model: its folder, its config, and its weights fused as the decoder wants them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from tqdm import tqdm

from numba_kernels import CpuKernels, Kernels
from serve_paged.model.config import ModelConfig, read_config
from serve_paged.model.decoder import Decoder
from serve_paged.model.errors import UnsupportedModel
from serve_paged.model.identity import fingerprint
from serve_paged.model.layers import DecoderLayer, FeedForward, new_attention
from serve_paged.model.linear import Linear
from serve_paged.model.rope import rope_tables
from serve_paged.model.source import model_folder
from serve_paged.model.weights import WeightReader

PROGRESS_AFTER_S = 2.0  # shorter loads show no bar


class Weights(Protocol):
    """Where a decoder's weights come from."""

    def read(self, *names: str) -> torch.Tensor:
        """The named weights, joined along the first dimension: a tensor of the caller's own."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder that is ready to run, and where it came from."""

    decoder: Decoder
    config: ModelConfig
    folder: Path | None  # holds config.json and the tokenizer's files; None: random weights
    fingerprint: str  # 32 hex digits naming the weights: the root of every block hash


def load_model(
    model: str, dtype: torch.dtype, *, kernels: Kernels | None = None, max_model_len: int | None = None
) -> LoadedModel:
    """Load `model` (see `model_folder`) with weights in `dtype` onto the device of `kernels` (None: the CPU's).

    RoPE tables cover `max_model_len` positions; None: the model's own context length.
    Raises `ModelNotFound`, `UnsupportedModel` or `InvalidWeights`.
    """
    folder = model_folder(model)
    config = read_config(folder)
    kernels = kernels or CpuKernels()
    _check_head_dim(config.head_dim, kernels)
    with torch.inference_mode(), WeightReader(folder, config, dtype, kernels.device) as weights:
        num_positions = max_model_len or config.max_position_embeddings
        decoder = build_decoder(config, kernels, weights, num_positions)
    return LoadedModel(decoder, config, folder, fingerprint(folder))


def _check_head_dim(head_dim: int, kernels: Kernels) -> None:
    """Raise `UnsupportedModel` for heads that attention's kernels do not take: before the weights are read."""
    if head_dim not in kernels.head_dims:
        possible = ", ".join(map(str, kernels.head_dims))
        raise UnsupportedModel(
            f"heads of {head_dim} dimensions are not supported on {kernels.name}; supported: {possible}"
        )


def build_decoder(config: ModelConfig, kernels: Kernels, weights: Weights, num_positions: int) -> Decoder:
    """Put a decoder together; its RoPE tables cover `num_positions`."""
    embedding = weights.read("model.embed_tokens.weight")
    # A tied head gets its own packed copy: lookups need the rows as they are, and packed products take half the time.
    head = embedding if config.tie_word_embeddings else weights.read("lm_head.weight")
    pack = isinstance(kernels, CpuKernels)  # a simulated GPU's tensors are on the CPU, but it multiplies as a GPU does
    progress = tqdm(range(config.num_layers), desc="loading weights", unit="layer", delay=PROGRESS_AFTER_S)
    return Decoder(
        config,
        kernels,
        embedding=embedding,
        layers=[_build_layer(config, weights, layer, pack) for layer in progress],
        norm=weights.read("model.norm.weight"),
        lm_head=Linear(head, pack=pack),
        rope=rope_tables(config, num_positions, kernels.device),
    )


def _build_layer(config: ModelConfig, weights: Weights, layer: int, pack: bool) -> DecoderLayer:
    prefix = f"model.layers.{layer}"

    def norm(name: str, present: bool = True) -> torch.Tensor | None:
        return weights.read(f"{prefix}.{name}.weight") if present else None

    def linear(bias: bool, *names: str) -> Linear:
        paths = [f"{prefix}.{name}" for name in names]
        return Linear(
            weights.read(*(f"{path}.weight" for path in paths)),
            weights.read(*(f"{path}.bias" for path in paths)) if bias else None,
            pack=pack,
        )

    attention = new_attention(
        config,
        layer,
        qkv=linear(config.qkv_bias, "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        o=linear(config.o_bias, "self_attn.o_proj"),
        q_norm=norm("self_attn.q_norm", config.qk_norm),
        k_norm=norm("self_attn.k_norm", config.qk_norm),
    )
    feed_forward = FeedForward(
        gate_up=linear(config.mlp_bias, "mlp.gate_proj", "mlp.up_proj"),
        down=linear(config.mlp_bias, "mlp.down_proj"),
    )
    return DecoderLayer(
        eps=config.rms_norm_eps,
        input_norm=weights.read(f"{prefix}.input_layernorm.weight"),
        attention=attention,
        post_attention_norm=weights.read(f"{prefix}.post_attention_layernorm.weight"),
        feed_forward=feed_forward,
    )
