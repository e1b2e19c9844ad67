"""Decode batches over a paged cache whose every unused slot is NaN, run in the simulator, and their exact results."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from numba_kernels.cuda.decode import NUM_THREADS, DecodeVariant, make_decode
from numba_kernels.cuda.decode_merge import make_merge_splits
from numba_kernels.cuda.decode_plan import NO_WINDOW, SPLIT_TOKENS, write_decode_plan
from numba_kernels.cuda.simulator import Index3, Simulator
from numba_kernels.cuda.target import Target

LAYER, NUM_LAYERS = 1, 2
DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "e4m3": torch.float8_e4m3fn}


@dataclass(frozen=True, slots=True)
class DecodeSource:
    """The two kernels' factories: the real ones, or with a planted bug."""

    decode: Callable[[DecodeVariant, Target], Callable[..., None]] = make_decode
    merge_splits: Callable[[int, str, Target], Callable[..., None]] = make_merge_splits


REAL = DecodeSource()


@dataclass(frozen=True, slots=True)
class DecodeBatch:
    """One query per sequence; the second of two layers is used."""

    variant: DecodeVariant
    q: torch.Tensor  # [num_seqs, num_heads, head_dim]
    kv_cache: torch.Tensor  # [num_blocks, NUM_LAYERS, 2, num_kv_heads, block_size, head_dim]
    block_tables: torch.Tensor  # int32 [num_seqs, max_blocks]
    seq_lens: torch.Tensor  # int32 [num_seqs]
    window: int = NO_WINDOW
    k_scale: float = 1.0  # what the cache's K stands for is its numbers times this
    v_scale: float = 1.0

    def exact(self) -> torch.Tensor:
        """In float64, of what the cache holds."""
        group_size = self.q.shape[1] // self.kv_cache.shape[3]
        out = torch.zeros(self.q.shape, dtype=torch.float64)
        for s, seq_len in enumerate(self.seq_lens.tolist()):
            begin = max(0, seq_len - self.window)
            cache = self.kv_cache.double() * torch.tensor([self.k_scale, self.v_scale]).view(2, 1, 1, 1)
            k, v = cache[self.block_tables[s].long(), LAYER].permute(1, 2, 0, 3, 4).flatten(2, 3)
            k, v = (x[:, begin:seq_len].repeat_interleave(group_size, 0) for x in (k, v))
            if seq_len:
                scores = torch.einsum("hd,htd->ht", self.q[s].double(), k) / math.sqrt(self.variant.head_dim)
                out[s] = torch.einsum("ht,htd->hd", scores.softmax(-1), v)
        return out

    def simulate(
        self,
        *,
        source: DecodeSource = REAL,
        split_tokens: int = SPLIT_TOKENS,
        seed: int = 0,
        capacity: int = 16,
        grid_blocks: int = 3,
    ) -> torch.Tensor:
        """The kernels' result, with a plan in buffers of fixed capacity, as a captured graph reads it.

        Outputs and partial results are NaN at first; inputs cannot be written, rows of `work` that are none are -1.
        """
        work = np.full((capacity, 4), -1, np.int32)
        work_begin = np.full(len(self.seq_lens) + 1, -1, np.int32)
        write_decode_plan(self.seq_lens.numpy(), work, work_begin, window=self.window, split_tokens=split_tokens)
        num_seqs, num_heads, head_dim = self.q.shape
        num_kv_heads, q_size, kv_size = self.kv_cache.shape[3], self.q.element_size(), self.kv_cache.element_size()
        q, cache = storage_of(self.q), bits(self.kv_cache)
        out = bits(torch.full(self.q.shape, float("nan"), dtype=self.q.dtype))
        partial_out = np.full((len(work), num_heads, head_dim), np.nan, np.float32)
        partial_lse = np.full((len(work), num_heads), np.nan, np.float32)
        inputs = [q, cache, self.block_tables.numpy(), work, work_begin]
        for array in inputs:
            array.flags.writeable = False
        simulator = Simulator([*inputs, partial_out, partial_lse, out], seed)
        kv = [address(cache[0, LAYER, i]) for i in range(2)]
        plan = [address(work), address(work_begin[-1:])]
        pointers = [address(inputs[2]), *plan, *(address(a) for a in (partial_out, partial_lse, out))]
        strides = [self.kv_cache.stride(0), self.kv_cache.stride(4), self.kv_cache.stride(3)]
        cache_strides = [s * kv_size for s in strides]
        q_strides = [self.q.stride(0) * q_size, self.q.stride(1) * q_size]
        group_size = num_heads // num_kv_heads
        scale = np.float32(math.log2(math.e) / math.sqrt(head_dim) * self.k_scale)
        simulator.launch(
            lambda target: source.decode(self.variant, target), Index3(grid_blocks, num_kv_heads), NUM_THREADS,
            self.q.data_ptr(), *kv, *pointers, *cache_strides, self.block_tables.stride(0) * 4, *q_strides,
            group_size, scale, np.float32(self.v_scale),
        )  # fmt: skip
        simulator.launch(
            lambda target: source.merge_splits(head_dim, self.variant.element, target),
            Index3(num_seqs, num_heads), head_dim // 2,
            address(work_begin), address(partial_out), address(partial_lse), address(out),
        )  # fmt: skip
        return torch.from_numpy(out).view(self.q.dtype)


