"""`paged_attention` written in plain torch: slow, obvious, and what the kernels are tested against."""

import torch

from numba_kernels.layout import KVLayout, unpack
from numba_kernels.metadata import AttentionMetadata


def gather_kv(
    kv_cache: torch.Tensor, layer: int, block_table: torch.Tensor, seq_len: int, layout: KVLayout
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence's keys and values, each [seq_len, num_kv_heads, head_dim], copied out of the paged cache."""
    num_blocks = -(-seq_len // kv_cache.shape[4])
    blocks = kv_cache[block_table[:num_blocks].long(), layer]  # [blocks, 2, num_kv_heads, block_size, head_dim]
    if layout is KVLayout.AMX_PACKED:
        blocks = unpack(blocks)
    k, v = blocks.permute(1, 0, 3, 2, 4).flatten(1, 2)[:, :seq_len]
    return k, v


def attention_mask(num_queries: int, seq_len: int, sliding_window: int | None) -> torch.Tensor:
    """bool [num_queries, seq_len]: query i stands at position seq_len - num_queries + i and sees what is True."""
    query = torch.arange(seq_len - num_queries, seq_len)[:, None]
    key = torch.arange(seq_len)[None]
    seen = key <= query
    return seen if sliding_window is None else seen & (key > query - sliding_window)


def paged_attention(
    q: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
    metadata: AttentionMetadata,
    *,
    scale: float,
    layout: KVLayout,
    sliding_window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Same meaning as `numba_kernels.paged_attention`: gathers each sequence and runs torch's attention in q's dtype.

    q may be of a higher precision than the cache: keys and values are then converted first.
    """
    out = torch.empty_like(q) if out is None else out
    bounds = metadata.cu_seqlens_q.tolist()
    for s, seq_len in enumerate(metadata.seq_lens.tolist()):
        rows = slice(bounds[s], bounds[s + 1])
        num_queries = bounds[s + 1] - bounds[s]
        if num_queries == 0:
            continue
        k, v = gather_kv(kv_cache, layer, metadata.block_tables[s], seq_len, layout)
        out[rows] = torch.nn.functional.scaled_dot_product_attention(
            q[rows].transpose(0, 1)[None],
            k.to(q.dtype).transpose(0, 1)[None],
            v.to(q.dtype).transpose(0, 1)[None],
            attn_mask=attention_mask(num_queries, seq_len, sliding_window),
            scale=scale,
            enable_gqa=True,
        )[0].transpose(0, 1)
    return out
