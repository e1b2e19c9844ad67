"""A tiny random model that looks back: its greedy text is decided by clear margins, and by every token it has cached.

Rounding differs from one set of kernels to another, and a random model's two best logits are often closer than that.
So one thing is planted among random weights: in layer 0 every head attends to the token 13 places back, in layer 1 to
the one 11 back, by rotary embedding alone, and the head reads what arrives through both: the next token is the one 24
back. Where no token repeats within 24, that wins clearly; one wrong, lost or stale block, and it does not.
"""

import torch

from numba_kernels import Kernels
from serve_paged.model.config import ModelConfig
from serve_paged.model.loader import LoadedModel, build_decoder
from serve_paged.model.weights import weight_shapes

VOCAB_SIZE, HIDDEN, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS = 96, 128, 64, 4, 2
LAGS = (13, 11)
LOOKBACK = sum(LAGS)
_GAINS = (2.0, 6.0)  # how much of what a layer attends to is added to the residual stream
_SHARPNESS = (10.0, 22.0)  # of its attention; the second layer's input is 2.2 times as large before its norm
_NUM_FREQUENCIES = 5  # the highest: they tell neighbouring places apart
_THETA = 10000.0


def lookback_config(*, window: int | None = None, qk_norm: bool = False) -> ModelConfig:
    """Two layers, grouped queries, heads of 64; as Llama, or with a Mistral's windows or a Qwen3's norms."""
    return ModelConfig(
        architecture="Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM",
        vocab_size=VOCAB_SIZE,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_layers=len(LAGS),
        num_heads=NUM_HEADS,
        num_kv_heads=NUM_KV_HEADS,
        head_dim=HEAD_DIM,
        rms_norm_eps=1e-6,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        qkv_bias=False,
        o_bias=False,
        mlp_bias=False,
        qk_norm=qk_norm,
        sliding_windows=(window,) * len(LAGS),
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        eos_token_ids=(VOCAB_SIZE - 1,),
    )


def lookback_model(
    config: ModelConfig, dtype: torch.dtype, *, kernels: Kernels, exact_in: torch.dtype | None = None
) -> LoadedModel:
    """The model in `dtype`. Its weights are first rounded to `exact_in`, so that two dtypes can have the same ones."""
    weights = _Weights(config, dtype, exact_in or dtype, kernels.device)
    with torch.inference_mode():
        decoder = build_decoder(config, kernels, weights, config.max_position_embeddings)
    return LoadedModel(decoder, config, None, "lookback".ljust(32, "0"))


def prompt_of(start: int, length: int) -> list[int]:
    """Tokens that do not repeat within a lookback. Prompts of the same `start` have a common prefix."""
    order = torch.randperm(VOCAB_SIZE - 1, generator=torch.Generator().manual_seed(start)).tolist()
    return [order[i % 48] for i in range(length)]


class _Weights:
    """As `WeightReader`: joins weights by name."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, exact_in: torch.dtype, device: torch.device) -> None:
        self._dtype, self._exact_in, self._device = dtype, exact_in, device
        generator = torch.Generator().manual_seed(0)
        self._tensors = {
            name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
            for name, shape in weight_shapes(config).items()
        }
        signs = torch.randint(0, 2, (VOCAB_SIZE, HIDDEN), generator=generator) * 2.0 - 1.0
        signs[:, 0] = 1.0  # what queries and keys are made of; nothing is ever added to it
        self._tensors["model.embed_tokens.weight"] = signs
        self._tensors["lm_head.weight"] += signs * 0.1
        for layer, (lag, gain, sharpness) in enumerate(zip(LAGS, _GAINS, _SHARPNESS, strict=True)):
            self._plant(f"model.layers.{layer}", lag, gain, sharpness)

    def read(self, *names: str) -> torch.Tensor:
        """The named weights, joined along the first dimension, on the device."""
        return torch.cat([self._tensors[name] for name in names]).to(self._exact_in).to(self._device, self._dtype)

    def _plant(self, layer: str, lag: int, gain: float, sharpness: float) -> None:
        attention = f"{layer}.self_attn"
        angles = lag * _THETA ** (torch.arange(_NUM_FREQUENCIES) * -2 / HEAD_DIM)
        query, key = torch.zeros(HEAD_DIM), torch.zeros(HEAD_DIM)
        key[:_NUM_FREQUENCIES] = sharpness
        query[:_NUM_FREQUENCIES] = sharpness * angles.cos()
        query[HEAD_DIM // 2 : HEAD_DIM // 2 + _NUM_FREQUENCIES] = -sharpness * angles.sin()
        self._tensors[f"{attention}.q_proj.weight"][:, 0] = query.repeat(NUM_HEADS)
        self._tensors[f"{attention}.k_proj.weight"][:, 0] = key.repeat(NUM_KV_HEADS)
        self._tensors[f"{attention}.v_proj.weight"] += torch.eye(HIDDEN)
        # The heads of a group see the same values, and each gives half.
        group_size = NUM_HEADS // NUM_KV_HEADS
        copy = torch.eye(HIDDEN).view(HIDDEN, NUM_KV_HEADS, 1, HEAD_DIM).repeat(1, 1, group_size, 1)
        output = self._tensors[f"{attention}.o_proj.weight"]
        output += copy.reshape(HIDDEN, -1) * (gain / group_size)
        output[0] = 0.0
        self._tensors[f"{layer}.mlp.down_proj.weight"][0] = 0.0
        if f"{attention}.q_norm.weight" in self._tensors:  # then lengths are the norms'
            self._tensors[f"{attention}.q_norm.weight"] *= 2.8
            self._tensors[f"{attention}.k_norm.weight"] *= 2.8