def bits(tensor: torch.Tensor) -> Any:
    """The same elements as integers, for numpy has no bfloat16."""
    return tensor.view(torch.uint8 if tensor.element_size() == 1 else torch.int16).numpy()


def storage_of(tensor: torch.Tensor) -> Any:
    """All of the memory that a view looks into, as integers."""
    return bits(torch.tensor([], dtype=tensor.dtype).set_(tensor.untyped_storage()))


def address(array: Any) -> int:
    return int(array.ctypes.data)


def random_decode(
    variant: DecodeVariant,
    seq_lens: list[int],
    group_size: int,
    num_kv_heads: int = 1,
    *,
    window: int = NO_WINDOW,
    scales: tuple[float, float] = (1.0, 1.0),
) -> DecodeBatch:
    """Sequences in randomly scattered blocks; whatever no sequence owns is NaN, and so is what is before a window.

    `scales`: the cache holds K and V divided by them.
    """
    generator = torch.Generator().manual_seed(len(seq_lens) * 1000 + sum(seq_lens) + group_size)
    size = variant.block_size
    num_blocks = [-(-n // size) for n in seq_lens]
    total = 2 + sum(num_blocks)
    ids = 1 + torch.randperm(total - 1, generator=generator)
    cache = torch.full((total, NUM_LAYERS, 2, num_kv_heads, size, variant.head_dim), float("nan"))
    tables = torch.zeros(len(seq_lens), max(num_blocks) + 1, dtype=torch.int32)
    for s, n in enumerate(seq_lens):
        tables[s, : num_blocks[s]], ids = ids[: num_blocks[s]].int(), ids[num_blocks[s] :]
        for position in range(max(0, n - window), n):
            block = int(tables[s, position // size])
            shape = (2, num_kv_heads, variant.head_dim)
            cache[block, LAYER, :, :, position % size] = torch.randn(shape, generator=generator)
    q = torch.randn(len(seq_lens), num_kv_heads * group_size, variant.head_dim, generator=generator)
    cache = (cache / torch.tensor(scales).view(2, 1, 1, 1)).to(DTYPES[variant.kv_element or variant.element])
    lens = torch.tensor(seq_lens, dtype=torch.int32)
    return DecodeBatch(variant, q.to(DTYPES[variant.element]), cache, tables, lens, window, *scales)


def relative_error(out: torch.Tensor, exact: torch.Tensor) -> float:
    """Of a whole result, in the Euclidean norm. NaN where anything is NaN."""
    return float((out.double() - exact).norm() / exact.norm())
