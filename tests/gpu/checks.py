"""What every operation of a CUDA device has to satisfy, small in the simulator and large on a GPU: the same code.

Outputs are NaN before they are written, so is every slot of the cache that no sequence owns, and block tables are
random. Each check raises AssertionError.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numba_kernels import UNSCALED, KVLayout, KVScales, reference_ops
from numba_kernels.cuda.kernels import CudaKernels
from tests.kernels_cuda.batches import BLOCK_SIZE, LAYER, NUM_LAYERS, Step, per_kind, random_step
from tests.kernels_cuda.sampling_rows import Rows

# Relative to the exact result, in the Euclidean norm: the rounding of weights and results to 16 bits.
TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}
E4M3_SCALES = KVScales(0.03, 0.02)  # keys and values of a few units are up to 448 in the cache
MAX_VOCAB_WITH_TOP_P = 1100  # what the exact nucleus is computed for: it takes the square of that
ROW_FACTOR = 4  # how much worse a single row may be than all rows together


@dataclass(frozen=True, slots=True)
class AttentionCheck:
    """One batch: (queries, tokens) of each sequence, heads, and the rest."""

    sequences: tuple[tuple[int, int], ...]
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16
    window: int | None = None
    kv_dtype: torch.dtype | None = None  # of the cache, where it is not dtype
    kv_scales: KVScales = UNSCALED

    def step(self) -> Step:
        return random_step(
            list(self.sequences),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            kv_scales=self.kv_scales,
        )


def on_device(step: Step, kernels: CudaKernels) -> Step:
    """Queries and cache on the device; what describes the batch stays on the CPU, where metadata is made."""
    return replace(step, q=step.q.to(kernels.device), kv_cache=step.kv_cache.to(kernels.device))


def check_attention(kernels: CudaKernels, check: AttentionCheck) -> None:
    """Against float64: all rows together, and each by itself."""
    step = check.step()
    placed = on_device(step, kernels)
    out = torch.full_like(placed.q, float("nan"))
    placed.attend(kernels, window=check.window, out=out)
    kernels.synchronize()
    assert_close(out.cpu(), step.exact(window=check.window), TOLERANCE[check.dtype])


def assert_close(mine: Tensor, exact: Tensor, tolerance: float) -> None:
    """[num_rows, num_heads, head_dim] or [num_rows, n]."""
    difference = (mine.double() - exact).flatten(0, -2)
    norms = exact.flatten(0, -2).norm(dim=-1)
    assert mine.isfinite().all(), f"{int((~mine.isfinite()).sum())} elements are not finite"
    whole = float(difference.norm() / exact.norm())
    assert whole < tolerance, f"relative error {whole:.2e}, {tolerance:.0e} allowed"
    rows = difference.norm(dim=-1) / norms.clamp(min=float(norms.mean()) / 10)
    worst = int(rows.argmax())
    assert float(rows[worst]) < ROW_FACTOR * tolerance, f"row {worst}: relative error {float(rows[worst]):.2e}"


def check_same_alone(kernels: CudaKernels, check: AttentionCheck) -> None:
    """A sequence's result is the same to the bit whether it is alone or in a batch."""
    together = on_device(check.step(), kernels)
    all_rows = together.attend(kernels, window=check.window)
    bounds = together.cu_seqlens_q.tolist()
    for s, (num_queries, _) in enumerate(check.sequences):
        rows = slice(bounds[s], bounds[s + 1])
        alone = replace(
            together,
            q=together.q[rows],
            block_tables=together.block_tables[s : s + 1],
            slot_mapping=together.slot_mapping[rows],
            cu_seqlens_q=torch.tensor([0, num_queries], dtype=torch.int32),
            seq_lens=together.seq_lens[s : s + 1],
        )
        assert torch.equal(alone.attend(kernels, window=check.window), all_rows[rows]), f"sequence {s}"


def check_rms_norm(kernels: CudaKernels, num_rows: int, width: int, dtype: torch.dtype) -> None:
    """With and without a residual, which is updated in place, rounded as torch rounds it."""
    x, residual, weight = (random(kernels, dtype, *shape) for shape in ((num_rows, width), (num_rows, width), (width,)))
    exact = reference_ops.rms_norm(x.double().cpu(), weight.double().cpu(), 1e-5)
    assert_close(kernels.rms_norm(x, weight, 1e-5).cpu(), exact, TOLERANCE[dtype])
    summed = (residual + x).cpu()
    normed = kernels.rms_norm(x, weight, 1e-5, residual=residual)
    exact = reference_ops.rms_norm(summed.double(), weight.double().cpu(), 1e-5)
    assert_close(normed.cpu(), exact, TOLERANCE[dtype])
    assert torch.equal(residual.cpu(), summed)


