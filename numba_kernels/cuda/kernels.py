"""A CUDA device's operations as one object."""

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from numba_kernels.cuda import attention, cache_ops, elementwise, sampling
from numba_kernels.cuda.checks import E4M3_COMPUTE_CAPABILITY, ELEMENTS
from numba_kernels.cuda.decode import HEAD_DIMS
from numba_kernels.cuda.decode_buffers import DecodeBuffers, Workspace
from numba_kernels.cuda.launcher import Launcher
from numba_kernels.cuda.metadata import CudaMetadata, cuda_metadata
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.kernels import Download
from numba_kernels.layout import KVLayout

OLDEST_COMPUTE_CAPABILITY = (8, 0)  # cp.async, and mma of bfloat16


class CudaKernels:
    """`Kernels` on a GPU, or on a simulated one.

    Nothing but `synchronize` waits for the device. Results are good for what comes later on torch's current stream.
    """

    name = "cuda"
    dtypes = tuple(ELEMENTS)

    def __init__(self, launcher: Launcher) -> None:
        """Raises RuntimeError for a GPU that is too old."""
        capability = launcher.properties.compute_capability
        if capability < OLDEST_COMPUTE_CAPABILITY:
            raise RuntimeError("the GPU has compute capability {}.{}, and 8.0 is needed".format(*capability))
        self.launcher = launcher
        # 256 needs 128 KB of shared memory for a block: GPUs of compute capability 8.6, 8.9 and 12.x have 99 KB.
        most = launcher.properties.shared_bytes_per_block
        self.head_dims = tuple(d for d in HEAD_DIMS if PrefillVariant(d).shared_bytes <= most)
        self.quantised_dtypes = (torch.float8_e4m3fn,) if capability >= E4M3_COMPUTE_CAPABILITY else ()
        self._workspace = Workspace(launcher)
        self.paged_attention = partial(attention.paged_attention, launcher)
        self.write_kv = partial(cache_ops.write_kv, launcher)
        self.rope_and_write_kv = partial(cache_ops.rope_and_write_kv, launcher)
        self.rms_norm = partial(elementwise.rms_norm, launcher)
        self.silu_and_mul = partial(elementwise.silu_and_mul, launcher)
        self.sample = partial(sampling.sample, launcher)
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
        """One step's batch on the device, from tensors on the CPU (`cuda_metadata`)."""
        return cuda_metadata(self.launcher, block_tables, slot_mapping, cu_seqlens_q, seq_lens)

    def decode_buffers(
        self,
        num_seqs: int,
        max_seq_len: int,
        block_size: int,
        *,
        windows: Collection[int | None] = (None,),
        max_splits: int | None = None,
    ) -> DecodeBuffers:
        """Fixed addresses for captured decode steps of up to `num_seqs` sequences. Make the largest bucket's first.

        All share one memory for partial results: their graphs are to run on one stream.
        """
        workspace = self._workspace
        return DecodeBuffers(
            self.launcher, workspace, num_seqs, max_seq_len, block_size, windows=windows, max_splits=max_splits
        )

    def download(self, x: Tensor) -> Download:
        """Start copying to the host what x holds at this point of the stream; its `wait()` gives the CPU tensor."""
        return self.launcher.download(x)

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for."""
        self.launcher.synchronize()
