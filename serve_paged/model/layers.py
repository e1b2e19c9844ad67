"""One decoder layer: attention over the paged KV cache and the gated feed-forward, between two RMS norms."""

from dataclasses import dataclass

import torch

from numba_kernels import AttentionMetadata, Kernels, KVLayout, KVScales
from serve_paged.model.config import ModelConfig
from serve_paged.model.linear import Linear
from serve_paged.model.rope import RopeTables


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What every layer of one step shares."""

    kernels: Kernels
    positions: torch.Tensor  # int64 [num_tokens]
    rope: RopeTables
    kv_cache: torch.Tensor  # [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]
    metadata: AttentionMetadata
    layout: KVLayout
    kv_scales: KVScales  # of all layers


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention of one layer. Writes this step's keys and values to the cache, then attends to it."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None
    eps: float
    qkv: Linear  # queries, keys and values of all heads, in this order
    o: Linear
    q_norm: torch.Tensor | None  # [head_dim], where queries and keys are normed per head
    k_norm: torch.Tensor | None

    def __call__(self, hidden: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """Map `hidden` [num_tokens, hidden_size] to the same shape."""
        num_tokens = hidden.shape[0]
        heads = self.qkv(hidden).view(num_tokens, -1, self.head_dim)  # [num_tokens, heads + 2 * kv heads, head_dim]
        q, k, v = heads.split_with_sizes((self.num_heads, self.num_kv_heads, self.num_kv_heads), dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = (step.kernels.rms_norm(x, norm, self.eps) for x, norm in ((q, self.q_norm), (k, self.k_norm)))
        rope, cache, slots = step.rope, step.kv_cache, step.metadata.slot_mapping
        layout, scales = step.layout, step.kv_scales
        step.kernels.rope_and_write_kv(
            q, k, v, rope.cos, rope.sin, step.positions, cache, self.layer, slots, layout=layout, kv_scales=scales
        )  # q is rotated in place
        attended = step.kernels.paged_attention(
            q,
            cache,
            self.layer,
            step.metadata,
            scale=self.head_dim**-0.5,
            layout=layout,
            sliding_window=self.sliding_window,
            kv_scales=scales,
        )
        return self.o(attended.reshape(num_tokens, -1))


@dataclass(frozen=True, slots=True)
class FeedForward:
    """down(silu(gate(x)) * up(x))."""

    gate_up: Linear  # gate, then up
    down: Linear

    def __call__(self, hidden: torch.Tensor, kernels: Kernels) -> torch.Tensor:
        """Map `hidden` [num_tokens, hidden_size] to the same shape."""
        return self.down(kernels.silu_and_mul(self.gate_up(hidden)))


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Attention and feed-forward, each added to the residual stream."""

    eps: float
    input_norm: torch.Tensor  # [hidden_size]
    attention: Attention
    post_attention_norm: torch.Tensor  # [hidden_size]
    feed_forward: FeedForward

    def __call__(self, update: torch.Tensor | None, residual: torch.Tensor, step: StepInputs) -> torch.Tensor:
        """Add `update` (None in the first layer) to `residual` in place; return this layer's own update.

        The last addition is left to the next layer, where one kernel adds and norms.
        """
        kernels = step.kernels
        if update is None:
            normed = kernels.rms_norm(residual, self.input_norm, self.eps)
        else:
            normed = kernels.rms_norm(update, self.input_norm, self.eps, residual=residual)
        attended = self.attention(normed, step)
        normed = kernels.rms_norm(attended, self.post_attention_norm, self.eps, residual=residual)
        return self.feed_forward(normed, kernels)


def new_attention(
    config: ModelConfig,
    layer: int,
    qkv: Linear,
    o: Linear,
    *,
    q_norm: torch.Tensor | None,
    k_norm: torch.Tensor | None,
) -> Attention:
    """Put the attention of one layer together."""
    return Attention(
        layer=layer,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        sliding_window=config.sliding_windows[layer],
        eps=config.rms_norm_eps,
        qkv=qkv,
        o=o,
        q_norm=q_norm,
        k_norm=k_norm,
    )
