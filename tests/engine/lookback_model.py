"""A tiny random model that looks back: its greedy text is decided by clear margins, and by every token it has cached.

Rounding differs from one set of kernels to another, and a random model's two best logits are often closer than that.
So one thing is planted among random weights: in layer 0 every head attends to the token 13 places back, in layer 1 to
the one 11 back, by rotary embedding alone, and the head reads what arrives through both: the token 24 back comes next.
Where no token repeats within 24, that wins clearly; one wrong, lost or stale block, and it does not. Every other head
of layer 1 attends to the newest token itself, which the logits show.
"""

import torch

from numba_kernels import Kernels
from serve_paged.model.config import ModelConfig
from serve_paged.model.loader import LoadedModel, build_decoder
from serve_paged.model.weights import weight_shapes

VOCAB_SIZE, HIDDEN, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS = 96, 128, 64, 4, 2
FIRST_LAG = 13
_LAGS = ((FIRST_LAG, FIRST_LAG), (11, 0))  # per layer, of the two heads of a group
_GAINS = ((1.0, 1.0), (6.0, 1.0))  # how much of what such a head attends to is added to the residual stream
_SHARPNESS = (10.0, 22.0)  # of its attention; the second layer's input is 2.2 times as large before its norm
_NUM_FREQUENCIES = 5  # the highest: they tell neighbouring places apart
_THETA = 10000.0


def lookback_config(*, window: int | None = None, qk_norm: bool = False, vocab_size: int = VOCAB_SIZE) -> ModelConfig:
    """Two layers, grouped queries, heads of 64; as Llama, or with a Mistral's windows or a Qwen3's norms."""
    return ModelConfig(
        architecture="Qwen3ForCausalLM" if qk_norm else "LlamaForCausalLM",
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        intermediate_size=128,
        num_layers=len(_LAGS),
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
        sliding_windows=(window,) * len(_LAGS),
        rope_parameters={"rope_type": "default", "rope_theta": _THETA},
        eos_token_ids=(vocab_size - 1,),
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
        signs = torch.randint(0, 2, (config.vocab_size, HIDDEN), generator=generator) * 2.0 - 1.0
        signs[:, 0] = 1.0  # what queries and keys are made of; nothing is ever added to it
        self._tensors["model.embed_tokens.weight"] = signs
        self._tensors["lm_head.weight"] += signs * 0.1
        for layer, planted in enumerate(zip(_LAGS, _GAINS, _SHARPNESS, strict=True)):
            self._plant(f"model.layers.{layer}", *planted)

    def read(self, *names: str) -> torch.Tensor:
        """The named weights, joined along the first dimension, on the device."""
        return torch.cat([self._tensors[name] for name in names]).to(self._exact_in).to(self._device, self._dtype)

    def _plant(self, layer: str, lags: tuple[int, ...], gains: tuple[float, ...], sharpness: float) -> None:
        attention = f"{layer}.self_attn"
        frequencies = _THETA ** (torch.arange(_NUM_FREQUENCIES) * -2 / HEAD_DIM)
        key, queries = torch.zeros(HEAD_DIM), torch.zeros(len(lags), 2, HEAD_DIM // 2)
        key[:_NUM_FREQUENCIES] = sharpness
        for query, lag in zip(queries, lags, strict=True):
            query[0, :_NUM_FREQUENCIES] = sharpness * (lag * frequencies).cos()
            query[1, :_NUM_FREQUENCIES] = -sharpness * (lag * frequencies).sin()
        self._tensors[f"{attention}.q_proj.weight"][:, 0] = queries.flatten().repeat(NUM_KV_HEADS)
        self._tensors[f"{attention}.k_proj.weight"][:, 0] = key.repeat(NUM_KV_HEADS)
        self._tensors[f"{attention}.v_proj.weight"] += torch.eye(HIDDEN)
        copy = torch.eye(HIDDEN).view(HIDDEN, NUM_KV_HEADS, 1, HEAD_DIM) * torch.tensor(gains).view(1, 1, -1, 1)
        output = self._tensors[f"{attention}.o_proj.weight"]
        output += copy.reshape(HIDDEN, -1)
        output[0] = 0.0
        self._tensors[f"{layer}.mlp.down_proj.weight"][0] = 0.0
        if f"{attention}.q_norm.weight" in self._tensors:  # then lengths are the norms'
            self._tensors[f"{attention}.q_norm.weight"] *= 2.8
            self._tensors[f"{attention}.k_norm.weight"] *= 2.8
