"""Attention over a paged KV cache and the small operations around it: tensors in, tensors out."""

from numba_kernels.cpu.attention import paged_attention
from numba_kernels.cpu.block_copy import copy_blocks, swap_blocks
from numba_kernels.cpu.elementwise import rms_norm, silu_and_mul
from numba_kernels.cpu.kernels import CpuKernels
from numba_kernels.cpu.kv_write import rope_and_write_kv, write_kv
from numba_kernels.cpu.threading import set_num_threads
from numba_kernels.device import kernels_for
from numba_kernels.kernels import Kernels
from numba_kernels.kv_scales import UNSCALED, KVScales
from numba_kernels.layout import KVLayout, preferred_layout, supports_bfloat16
from numba_kernels.metadata import AttentionMetadata, attention_metadata

__all__ = [
    "UNSCALED",
    "AttentionMetadata",
    "CpuKernels",
    "KVLayout",
    "KVScales",
    "Kernels",
    "attention_metadata",
    "copy_blocks",
    "kernels_for",
    "paged_attention",
    "preferred_layout",
    "rms_norm",
    "rope_and_write_kv",
    "set_num_threads",
    "silu_and_mul",
    "supports_bfloat16",
    "swap_blocks",
    "write_kv",
]
