"""The CPU's operations as one object."""

from dataclasses import dataclass

import torch
from torch import Tensor

from numba_kernels.cpu.attention import paged_attention
from numba_kernels.cpu.block_copy import copy_blocks, swap_blocks
from numba_kernels.cpu.elementwise import rms_norm, silu_and_mul
from numba_kernels.cpu.kv_write import rope_and_write_kv
from numba_kernels.layout import preferred_layout, supports_bfloat16
from numba_kernels.metadata import attention_metadata


@dataclass(frozen=True, slots=True)
class CpuDownload:
    """`Download` of what is on the host already."""

    x: Tensor

    def wait(self) -> Tensor:
        """Itself."""
        return self.x


class CpuKernels:
    """`Kernels` on the CPU. Stateless."""

    device = torch.device("cpu")
    name = "cpu"
    dtypes = (torch.float32, torch.bfloat16)
    quantised_dtypes: tuple[torch.dtype, ...] = ()
    head_dims = tuple(range(16, 257, 16))
    preferred_layout = staticmethod(preferred_layout)
    attention_metadata = staticmethod(attention_metadata)
    paged_attention = staticmethod(paged_attention)
    rope_and_write_kv = staticmethod(rope_and_write_kv)
    rms_norm = staticmethod(rms_norm)
    silu_and_mul = staticmethod(silu_and_mul)
    copy_blocks = staticmethod(copy_blocks)
    swap_blocks = staticmethod(swap_blocks)
    download = CpuDownload

    @staticmethod
    def preferred_dtype() -> torch.dtype:
        """bfloat16 where the processor computes in it, float32 elsewhere."""
        return torch.bfloat16 if supports_bfloat16() else torch.float32

    @staticmethod
    def synchronize() -> None:
        """Everything is done when it returns."""
