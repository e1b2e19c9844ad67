"""Where one layer's keys and values are in the paged cache."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheLayer:
    """Addresses of K and V of the first block, and strides in bytes."""

    k: int
    v: int
    block_stride: int
    token_stride: int
    head_stride: int


def cache_layer(kv_cache: Tensor, layer: int) -> CacheLayer:
    """Of a cache [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]."""
    size = kv_cache.element_size()
    block, layers, kv, head, token, _ = (n * size for n in kv_cache.stride())
    k = kv_cache.data_ptr() + layer * layers
    return CacheLayer(k, k + kv, block, token, head)
