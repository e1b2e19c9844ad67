"""The differential checks that a GPU will have to pass, run on the simulated device: small shapes, the same code."""

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from tests.gpu import checks
from tests.gpu.checks import AttentionCheck

BF16 = torch.bfloat16


@pytest.fixture
def kernels() -> CudaKernels:
    torch.manual_seed(0)
    return CudaKernels(SimulatedLauncher())


def test_attention(kernels: CudaKernels) -> None:
    checks.check_attention(kernels, AttentionCheck(((1, 37), (1, 1), (1, 300)), window=120))


def test_a_cache_of_8_bits(kernels: CudaKernels) -> None:
    checks.check_quantised_write(kernels, 5, 4, 2, 64, BF16)
    cache = {"kv_dtype": torch.float8_e4m3fn, "kv_scales": checks.E4M3_SCALES}
    checks.check_attention(kernels, AttentionCheck(((9, 20), (1, 37), (1, 300)), **cache))


def test_a_sequence_alone_and_in_a_batch(kernels: CudaKernels) -> None:
    checks.check_same_alone(kernels, AttentionCheck(((1, 20), (1, 40))))


def test_operations_between_the_products(kernels: CudaKernels) -> None:
    checks.check_rms_norm(kernels, 3, 256, BF16)
    checks.check_rms_norm_of_heads(kernels, 3, 2, 64, BF16)
    checks.check_silu_and_mul(kernels, 3, 256, BF16)
    checks.check_write_kv(kernels, 5, 2, 64, BF16)
    checks.check_rope_and_write_kv(kernels, 5, 4, 2, 64, BF16)


def test_sampling(kernels: CudaKernels) -> None:
    checks.check_sample(kernels, 3, 64, torch.float32)


def test_prefill_and_a_mixed_batch(kernels: CudaKernels) -> None:
    checks.check_attention(kernels, AttentionCheck(((20, 20), (1, 18), (3, 37))))


def test_copies(kernels: CudaKernels) -> None:
    checks.check_copy_blocks(kernels, 5, (2, 2, 1, 16, 64))
    checks.check_swap(kernels, 4, (2, 2, 8))


def test_a_row_that_is_off_is_found_among_many() -> None:
    exact = torch.randn(1000, 64, dtype=torch.float64)
    mine = exact.clone()
    checks.assert_close(mine, exact, 4e-3)
    mine[17] *= 1.05
    with pytest.raises(AssertionError, match="row 17"):
        checks.assert_close(mine, exact, 4e-3)
    mine[17, 3] = float("nan")
    with pytest.raises(AssertionError, match="not finite"):
        checks.assert_close(mine, exact, 4e-3)


def test_a_write_outside_its_slots_is_found(kernels: CudaKernels, monkeypatch: pytest.MonkeyPatch) -> None:
    write = kernels.rope_and_write_kv

    def careless(q, k, v, cos, sin, positions, cache, *rest, **layout):  # type: ignore[no-untyped-def]
        write(q, k, v, cos, sin, positions, cache, *rest, **layout)
        cache[0, 0, 0, 0, 0, 0] = 1.0

    monkeypatch.setattr(kernels, "rope_and_write_kv", careless)
    with pytest.raises(AssertionError, match="must not be"):
        checks.check_rope_and_write_kv(kernels, 3, 2, 1, 64, BF16)
