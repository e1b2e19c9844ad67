"""Steps of a made-up model over a paged cache, as an engine hands them to `Kernels`, and what should come out."""

from dataclasses import dataclass

import torch
from torch import Tensor

from numba_kernels import UNSCALED, AttentionMetadata, Kernels, KVLayout, KVScales, attention_metadata, reference

NUM_LAYERS, LAYER, BLOCK_SIZE = 2, 1, 16
SCALE = 0.125


@dataclass(frozen=True, slots=True)
class Step:
    """Sequences of (queries, tokens) in scattered blocks. Whatever no sequence owns is NaN."""

    q: Tensor  # [num_tokens, num_heads, head_dim]
    kv_cache: Tensor
    block_tables: Tensor
    slot_mapping: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    kv_scales: KVScales = UNSCALED

    def metadata(self, kernels: Kernels) -> AttentionMetadata:
        """As the device wants it."""
        return kernels.attention_metadata(self.block_tables, self.slot_mapping, self.cu_seqlens_q, self.seq_lens)

    def attend(self, kernels: Kernels, *, window: int | None = None, out: Tensor | None = None) -> Tensor:
        """The device's attention."""
        return kernels.paged_attention(
            self.q,
            self.kv_cache,
            LAYER,
            self.metadata(kernels),
            scale=SCALE,
            layout=KVLayout.STANDARD,
            sliding_window=window,
            out=out,
            kv_scales=self.kv_scales,
        )

    def exact(self, *, window: int | None = None) -> Tensor:
        """The same in float64, of what the cache's numbers stand for."""
        host = attention_metadata(self.block_tables, self.slot_mapping, self.cu_seqlens_q, self.seq_lens)
        arguments = (self.q.double(), self.kv_cache.double() * per_kind(self.kv_scales), LAYER, host)
        return reference.paged_attention(*arguments, scale=SCALE, layout=KVLayout.STANDARD, sliding_window=window)


def per_kind(kv_scales: KVScales) -> Tensor:
    """To multiply a cache with, or divide it by."""
    return torch.tensor([kv_scales.k, kv_scales.v]).view(2, 1, 1, 1)


def random_step(
    sequences: list[tuple[int, int]],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    kv_dtype: torch.dtype | None = None,
    kv_scales: KVScales = UNSCALED,
) -> Step:
    """One step of sequences that have so many (queries, tokens). `kv_dtype`: of the cache, where it is not `dtype`."""
    generator = torch.Generator().manual_seed(sum(31 * n + m for n, m in sequences))
    num_queries, seq_lens = (torch.tensor(x, dtype=torch.int32) for x in zip(*sequences, strict=True))
    needed = -(-seq_lens // BLOCK_SIZE)
    ids = 1 + torch.randperm(int(needed.sum()), generator=generator)
    cache = torch.full((len(ids) + 1, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim), float("nan"))
    tables = torch.zeros(len(sequences), int(needed.max()) + 1, dtype=torch.int32)
    slots = []
    for s, (queries, tokens) in enumerate(sequences):
        tables[s, : needed[s]], ids = ids[: needed[s]].int(), ids[needed[s] :]
        positions = torch.arange(tokens)
        blocks = tables[s, positions // BLOCK_SIZE].long()
        shape = (tokens, 2, num_kv_heads, head_dim)
        cache[blocks, LAYER, :, :, positions % BLOCK_SIZE] = torch.randn(shape, generator=generator)
        slots.append((blocks * BLOCK_SIZE + positions % BLOCK_SIZE)[tokens - queries :])
    cu_seqlens_q = torch.cat((torch.zeros(1, dtype=torch.int32), num_queries.cumsum(0).int()))
    q = torch.randn(int(num_queries.sum()), num_heads, head_dim, generator=generator).to(dtype)
    cache = (cache / per_kind(kv_scales)).to(kv_dtype or dtype)
    return Step(q, cache, tables, torch.cat(slots), cu_seqlens_q, seq_lens, kv_scales)
