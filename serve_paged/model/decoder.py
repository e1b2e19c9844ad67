"""The decoder of the Llama family (Llama, Mistral, Qwen2, Qwen3): inference only, over a paged KV cache.

Plain torch: no modules, no autograd. Callers run it under `torch.inference_mode()`.
"""

import torch
from torch.nn import functional as F

from numba_kernels import UNSCALED, AttentionMetadata, Kernels, KVLayout, KVScales
from serve_paged.model.config import ModelConfig
from serve_paged.model.layers import DecoderLayer, StepInputs
from serve_paged.model.linear import Linear
from serve_paged.model.rope import RopeTables


class Decoder:
    """Token ids in, hidden states and logits out. Holds weights only: the KV cache is the caller's."""

    def __init__(
        self,
        config: ModelConfig,
        kernels: Kernels,
        *,
        embedding: torch.Tensor,
        layers: list[DecoderLayer],
        norm: torch.Tensor,
        lm_head: Linear,
        rope: RopeTables,
    ) -> None:
        """Take the weights, on the kernels' device; `embedding` is [vocab_size, hidden_size] and sets the dtype."""
        self.config = config
        self.kernels = kernels
        self._embedding = embedding
        self._layers = layers
        self._norm = norm
        self._lm_head = lm_head
        self._rope = rope

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and activations, and of a KV cache that is not narrower than they are."""
        return self._embedding.dtype

    @property
    def max_positions(self) -> int:
        """Positions that the RoPE tables cover: no token may sit at or beyond this one."""
        return self._rope.cos.shape[0]

    def forward(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        kv_cache: torch.Tensor,
        metadata: AttentionMetadata,
        layout: KVLayout,
        kv_scales: KVScales = UNSCALED,
    ) -> torch.Tensor:
        """Run one step over the tokens of all scheduled sequences, writing their keys and values to the cache.

        `input_ids` and `positions` are int64 [num_tokens], sequence after sequence as `metadata` says.
        Returns the normed hidden states [num_tokens, hidden_size] in the decoder's dtype.
        """
        step = StepInputs(self.kernels, positions, self._rope, kv_cache, metadata, layout, kv_scales)
        residual = F.embedding(input_ids, self._embedding)  # a fresh tensor: the layers add to it in place
        update: torch.Tensor | None = None
        for layer in self._layers:
            update = layer(update, residual, step)
        assert update is not None, "a decoder has at least one layer"
        return self.kernels.rms_norm(update, self._norm, self.config.rms_norm_eps, residual=residual)

    def logits(self, hidden: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """Map normed hidden states [num_rows, hidden_size] to logits, float32 [num_rows, vocab_size].

        They are computed in the decoder's dtype, and written to `out` if given.
        """
        logits = self._lm_head(hidden)
        return logits.float() if out is None else out.copy_(logits)
