"""Prefill batches over a paged cache whose every unused slot is NaN, run in the simulator, and their exact results."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from numba_kernels.cuda.decode_plan import NO_WINDOW
from numba_kernels.cuda.prefill import make_prefill
from numba_kernels.cuda.prefill_plan import prefill_plan
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.simulator import Index3, Simulator
from numba_kernels.cuda.target import Target
from tests.kernels_cuda.decode_batches import DTYPES, LAYER, NUM_LAYERS, address, bits, storage_of

MakePrefill = Callable[[PrefillVariant, Target], Callable[..., None]]


@dataclass(frozen=True, slots=True)
class PrefillBatch:
    """The last queries of each sequence; the second of two layers is used."""

    variant: PrefillVariant
    q: torch.Tensor  # [num_tokens, num_heads, head_dim]
    kv_cache: torch.Tensor  # [num_blocks, NUM_LAYERS, 2, num_kv_heads, block_size, head_dim]
    block_tables: torch.Tensor  # int32 [num_seqs, max_blocks]
    num_queries: list[int]
    seq_lens: list[int]
    window: int = NO_WINDOW
    k_scale: float = 1.0  # what the cache's K stands for is its numbers times this
    v_scale: float = 1.0

    @property
    def bounds(self) -> list[int]:
        return [0, *np.cumsum(self.num_queries).tolist()]

    @property
    def group_size(self) -> int:
        return self.q.shape[1] // self.kv_cache.shape[3]

    def exact(self) -> torch.Tensor:
        """In float64, of what the cache holds."""
        cache = self.kv_cache.double() * torch.tensor([self.k_scale, self.v_scale]).view(2, 1, 1, 1)
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        for s, seq_len in enumerate(self.seq_lens):
            k, v = cache[self.block_tables[s].long(), LAYER].permute(1, 2, 0, 3, 4).flatten(2, 3)
            k, v = (x.repeat_interleave(self.group_size, 0) for x in (k, v))
            for i in range(self.num_queries[s]):
                row, end = self.bounds[s] + i, seq_len - self.num_queries[s] + i + 1
                seen = slice(max(0, end - self.window), end)
                scores = torch.einsum("hd,htd->ht", self.q[row].double(), k[:, seen])
                weights = (scores / math.sqrt(self.variant.head_dim)).softmax(-1)
                out[row] = torch.einsum("ht,htd->hd", weights, v[:, seen])
        return out

    def last_chunk(self, sizes: list[int]) -> "PrefillBatch":
        """The same sequences, of whose queries only the last `sizes` are asked for."""
        rows = [slice(end - size, end) for end, size in zip(self.bounds[1:], sizes, strict=True)]
        return replace(self, q=torch.cat([self.q[r] for r in rows]), num_queries=sizes)

    def simulate(
        self,
        *,
        make: MakePrefill = make_prefill,
        seed: int = 0,
        early_copies: bool = False,
        selected: list[bool] | None = None,
        num_work: int = 0,
    ) -> torch.Tensor:
        """The kernel's result. Outputs are NaN at first; inputs cannot be written."""
        variant, size, kv_size = self.variant, self.q.element_size(), self.kv_cache.element_size()
        lens, bounds = np.array(self.seq_lens, np.int32), np.array(self.bounds, np.int32)
        chosen = None if selected is None else np.array(selected)
        plan = prefill_plan(bounds, lens, self.group_size, variant, self.window, chosen)
        work = plan.padded(max(num_work, plan.num_work))
        q, cache = storage_of(self.q), bits(self.kv_cache)
        out = bits(torch.full(self.q.shape, float("nan"), dtype=self.q.dtype))
        inputs = [q, cache, self.block_tables.numpy(), bounds, lens, work]
        for array in inputs:
            array.flags.writeable = False
        kv = [address(cache[0, LAYER, i]) for i in range(2)]
        cache_strides = [self.kv_cache.stride(0) * kv_size, self.kv_cache.stride(3) * kv_size]
        q_strides = [self.q.stride(0) * size, self.q.stride(1) * size]
        scale = np.float32(math.log2(math.e) / math.sqrt(variant.head_dim) * self.k_scale)
        Simulator([*inputs, out], seed, early_copies).launch(
            lambda target: make(variant, target),
            Index3(self.kv_cache.shape[3], len(work)),
            variant.num_threads,
            self.q.data_ptr(), *kv, *(address(a) for a in (*inputs[2:], out)), *cache_strides,
            self.block_tables.stride(0) * 4, *q_strides, self.window, self.group_size, scale,
            np.float32(self.v_scale),
            dynamic_shared_bytes=variant.shared_bytes,
        )  # fmt: skip
        return torch.from_numpy(out).view(self.q.dtype)


def random_prefill(
    variant: PrefillVariant,
    num_queries: list[int],
    context: list[int],
    group_size: int,
    num_kv_heads: int = 1,
    *,
    window: int = NO_WINDOW,
    scales: tuple[float, float] = (1.0, 1.0),
) -> PrefillBatch:
    """Sequences in randomly scattered blocks; what no query sees is NaN, and blocks before a window are given up.

    `scales`: the cache holds K and V divided by them.
    """
    generator = torch.Generator().manual_seed(sum(num_queries) * 1000 + sum(context) + group_size)
    size = variant.block_size
    seq_lens = [n + c for n, c in zip(num_queries, context, strict=True)]
    num_blocks = [-(-n // size) for n in seq_lens]
    total = 2 + sum(num_blocks)
    ids = 1 + torch.randperm(total - 1, generator=generator)
    cache = torch.full((total, NUM_LAYERS, 2, num_kv_heads, size, variant.head_dim), float("nan"))
    tables = torch.zeros(len(seq_lens), max(num_blocks), dtype=torch.int32)
    for s, n in enumerate(seq_lens):
        seen = range(max(0, context[s] + 1 - window), n)
        mine, ids = ids[: num_blocks[s]].int(), ids[num_blocks[s] :]
        tables[s, seen.start // size : num_blocks[s]] = mine[seen.start // size :]
        for position in seen:
            shape = (2, num_kv_heads, variant.head_dim)
            cache[int(tables[s, position // size]), LAYER, :, :, position % size] = torch.randn(
                shape, generator=generator
            )
    q = torch.randn(sum(num_queries), num_kv_heads * group_size, variant.head_dim, generator=generator)
    cache = (cache / torch.tensor(scales).view(2, 1, 1, 1)).to(DTYPES[variant.kv_element or variant.element])
    return PrefillBatch(variant, q.to(DTYPES[variant.element]), cache, tables, num_queries, seq_lens, window, *scales)
