"""Times block copies, KV writes and elementwise ops: `python -m numba_kernels.bench.copies`.

Sizes of SmolLM2-135M (30 layers, 9 heads, 3 KV heads of 64, hidden 576, MLP 1536). Prints microseconds per call,
everything from Python included, and GB/s read plus written, for the kernel and for the same step in plain torch.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from numba_kernels import (
    KVLayout,
    copy_blocks,
    preferred_layout,
    reference_ops,
    rms_norm,
    rope_and_write_kv,
    silu_and_mul,
    write_kv,
)

NUM_LAYERS, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, HIDDEN, MLP = 30, 9, 3, 64, 16, 576, 1536
NUM_BLOCKS = 256


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table."""

    name: str
    num_bytes: int  # read and written
    kernel: Callable[[], object]
    torch: Callable[[], object]


def seconds_per_call(step: Callable[[], object], *, budget_s: float = 0.15) -> float:
    """Median of groups of calls, as many as fit the budget."""
    step()
    begin = time.perf_counter()
    step()
    calls = max(1, int(budget_s / 15 / max(time.perf_counter() - begin, 1e-6)))
    groups = []
    for _ in range(15):
        begin = time.perf_counter()
        for _ in range(calls):
            step()
        groups.append((time.perf_counter() - begin) / calls)
    return median(groups)


def elementwise_cases(rows: int, dtype: torch.dtype) -> Iterator[Case]:
    """RMS norm with residual add, and SiLU times up-projection, for a number of tokens."""
    size = torch.empty(0, dtype=dtype).element_size()
    x, residual, weight = (
        torch.randn(rows, HIDDEN).to(dtype),
        torch.zeros(rows, HIDDEN, dtype=dtype),
        torch.ones(HIDDEN),
    )
    weight = weight.to(dtype)
    gate_up = torch.randn(rows, 2 * MLP).to(dtype)
    yield Case(
        f"rms_norm + residual, {rows} rows",
        4 * rows * HIDDEN * size,
        lambda: rms_norm(x, weight, 1e-5, residual=residual),
        lambda: reference_ops.rms_norm(x, weight, 1e-5, residual=residual),
    )
    yield Case(
        f"silu_and_mul, {rows} rows",
        3 * rows * MLP * size,
        lambda: silu_and_mul(gate_up),
        lambda: reference_ops.silu_and_mul(gate_up),
    )


def cache_cases(rows: int, kv_cache: torch.Tensor, layout: KVLayout) -> Iterator[Case]:
    """Writes of a number of tokens to random slots; torch's side writes the standard layout by index."""
    dtype, size = kv_cache.dtype, kv_cache.element_size()
    widths = [NUM_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM]
    q, k, v = (x.view(rows, -1, HEAD_DIM) for x in torch.randn(rows, sum(widths)).to(dtype).split(widths, dim=1))
    slots, positions = torch.randperm(NUM_BLOCKS * BLOCK_SIZE)[:rows], torch.arange(rows)
    cos, sin = torch.rand(2, rows, HEAD_DIM // 2)
    block, offset = slots // BLOCK_SIZE, slots % BLOCK_SIZE

    def index_put(keys: torch.Tensor) -> None:
        kv_cache[block, 0, 0, :, offset] = keys
        kv_cache[block, 0, 1, :, offset] = v

    def rope_and_index_put() -> None:
        q.copy_(reference_ops.rotate(q, cos, sin, positions))
        index_put(reference_ops.rotate(k, cos, sin, positions))

    kv_bytes = 2 * 2 * widths[1] * rows * size
    yield Case(
        f"write_kv {layout}, {rows} rows",
        kv_bytes,
        lambda: write_kv(k, v, kv_cache, 0, slots, layout=layout),
        lambda: index_put(k),
    )
    yield Case(
        f"rope_and_write_kv {layout}, {rows} rows",
        kv_bytes + 2 * widths[0] * rows * size,
        lambda: rope_and_write_kv(q, k, v, cos, sin, positions, kv_cache, 0, slots, layout=layout),
        rope_and_index_put,
    )


def copy_cases(kv_cache: torch.Tensor) -> Iterator[Case]:
    """Copies of whole blocks, half of the cache at most."""
    row_bytes = kv_cache.stride(0) * kv_cache.element_size()
    for num_pairs in (1, 8, NUM_BLOCKS // 2):
        pairs = torch.randperm(NUM_BLOCKS)[: 2 * num_pairs].view(num_pairs, 2)
        yield Case(
            f"copy_blocks, {num_pairs} x {row_bytes // 1024} KiB",
            2 * num_pairs * row_bytes,
            lambda pairs=pairs: copy_blocks(kv_cache, pairs),  # type: ignore[misc]
            lambda pairs=pairs: reference_ops.copy_blocks(kv_cache, pairs),  # type: ignore[misc]
        )


def main() -> None:
    """Print the table."""
    for dtype in (torch.bfloat16, torch.float32):
        kv_cache = torch.zeros(NUM_BLOCKS, NUM_LAYERS, 2, NUM_KV_HEADS, BLOCK_SIZE, HEAD_DIM, dtype=dtype)
        layout = preferred_layout(dtype, HEAD_DIM)
        print(f"{dtype}  {'':38} kernel us     GB/s    torch us")
        cases = [case for rows in (1, 8, 32, 512) for case in elementwise_cases(rows, dtype)]
        cases += [case for rows in (1, 8, 32, 512) for case in cache_cases(rows, kv_cache, layout)]
        for case in [*cases, *copy_cases(kv_cache)]:
            seconds, torch_seconds = seconds_per_call(case.kernel), seconds_per_call(case.torch)
            rate = case.num_bytes / seconds / 1e9
            print(f"  {case.name:48} {seconds * 1e6:9.1f} {rate:9.1f} {torch_seconds * 1e6:11.1f}", flush=True)


if __name__ == "__main__":
    main()
