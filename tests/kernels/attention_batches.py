"""Random batches over a paged cache whose every unused slot is NaN, and the exact result for them."""

from dataclasses import dataclass

import torch

from numba_kernels import AttentionMetadata, KVLayout, attention_metadata, reference
from numba_kernels.cpu.attention import AttentionPath, attend
from numba_kernels.layout import pack


@dataclass(frozen=True, slots=True)
class Shape:
    """Of one layer."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    block_size: int = 16
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Queries over a cache in standard layout, two layers of which the second is used."""

    shape: Shape
    q: torch.Tensor
    kv_cache: torch.Tensor
    metadata: AttentionMetadata

    def run(self, path: AttentionPath, out: torch.Tensor | None = None) -> torch.Tensor:
        layout = layout_of(path)
        cache = pack(self.kv_cache) if layout is KVLayout.AMX_PACKED else self.kv_cache
        scale = self.shape.head_dim**-0.5
        return attend(path, self.q, cache, 1, self.metadata, scale, layout, self.shape.window, out)

    def exact(self) -> torch.Tensor:
        """In float64."""
        return self._reference(self.q.double())

    def by_torch(self) -> torch.Tensor:
        """What torch makes of it in the batch's own dtype."""
        return self._reference(self.q)

    def _reference(self, q: torch.Tensor) -> torch.Tensor:
        return reference.paged_attention(
            q,
            self.kv_cache,
            1,
            self.metadata,
            scale=self.shape.head_dim**-0.5,
            layout=KVLayout.STANDARD,
            sliding_window=self.shape.window,
        )


def layout_of(path: AttentionPath) -> KVLayout:
    standard = (AttentionPath.PLAIN, AttentionPath.VECTOR_FLOAT32)
    return KVLayout.STANDARD if path in standard else KVLayout.AMX_PACKED


def random_batch(
    shape: Shape, seq_lens: list[int], num_queries: list[int], dtype: torch.dtype, *, seed: int = 0
) -> Batch:
    """Sequences in randomly scattered blocks; block 0 and whatever no sequence owns is NaN."""
    generator = torch.Generator().manual_seed(seed)
    num_blocks = [-(-n // shape.block_size) for n in seq_lens]
    total = 1 + sum(num_blocks) + 3
    kv_cache = torch.randn(total, 2, 2, shape.num_kv_heads, shape.block_size, shape.head_dim, generator=generator)
    ids = 1 + torch.randperm(total - 1, generator=generator)
    tables = torch.zeros(len(seq_lens), max(num_blocks, default=0) + 2, dtype=torch.int32)
    used = torch.zeros(total, shape.block_size, dtype=torch.bool)
    for s, n in enumerate(num_blocks):
        tables[s, :n], ids = ids[:n].int(), ids[n:]
        position = torch.arange(seq_lens[s])
        used[tables[s].long()[position // shape.block_size], position % shape.block_size] = True
    kv_cache.permute(0, 4, 1, 2, 3, 5)[~used] = float("nan")
    bounds = torch.tensor([0, *num_queries]).cumsum(0)
    q = torch.randn(int(bounds[-1]), shape.num_heads, shape.head_dim, generator=generator)
    metadata = describe(tables, bounds, seq_lens)
    return Batch(shape, q.to(dtype), kv_cache.to(dtype), metadata)


def describe(tables: torch.Tensor, bounds: torch.Tensor, seq_lens: list[int]) -> AttentionMetadata:
    slots = torch.full((int(bounds[-1]),), -1, dtype=torch.int64)
    return attention_metadata(tables, slots, bounds.int(), torch.tensor(seq_lens, dtype=torch.int32))


def part_of(batch: Batch, seq: int, begin: int, end: int) -> Batch:
    """Queries begin .. end of one sequence of the batch as a step of their own: the same cache, an earlier moment."""
    first = int(batch.metadata.cu_seqlens_q[seq])
    num_queries = int(batch.metadata.cu_seqlens_q[seq + 1]) - first
    seq_len = int(batch.metadata.seq_lens[seq]) - num_queries + end
    bounds = torch.tensor([0, end - begin])
    metadata = describe(batch.metadata.block_tables[seq : seq + 1], bounds, [seq_len])
    return Batch(batch.shape, batch.q[first + begin : first + end], batch.kv_cache, metadata)
