"""The CPU's kernels against torch and against plain reading, in one interleaved run.

Every round times each contender once, so that whatever else the machine does hits all of them alike. The cache is
larger than the processor's own: each call uses another layer, as a model does.
"""

import os
import statistics
import time
from collections.abc import Callable

import click
import numpy as np
import torch
from numba import prange

from numba_kernels import KVLayout, attention_metadata, copy_blocks, set_num_threads
from numba_kernels.cpu.attention import AttentionPath, attend, runs_here
from numba_kernels.cpu.jit import device, f32_ptr, i64_ptr, kernel
from numba_kernels.layout import pack

Contender = Callable[[int], object]  # called with the layer to use
BLOCK_SIZE = 16


@device
def _sum(source, num_floats, out):  # type: ignore[no-untyped-def]
    p, total = f32_ptr(source), np.float32(0.0)
    for i in range(num_floats):
        total += p[i]
    f32_ptr(out)[0] = total


@kernel(parallel=True)
def _read(spans, num_spans, num_floats, out):  # type: ignore[no-untyped-def]
    """Sum `num_floats` float32 at each of the addresses: what any kernel must read, without its arithmetic."""
    for i in prange(num_spans):
        _sum(i64_ptr(spans)[i], num_floats, out + i * 4)


class Case:
    """One shape of batch: equal sequences, each with the same number of queries, scattered over the cache."""

    def __init__(
        self, shape: tuple[int, int, int], batch: tuple[int, int, int], dtype: torch.dtype, layers: int
    ) -> None:
        self.num_heads, num_kv_heads, self.head_dim = shape
        self.num_seqs, self.seq_len, self.num_queries = batch
        per_seq = -(-self.seq_len // BLOCK_SIZE)
        num_blocks = 1 + self.num_seqs * per_seq
        generator = torch.Generator().manual_seed(0)
        size = (num_blocks, layers, 2, num_kv_heads, BLOCK_SIZE, self.head_dim)
        self.standard = torch.randn(size, generator=generator).to(dtype)
        self.packed = pack(self.standard) if dtype == torch.bfloat16 else None
        self.tables = 1 + torch.randperm(num_blocks - 1, generator=generator).view(self.num_seqs, per_seq).int()
        num_tokens = self.num_seqs * self.num_queries
        bounds = torch.arange(0, num_tokens + 1, self.num_queries, dtype=torch.int32)
        slots = torch.full((num_tokens,), -1, dtype=torch.int64)
        seq_lens = torch.full((self.num_seqs,), self.seq_len, dtype=torch.int32)
        self.metadata = attention_metadata(self.tables, slots, bounds, seq_lens)
        self.q = torch.randn(num_tokens, self.num_heads, self.head_dim, generator=generator).to(dtype)
        self.out, self.scale = torch.empty_like(self.q), self.head_dim**-0.5

    def gather(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of every sequence, each [num_seqs, num_kv_heads, seq_len, head_dim]."""
        blocks = self.standard[self.tables.long(), layer]
        k, v = (blocks[:, :, i].transpose(1, 2).flatten(2, 3)[:, :, : self.seq_len] for i in (0, 1))
        return k, v

    def sdpa(self, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q = self.q.view(self.num_seqs, self.num_queries, self.num_heads, self.head_dim).transpose(1, 2)
        causal = self.num_queries == self.seq_len
        mask = None
        if 1 < self.num_queries < self.seq_len:
            mask = torch.arange(self.seq_len) <= torch.arange(self.seq_len - self.num_queries, self.seq_len)[:, None]
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=self.scale, enable_gqa=True
        )

    def contenders(self) -> dict[str, Contender]:
        gathered = self.gather(0)
        found: dict[str, Contender] = {
            "read the same bytes": self._reader(),
            "torch SDPA, KV already gathered": lambda layer: self.sdpa(*gathered),
            "torch gather + SDPA": lambda layer: self.sdpa(*self.gather(layer)),
        }
        for path in AttentionPath:
            standard = path in (AttentionPath.PLAIN, AttentionPath.VECTOR_FLOAT32)
            if runs_here(path) and path is not AttentionPath.AMX_EMULATED and (standard or self.packed is not None):
                found[f"paged_attention, {path}"] = self._attention(path, standard)
        return found

    def _attention(self, path: AttentionPath, standard: bool) -> Contender:
        layout = KVLayout.STANDARD if standard or self.packed is None else KVLayout.AMX_PACKED
        cache = self.standard if standard or self.packed is None else self.packed
        return lambda layer: attend(path, self.q, cache, layer, self.metadata, self.scale, layout, None, self.out)

    def _reader(self) -> Contender:
        layers = self.standard.stride(1) * self.standard.element_size()
        rows = self.standard.stride(0) * self.standard.element_size()
        starts = self.standard.data_ptr() + self.tables.flatten().long().numpy() * rows
        spans = np.empty_like(starts)
        sums = np.empty(len(starts), np.float32)

        def read(layer: int) -> None:
            np.add(starts, layer * layers, out=spans)
            _read(spans.ctypes.data, len(spans), layers // 4, sums.ctypes.data)

        return read

    @property
    def num_bytes(self) -> int:
        """Of keys and values that one call reads."""
        return self.tables.numel() * self.standard.stride(1) * self.standard.element_size()


def measure(contenders: dict[str, Contender], num_layers: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender in each round. Every call takes the layer that was used longest ago."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    layer = 0
    for contender in contenders.values():
        contender(0)
    for _ in range(rounds):
        for name, contender in contenders.items():
            layer = (layer + 1) % num_layers
            begin = time.perf_counter()
            contender(layer)
            times[name].append(time.perf_counter() - begin)
    return times


def report(title: str, times: dict[str, list[float]], num_bytes: int) -> None:
    click.echo(f"\n{title}: {num_bytes / 1e6:.1f} MB, load average {os.getloadavg()[0]:.1f}")
    for name, seconds in times.items():
        median, best = statistics.median(seconds), min(seconds)
        rate = num_bytes / median / 1e9
        click.echo(f"  {name:36} median {median * 1e6:9.0f} us   min {best * 1e6:9.0f} us   {rate:6.1f} GB/s")


def block_copies(rounds: int) -> None:
    """64 blocks of 0.37 MB (30 layers of SmolLM2-135M): copy_blocks against torch's indexing."""
    cache = torch.zeros(1024, 30, 2, 3, BLOCK_SIZE, 64, dtype=torch.bfloat16)
    order = torch.randperm(1024)
    source, target = order[:64].clone(), order[512:576].clone()
    pairs = torch.stack((source, target), dim=1)
    contenders: dict[str, Contender] = {
        "torch index_select + index_copy_": lambda _: cache.index_copy_(0, target, cache.index_select(0, source)),
        "copy_blocks": lambda _: copy_blocks(cache, pairs),
    }
    moved = 2 * 64 * cache.stride(0) * cache.element_size()
    report("copy 64 blocks (read + write)", measure(contenders, 1, rounds), moved)


def run(rounds: int, layers: int, threads: int, dtype: str, shape: str) -> None:
    """Time paged attention and block copies on this machine. `shape`: num_heads,num_kv_heads,head_dim."""
    torch.set_num_threads(threads)
    set_num_threads(threads)
    num_heads, num_kv_heads, head_dim = (int(n) for n in shape.split(","))
    batches = ((1, 256, 1), (1, 2048, 1), (32, 512, 1), (1, 512, 512), (1, 1024, 512), (4, 512, 128))
    for num_seqs, seq_len, num_queries in batches:
        case = Case(
            (num_heads, num_kv_heads, head_dim), (num_seqs, seq_len, num_queries), getattr(torch, dtype), layers
        )
        kind = "decode" if num_queries == 1 else f"{num_queries} queries of"
        title = f"{kind} {num_seqs} x {seq_len}, heads {shape}, {dtype}, {threads} threads"
        report(title, measure(case.contenders(), layers, rounds), case.num_bytes)
    block_copies(rounds)
