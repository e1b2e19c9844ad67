"""The operations of one device, as an object: what a decoder and a KV cache are written against."""

from typing import Protocol

import torch
from torch import Tensor

from numba_kernels.kv_scales import UNSCALED, KVScales
from numba_kernels.layout import KVLayout
from numba_kernels.metadata import AttentionMetadata


class Download(Protocol):
    """What is on its way to the host."""

    def wait(self) -> Tensor:
        """The tensor, on the CPU, once it is there."""


class Kernels(Protocol):
    """Every operation over tensors of one device. Shapes, dtypes and errors are documented at the CPU's functions.

    A choice made once, where the model is loaded, and passed on: no operation asks which device it is on.
    """

    @property
    def device(self) -> torch.device:
        """Where weights, activations and the KV cache live."""

    @property
    def name(self) -> str:
        """What messages call it: "cpu" or "cuda"."""

    @property
    def dtypes(self) -> tuple[torch.dtype, ...]:
        """The element types that weights, activations and the KV cache may have."""

    @property
    def quantised_dtypes(self) -> tuple[torch.dtype, ...]:
        """The element types that the KV cache may have instead of the weights'."""

    @property
    def head_dims(self) -> tuple[int, ...]:
        """The head_dims that attention takes, ascending."""

    def preferred_dtype(self) -> torch.dtype:
        """The element type this device is fastest with."""

    def preferred_layout(self, dtype: torch.dtype, head_dim: int) -> KVLayout:
        """The order of elements inside a block that this device is fastest with."""

    def attention_metadata(
        self, block_tables: Tensor, slot_mapping: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor
    ) -> AttentionMetadata:
        """One step's batch from tensors on the CPU (`numba_kernels.metadata.attention_metadata`)."""

    def paged_attention(
        self,
        q: Tensor,
        kv_cache: Tensor,
        layer: int,
        metadata: AttentionMetadata,
        *,
        scale: float,
        layout: KVLayout,
        sliding_window: int | None = None,
        out: Tensor | None = None,
        kv_scales: KVScales = UNSCALED,
    ) -> Tensor:
        """Causal attention of a batch's queries over the paged cache, whose numbers `kv_scales` explains."""

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
        kv_scales: KVScales = UNSCALED,
    ) -> None:
        """Rotate q in place, and k on its way into the cache; store v. Both are divided by `kv_scales`."""

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, *, residual: Tensor | None = None) -> Tensor:
        """Root-mean-square norm of each row, of x or of `residual += x`."""

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up."""

    def copy_blocks(self, kv_cache: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks within the cache; `pairs` int64 [num_pairs, 2] on the CPU."""

    def swap_blocks(self, src: Tensor, dst: Tensor, pairs: Tensor) -> None:
        """Copy whole blocks between the device's cache and the host's; `pairs` int64 [num_pairs, 2] on the CPU."""

    def download(self, x: Tensor) -> Download:
        """Start copying to the host what x holds once the work asked for so far is done, and do not wait for it.

        On the CPU it is x itself.
        """

    def synchronize(self) -> None:
        """Wait until the device has done all that was asked for: what the host has to do before it uses blocks that
        were swapped."""
