"""The other ops in plain torch: slow, obvious, and what the kernels are tested against (`reference` has attention)."""

import torch
from torch import Tensor

from numba_kernels.layout import KVLayout, pack, unpack


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
    """As `numba_kernels.rms_norm`; the formula of transformers' LlamaRMSNorm."""
    if residual is not None:
        residual += x
        x = residual
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """As `numba_kernels.silu_and_mul`, every step rounded to the tensor's dtype."""
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding of [num_tokens, heads, head_dim] in x's dtype, as transformers' apply_rotary_pos_emb."""
    cos, sin = (torch.cat((table, table), dim=-1)[positions][:, None].to(x.dtype) for table in (cos, sin))
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def write_kv(k: Tensor, v: Tensor, kv_cache: Tensor, layer: int, slot_mapping: Tensor, *, layout: KVLayout) -> None:
    """As `numba_kernels.write_kv`, one token at a time."""
    block_size = kv_cache.shape[4]
    plain = unpack(kv_cache) if layout is KVLayout.AMX_PACKED else kv_cache
    for token, slot in enumerate(slot_mapping.tolist()):
        if slot >= 0:
            plain[slot // block_size, layer, 0, :, slot % block_size] = k[token]
            plain[slot // block_size, layer, 1, :, slot % block_size] = v[token]
    if layout is KVLayout.AMX_PACKED:
        kv_cache.copy_(pack(plain))


def rope_and_write_kv(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor,
    kv_cache: Tensor,
    layer: int,
    slot_mapping: Tensor,
    *,
    layout: KVLayout,
) -> None:
    """As `numba_kernels.rope_and_write_kv`."""
    q.copy_(rotate(q, cos, sin, positions))
    write_kv(rotate(k, cos, sin, positions), v, kv_cache, layer, slot_mapping, layout=layout)


def copy_blocks(kv_cache: Tensor, pairs: Tensor) -> None:
    """As `numba_kernels.copy_blocks`."""
    kv_cache[pairs[:, 1]] = kv_cache[pairs[:, 0]]


def swap_blocks(src: Tensor, dst: Tensor, pairs: Tensor) -> None:
    """As `numba_kernels.swap_blocks`."""
    dst[pairs[:, 1]] = src[pairs[:, 0]]
