"""A baseline of our own: the textbook split-KV decode in Triton over the same paged cache. Imported where Triton is."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 64  # tokens at once
_MIN_SPLIT = 256  # tokens


@triton.jit
def _decode_split(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, tables, lens, partial_out, partial_lse, scale, split_tokens, num_splits, num_heads,
    block_stride, head_stride, token_stride, table_stride,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    seq, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lens + seq)
    start = split * split_tokens
    end = tl.minimum(start + split_tokens, length)
    rows, dims, steps = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM), tl.arange(0, TOKENS)
    heads = kv_head * GROUP + rows
    queries = tl.load(
        q + (seq * num_heads + heads)[:, None] * HEAD_DIM + dims[None, :], mask=rows[:, None] < GROUP, other=0.0
    )
    largest = tl.full([ROWS], -1e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
    for first in range(start, end, TOKENS):
        position = first + steps
        inside = position < end
        block = tl.load(tables + seq * table_stride + position // BLOCK, mask=inside, other=0).to(tl.int64)
        at = block * block_stride + kv_head * head_stride + (position % BLOCK) * token_stride
        keys = tl.load(k_cache + at[None, :] + dims[:, None], mask=inside[None, :], other=0.0)
        scores = tl.where(inside[None, :], tl.dot(queries, keys) * scale, -float("inf"))
        now = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - now[:, None])
        shrink = tl.exp2(largest - now)
        values = tl.load(v_cache + at[:, None] + dims[None, :], mask=inside[:, None], other=0.0)
        acc = acc * shrink[:, None] + tl.dot(weights.to(values.dtype), values)
        total = total * shrink + tl.sum(weights, 1)
        largest = now
    row = (seq * num_heads + heads) * num_splits + split
    empty = total == 0.0
    out = acc / tl.where(empty, 1.0, total)[:, None]
    tl.store(partial_out + row[:, None] * HEAD_DIM + dims[None, :], out, mask=rows[:, None] < GROUP)
    lse = tl.where(empty, -float("inf"), largest + tl.log2(tl.where(empty, 1.0, total)))
    tl.store(partial_lse + row, lse, mask=rows < GROUP)


@triton.jit
def _merge(  # type: ignore[no-untyped-def]
    partial_out, partial_lse, out, num_splits, HEAD_DIM: tl.constexpr, SPLITS: tl.constexpr
):
    row = tl.program_id(0)
    splits, dims = tl.arange(0, SPLITS), tl.arange(0, HEAD_DIM)
    lse = tl.load(partial_lse + row * num_splits + splits, mask=splits < num_splits, other=-float("inf"))
    weights = tl.exp2(lse - tl.max(lse, 0))
    parts = tl.load(
        partial_out + (row * num_splits + splits)[:, None] * HEAD_DIM + dims[None, :],
        mask=(splits < num_splits)[:, None],
        other=0.0,
    )
    merged = tl.sum(parts * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out + row * HEAD_DIM + dims, merged.to(out.dtype.element_ty))


class TritonDecode:
    """Decode attention of one shape of batch; memory for partial results is its own."""

    def __init__(
        self, q: Tensor, kv_cache: Tensor, block_tables: Tensor, seq_lens: Tensor, max_seq_len: int, num_sms: int
    ) -> None:
        """q [num_seqs, num_heads, head_dim] contiguous, head_dim a power of two; the others as in `Kernels`."""
        self._tables, self._lens = block_tables, seq_lens
        num_seqs, self._num_heads, self._head_dim = q.shape
        self._num_kv_heads = kv_cache.shape[3]
        wanted = max(1, 4 * num_sms // (num_seqs * self._num_kv_heads))
        split = max(_MIN_SPLIT, -(-max_seq_len // wanted))
        self._split_tokens = -(-split // TILE) * TILE
        self._num_splits = -(-max_seq_len // self._split_tokens)
        shape = (num_seqs, self._num_heads, self._num_splits)
        self._partial_out = torch.empty((*shape, self._head_dim), dtype=torch.float32, device=q.device)
        self._partial_lse = torch.empty(shape, dtype=torch.float32, device=q.device)

    def __call__(self, q: Tensor, kv_cache: Tensor, layer: int, scale: float, out: Tensor) -> None:
        """Attend over one layer of the cache."""
        keys, values = kv_cache[:, layer, 0], kv_cache[:, layer, 1]
        group = self._num_heads // self._num_kv_heads
        block_stride, head_stride, token_stride, _ = keys.stride()
        _decode_split[(q.shape[0], self._num_kv_heads, self._num_splits)](
            q, keys, values, self._tables, self._lens, self._partial_out, self._partial_lse,
            scale * 1.4426950408889634, self._split_tokens, self._num_splits, self._num_heads,
            block_stride, head_stride, token_stride, self._tables.stride(0),
            GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), HEAD_DIM=self._head_dim,
            BLOCK=kv_cache.shape[4], TOKENS=TILE, num_warps=4, num_stages=3,
        )  # fmt: skip
        _merge[(q.shape[0] * self._num_heads,)](
            self._partial_out, self._partial_lse, out, self._num_splits, HEAD_DIM=self._head_dim,
            SPLITS=triton.next_power_of_2(self._num_splits),
        )  # fmt: skip
