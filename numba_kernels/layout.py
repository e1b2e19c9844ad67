"""How the elements of one KV block are ordered, which order this processor is fastest with, and how to convert.

A cache is one tensor [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]. Both layouts fill a block's bytes
exactly, so whoever copies whole blocks need not know which one they hold.
"""

import functools
from enum import StrEnum

import llvmlite.binding
import torch


class KVLayout(StrEnum):
    """Order of the elements inside [block_size, head_dim] of one head of one block."""

    STANDARD = "standard"  # K and V: [block_size, head_dim]
    # bfloat16 pairs stand together, as VDPBF16PS and TDPBF16PS multiply them: 16 tokens of K are [head_dim/2, 16, 2]
    # (pairs along head_dim); V is [block_size/2, head_dim, 2] (pairs of tokens). Intel calls this VNNI order.
    AMX_PACKED = "amx-packed"


@functools.cache
def cpu_features() -> frozenset[str]:
    """LLVM's names of the features this processor has and the operating system has enabled."""
    return frozenset(name for name, present in llvmlite.binding.get_host_cpu_features().items() if present)


def has_avx512() -> bool:
    """Whether 512-bit vectors of float32 can be used."""
    return {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= cpu_features()


def has_avx512_bf16() -> bool:
    """Whether VDPBF16PS, the dot product of bfloat16 pairs, can be used."""
    return has_avx512() and "avx512bf16" in cpu_features()


def has_amx_bf16() -> bool:
    """Whether the processor has bfloat16 matrix tiles (the process still has to ask the kernel for their state)."""
    return has_avx512_bf16() and {"amx-tile", "amx-bf16"} <= cpu_features()


def supports_bfloat16() -> bool:
    """Whether this processor computes in bfloat16; if not, float32 is the faster choice."""
    return has_avx512_bf16()


def preferred_layout(dtype: torch.dtype, head_dim: int) -> KVLayout:
    """The layout this processor is fastest with. `head_dim` must be a multiple of 16 for the packed one."""
    packed = dtype == torch.bfloat16 and head_dim % 16 == 0 and supports_bfloat16()
    return KVLayout.AMX_PACKED if packed else KVLayout.STANDARD


def pack(kv_cache: torch.Tensor) -> torch.Tensor:
    """Standard -> amx-packed, as a new tensor of the same shape [..., 2, num_kv_heads, block_size, head_dim]."""
    block_size, head_dim = kv_cache.shape[-2:]
    k, v = kv_cache.unbind(-4)
    k = k.unflatten(-2, (block_size // 16, 16)).unflatten(-1, (head_dim // 2, 2)).transpose(-3, -2)
    v = v.unflatten(-2, (block_size // 2, 2)).transpose(-2, -1)
    shape = kv_cache.select(-4, 0).shape
    return torch.stack((k.reshape(shape), v.reshape(shape)), dim=-4)


def unpack(kv_cache: torch.Tensor) -> torch.Tensor:
    """Amx-packed -> standard, as a new tensor of the same shape [..., 2, num_kv_heads, block_size, head_dim]."""
    block_size, head_dim = kv_cache.shape[-2:]
    k, v = kv_cache.unbind(-4)
    shape = k.shape
    k = k.reshape(*shape[:-2], block_size // 16, head_dim // 2, 16, 2).transpose(-3, -2)
    v = v.reshape(*shape[:-2], block_size // 2, head_dim, 2).transpose(-2, -1)
    return torch.stack((k.reshape(shape), v.reshape(shape)), dim=-4)


def to_layout(kv_cache: torch.Tensor, source: KVLayout, target: KVLayout) -> torch.Tensor:
    """The same keys and values in another layout (the tensor itself where nothing changes)."""
    if source is target:
        return kv_cache
    return pack(kv_cache) if target is KVLayout.AMX_PACKED else unpack(kv_cache)
