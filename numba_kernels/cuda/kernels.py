"""A CUDA device's operations as one object."""

from functools import partial

import torch
from torch import Tensor

from numba_kernels.cuda import attention, cache_ops
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.metadata import CudaMetadata, cuda_metadata
from numba_kernels.layout import KVLayout

_OLDEST = (8, 0)  # compute capability: cp.async, and mma of bfloat16


class CudaKernels:
    """`Kernels` on a GPU, or on a simulated one.

    Nothing here waits for the device. An operation is done when what comes later on torch's current stream begins.
    """

    def __init__(self, launcher: Launcher) -> None:
        """Raises RuntimeError for a GPU that is too old."""
        capability = launcher.properties.compute_capability
        if capability < _OLDEST:
            raise RuntimeError("a GPU of compute capability {}.{}: 8.0 is the least".format(*capability))
        self.launcher = launcher
        self.paged_attention = partial(attention.paged_attention, launcher)
        self.write_kv = partial(cache_ops.write_kv, launcher)
        self.copy_blocks = partial(cache_ops.copy_blocks, launcher)
        self.swap_blocks = partial(cache_ops.swap_blocks, launcher)

    @property
    def device(self) -> torch.device:
        """Where weights, activations and the KV cache live."""
        return self.launcher.device

    def preferred_dtype(self) -> torch.dtype:
        """bfloat16: every GPU that is new enough computes in it."""
        return torch.bfloat16

    def preferred_layout(self, dtype: torch.dtype, head_dim: int) -> KVLayout:
        """The kernels know no other."""
        return KVLayout.STANDARD

    def attention_metadata(
        self, block_tables: Tensor, slot_mapping: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor
    ) -> CudaMetadata:
        """One step's batch from tensors on the CPU, on the device (`cuda_metadata`)."""
        return cuda_metadata(self.launcher, block_tables, slot_mapping, cu_seqlens_q, seq_lens)

    def rope_and_write_kv(
        self,
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
        """Rotate q in place, and k on its way into the cache; store v."""
        raise NotImplementedError("rope_and_write_kv on CUDA")

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
        """Root-mean-square norm of each row, of x or of `residual += x`."""
        raise NotImplementedError("rms_norm on CUDA")

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up."""
        raise NotImplementedError("silu_and_mul on CUDA")

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for."""
        self.launcher.synchronize()
