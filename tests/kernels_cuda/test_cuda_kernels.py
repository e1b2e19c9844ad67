"""`CudaKernels` over the simulated device: every operation of `Kernels`, against float64 or plain torch."""

import pytest
import torch

from numba_kernels import KVLayout
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from tests.kernels_cuda.batches import BLOCK_SIZE, LAYER, SCALE, random_step
from tests.kernels_cuda.decode_batches import relative_error

TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture
def kernels() -> CudaKernels:
    return CudaKernels(SimulatedLauncher())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decode_matches_float64(kernels: CudaKernels, dtype: torch.dtype) -> None:
    step = random_step([(1, 37), (1, 1), (1, 300)], dtype=dtype)
    assert relative_error(step.attend(kernels), step.exact()) < TOLERANCE[dtype]


def test_a_window_hides_what_is_before_it(kernels: CudaKernels) -> None:
    step = random_step([(1, 90), (1, 20)])
    assert relative_error(step.attend(kernels, window=33), step.exact(window=33)) < 4e-3


def test_the_result_goes_where_it_is_wanted(kernels: CudaKernels) -> None:
    step = random_step([(1, 20)])
    out = torch.full_like(step.q, float("nan"))
    assert step.attend(kernels, out=out) is out
    assert torch.equal(out, step.attend(kernels))


def test_queries_may_be_part_of_a_wider_projection(kernels: CudaKernels) -> None:
    step = random_step([(1, 20), (1, 33)])
    projected = torch.cat((step.q, torch.full_like(step.q, float("nan"))), dim=1)
    arguments = (step.kv_cache, LAYER, step.metadata(kernels))
    out = kernels.paged_attention(projected[:, :4], *arguments, scale=SCALE, layout=KVLayout.STANDARD)
    assert torch.equal(out, step.attend(kernels))


def test_keys_and_values_are_written_to_their_slots(kernels: CudaKernels) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 2, 64, dtype=torch.bfloat16).unbind()
    cache = torch.zeros(3, 2, 2, 2, BLOCK_SIZE, 64, dtype=torch.bfloat16)
    kernels.write_kv(k, v, cache, LAYER, torch.tensor([17, -1, 47]), layout=KVLayout.STANDARD)
    expected = torch.zeros_like(cache)
    expected[1, LAYER, :, :, 1] = torch.stack((k[0], v[0]))
    expected[2, LAYER, :, :, 15] = torch.stack((k[2], v[2]))
    assert torch.equal(cache, expected)


def test_blocks_are_copied(kernels: CudaKernels) -> None:
    cache = torch.arange(5 * 64, dtype=torch.int16).view(torch.bfloat16).reshape(5, 1, 1, 1, 1, 64)
    expected = cache.clone()
    expected[[4, 1]] = cache[[0, 3]]
    kernels.copy_blocks(cache, torch.tensor([[0, 4], [3, 1]]))
    assert torch.equal(cache.view(torch.int16), expected.view(torch.int16))


def test_blocks_go_out_to_the_host_and_come_back_elsewhere(kernels: CudaKernels) -> None:
    device, host = torch.randn(4, 2, 8), torch.zeros(3, 2, 8)
    before = device.clone()
    kernels.swap_blocks(device, host, torch.tensor([[1, 2], [3, 0]]))
    kernels.swap_blocks(host, device, torch.tensor([[2, 0], [0, 2]]))  # in order: no need to wait
    kernels.synchronize()
    assert torch.equal(device, before[[1, 1, 3, 3]])
    assert torch.equal(host[[2, 0]], before[[1, 3]])


def test_a_host_that_does_not_wait_for_swapped_blocks_reads_nan(kernels: CudaKernels) -> None:
    device, host = torch.randn(2, 8), torch.zeros(2, 8)
    kernels.swap_blocks(device, host, torch.tensor([[1, 0]]))
    device[1] = 0  # later than the copy, as far as the stream is concerned
    assert host[0].isnan().all()
    assert not host[1].any()
    kernels.synchronize()
    assert host[0].any()