def check_rms_norm_of_heads(
    kernels: CudaKernels, num_tokens: int, num_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """Each head by itself, where a projection has left it between other heads: Qwen3's queries and keys."""
    x = random(kernels, dtype, num_tokens, num_heads + 3, head_dim)[:, 1 : num_heads + 1]
    weight = random(kernels, dtype, head_dim)
    exact = reference_ops.rms_norm(x.double().cpu(), weight.double().cpu(), 1e-5)
    assert_close(kernels.rms_norm(x, weight, 1e-5).cpu(), exact, TOLERANCE[dtype])


def check_silu_and_mul(kernels: CudaKernels, num_rows: int, width: int, dtype: torch.dtype) -> None:
    """Against float64."""
    gate_up = random(kernels, dtype, num_rows, 2 * width)
    exact = reference_ops.silu_and_mul(gate_up.double().cpu())
    assert_close(kernels.silu_and_mul(gate_up).cpu(), exact, TOLERANCE[dtype])


def check_write_kv(kernels: CudaKernels, num_tokens: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    """k and v at their slots, all bits the same, every third token nowhere, and nothing else in the cache changed."""
    k, v = random(kernels, dtype, num_tokens, 2, num_kv_heads, head_dim).unbind(1)
    slots = torch.randperm(num_tokens) + BLOCK_SIZE
    slots[::3] = -1
    size = (num_tokens // BLOCK_SIZE + 2, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim)
    expected = torch.full(size, float("nan"), dtype=dtype)
    cache = expected.to(kernels.device, copy=True)
    kernels.write_kv(k, v, cache, LAYER, slots.to(kernels.device), layout=KVLayout.STANDARD)
    kernels.synchronize()
    used = slots >= 0
    block, offset = slots[used] // BLOCK_SIZE, slots[used] % BLOCK_SIZE
    expected[block, LAYER, :, :, offset] = torch.stack((k, v), dim=1).cpu()[used]
    assert torch.equal(cache.cpu().view(torch.int16), expected.view(torch.int16))


def check_rope_and_write_kv(
    kernels: CudaKernels, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """q rotated in place, k and v at their slots, every third token nowhere, and nothing else in the cache changed."""
    layout, device = KVLayout.STANDARD, kernels.device
    projected = random(kernels, dtype, num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    q, k, v = projected.split_with_sizes((num_heads, num_kv_heads, num_kv_heads), dim=1)
    angles = torch.rand(64, head_dim // 2) * 6.28
    positions = torch.randint(0, 64, (num_tokens,))
    num_blocks = num_tokens // BLOCK_SIZE + 2
    slots = torch.randperm(num_tokens) + BLOCK_SIZE
    slots[::3] = -1
    size = (num_blocks, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim)
    cache = torch.full(size, float("nan"), dtype=dtype, device=device)
    exact_q = reference_ops.rotate(q.double().cpu(), angles.cos().double(), angles.sin().double(), positions)
    exact_k = reference_ops.rotate(k.double().cpu(), angles.cos().double(), angles.sin().double(), positions)
    cos, sin, places = (x.to(device) for x in (angles.cos(), angles.sin(), positions))
    stored_v = v.cpu()
    kernels.rope_and_write_kv(q, k, v, cos, sin, places, cache, LAYER, slots.to(device), layout=layout)
    kernels.synchronize()
    assert_close(q.cpu(), exact_q, TOLERANCE[dtype])
    found, used = cache.cpu(), slots >= 0
    block, offset = slots[used] // BLOCK_SIZE, slots[used] % BLOCK_SIZE
    assert_close(found[block, LAYER, 0, :, offset], exact_k[used], TOLERANCE[dtype])
    assert torch.equal(found[block, LAYER, 1, :, offset], stored_v[used])
    found[block, LAYER, :, :, offset] = float("nan")
    assert found.isnan().all(), "the cache was written where it must not be"


def check_quantised_write(
    kernels: CudaKernels, num_tokens: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    """A cache of 8-bit numbers gets what one of `dtype` would, rounded once more, bit for bit; q and slots as there."""
    positions, slots = torch.randint(0, 64, (num_tokens,)), torch.randperm(num_tokens) + BLOCK_SIZE
    slots[::3] = -1
    angles = torch.rand(64, head_dim // 2) * 6.28
    cos, sin, at, to = (x.to(kernels.device) for x in (angles.cos(), angles.sin(), positions, slots))
    size = (num_tokens // BLOCK_SIZE + 2, NUM_LAYERS, 2, num_kv_heads, BLOCK_SIZE, head_dim)
    found: list[tuple[Tensor, Tensor]] = []
    for kv_dtype, kv_scales in ((dtype, UNSCALED), (torch.float8_e4m3fn, E4M3_SCALES)):
        projected = random(kernels, dtype, num_tokens, num_heads + 2 * num_kv_heads, head_dim)
        q, k, v = projected.split_with_sizes((num_heads, num_kv_heads, num_kv_heads), dim=1)
        cache = torch.full(size, float("nan"), device=kernels.device).to(kv_dtype)
        layout = KVLayout.STANDARD
        kernels.rope_and_write_kv(q, k, v, cos, sin, at, cache, LAYER, to, layout=layout, kv_scales=kv_scales)
        kernels.synchronize()
        found.append((q.cpu(), cache.cpu()))
    (wide_q, wide), (narrow_q, narrow) = found
    assert torch.equal(narrow_q, wide_q)
    inverse = per_kind(KVScales(1 / E4M3_SCALES.k, 1 / E4M3_SCALES.v))
    expected = (wide.float() * inverse).to(torch.float8_e4m3fn)
    assert torch.equal(narrow.isnan(), expected.isnan()), "the cache was written where it must not be"
    assert torch.equal(narrow.float().nan_to_num(), expected.float().nan_to_num())


def check_sample(kernels: CudaKernels, num_rows: int, vocab_size: int, dtype: torch.dtype) -> None:
    """Greedy and drawn rows in one step: every token is one that float64 allows; a row of NaN is reported."""
    logits = (random(kernels, torch.float32, num_rows, vocab_size) * 4).to(dtype)
    logits[0, vocab_size // 2] = float("nan")
    few = vocab_size <= MAX_VOCAB_WITH_TOP_P
    columns: dict[str, Any] = {
        "temperature": [(0.0, 0.7, 1.3)[i % 3] for i in range(num_rows)],
        "top_k": [(0, 40, 3, 0)[i % 4] for i in range(num_rows)],
        "top_p": [(1.0, 0.9)[i % 5 == 4 and few] for i in range(num_rows)],
        "min_p": [(0.0, 0.05)[i % 7 == 6] for i in range(num_rows)],
        "uniform": [i / num_rows for i in range(num_rows)],
    }
    rows = Rows(logits.cpu(), **columns)
    dtypes = {"temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "uniform": np.float32}
    given = {name: torch.from_numpy(rows.column(name, kind)).to(kernels.device) for name, kind in dtypes.items()}
    found = kernels.sample(logits, **given, log_min_p=torch.from_numpy(rows.log_min_p).to(kernels.device))
    kernels.synchronize()
    assert found.is_finite.tolist() == [0, *[1] * (num_rows - 1)]
    best = logits.float().max(dim=-1).values
    assert torch.equal(found.largest[1:], best[1:])
    tokens = found.token_ids.tolist()
    for row in range(1, num_rows):
        if columns["temperature"][row]:
            possible = rows.exact_row(row)
        else:
            possible = (logits[row].float() == best[row]).nonzero()[:1, 0].tolist()
        assert tokens[row] in possible, f"row {row}: {tokens[row]}, not one of {possible}"


def check_copy_blocks(kernels: CudaKernels, num_blocks: int, row: tuple[int, ...]) -> None:
    """Half of the blocks copied onto the other half, all bits the same, and the sources kept."""
    cache = random(kernels, torch.bfloat16, num_blocks, *row)
    before, order = cache.cpu().clone(), torch.randperm(num_blocks)
    source, target = order[: num_blocks // 2], order[num_blocks // 2 : num_blocks // 2 * 2]
    kernels.copy_blocks(cache, torch.stack((source, target), dim=1))
    kernels.synchronize()
    before[target] = before[source]
    assert torch.equal(cache.cpu(), before)


def check_swap(kernels: CudaKernels, num_blocks: int, row: tuple[int, ...]) -> None:
    """Out to the host, overwritten on the device, and back to other places, without a wait in between."""
    cache = random(kernels, torch.bfloat16, num_blocks, *row)
    before = cache.cpu().clone()
    host = torch.full((num_blocks, *row), float("nan"), dtype=torch.bfloat16, pin_memory=kernels.device.type == "cuda")
    out, back = torch.randperm(num_blocks), torch.randperm(num_blocks)
    indices = torch.arange(num_blocks)
    kernels.swap_blocks(cache, host, torch.stack((indices, out), dim=1))
    cache.fill_(float("nan"))
    kernels.swap_blocks(host, cache, torch.stack((out, back), dim=1))
    kernels.synchronize()
    assert torch.equal(host[out], before)
    assert torch.equal(cache.cpu()[back], before)


def random(kernels: CudaKernels, dtype: torch.dtype, *shape: int) -> Tensor:
    """The same numbers on every device."""
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype).to(kernels.device)
