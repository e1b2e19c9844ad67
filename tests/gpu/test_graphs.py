"""A captured decode step replayed on new batches: bit for bit what running it would give, and never a wait inside."""

from dataclasses import replace

import pytest
import torch

from numba_kernels import KVLayout
from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu.checks import AttentionCheck, on_device
from tests.kernels_cuda.batches import BLOCK_SIZE, LAYER, SCALE, Step

pytestmark = pytest.mark.gpu

BUCKET, MAX_LEN = 8, 4096
LENGTHS = ([3000, 17, 1, 512, 256], [256, 256, 4096], [1], [5] * BUCKET)


def decode_step(lengths: list[int]) -> Step:
    return AttentionCheck(tuple((1, n) for n in lengths), 32, 8, 128).step()


def test_a_replay_equals_eager_to_the_bit(kernels: CudaKernels) -> None:
    buffers = kernels.decode_buffers(BUCKET, MAX_LEN, BLOCK_SIZE)
    steps = [on_device(decode_step(lengths), kernels) for lengths in LENGTHS]
    most = max(len(step.kv_cache) for step in steps)
    cache = torch.zeros((most, *steps[0].kv_cache.shape[1:]), dtype=torch.bfloat16, device=kernels.device)
    q = torch.zeros((BUCKET, *steps[0].q.shape[1:]), dtype=torch.bfloat16, device=kernels.device)
    out = torch.empty_like(q)

    def attend() -> None:
        kernels.paged_attention(q, cache, LAYER, buffers.metadata, scale=SCALE, layout=KVLayout.STANDARD, out=out)

    attend()  # loads the kernels
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        attend()
    for step, lengths in zip(steps, LENGTHS, strict=True):
        cache.zero_()[: len(step.kv_cache)] = step.kv_cache.nan_to_num()
        q.zero_()[: len(lengths)] = step.q
        out.fill_(float("nan"))
        positions = torch.tensor(lengths) - 1
        buffers.update(step.block_tables, step.slot_mapping, step.seq_lens, positions, torch.zeros_like(positions))
        graph.replay()
        kernels.synchronize()
        eager = replace(step, kv_cache=cache).attend(kernels)
        assert torch.equal(out[: len(lengths)], eager), lengths


def test_operations_between_the_products_can_be_captured(kernels: CudaKernels) -> None:
    x, residual, weight = (torch.randn(s, device=kernels.device).bfloat16() for s in ((8, 4096), (8, 4096), (4096,)))
    gate_up = torch.randn(8, 2 * 1536, device=kernels.device).bfloat16()
    summed = residual.clone()
    expected = kernels.rms_norm(x, weight, 1e-5, residual=summed), kernels.silu_and_mul(gate_up)
    graph = torch.cuda.CUDAGraph()
    work = residual.clone()
    with torch.cuda.graph(graph):
        found = kernels.rms_norm(x, weight, 1e-5, residual=work), kernels.silu_and_mul(gate_up)
    work.copy_(residual)
    graph.replay()
    kernels.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(work, summed)
