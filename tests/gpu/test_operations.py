"""Every operation on a GPU against float64, with poisoned outputs, caches and random block tables."""

import random

import pytest
import torch

from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu import checks
from tests.gpu.checks import AttentionCheck

pytestmark = pytest.mark.gpu

DTYPES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
# (num_heads, num_kv_heads, head_dim): SmolLM2, Llama-3.2-1B, Llama-3.1-8B, and the corners of groups and head_dims.
HEADS = [(9, 3, 64), (32, 8, 64), (32, 8, 128), (4, 4, 96), (16, 1, 128), (10, 2, 256), (12, 1, 64)]


def mixed(seed: int, num_decodes: int, num_prefills: int, longest: int) -> tuple[tuple[int, int], ...]:
    """Sequences of one query and of several, in any order."""
    rng = random.Random(seed)
    decodes = [(1, rng.randint(1, longest)) for _ in range(num_decodes)]
    prefills = []
    for _ in range(num_prefills):
        num_queries = rng.randint(2, 200)
        prefills.append((num_queries, num_queries + rng.choice([0, rng.randint(0, longest)])))
    sequences = [*decodes, *prefills]
    rng.shuffle(sequences)
    return tuple(sequences)


@DTYPES
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_decode(kernels: CudaKernels, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    edges = tuple((1, n) for n in (1, 15, 16, 17, 255, 256, 257, 511, 512, 4097))
    checks.check_attention(kernels, AttentionCheck(edges, *heads, dtype=dtype))
    checks.check_attention(kernels, AttentionCheck(mixed(0, 64, 0, 1500), *heads, dtype=dtype))


@pytest.mark.parametrize("window", [1, 16, 100, 1000])
def test_decode_with_a_window(kernels: CudaKernels, window: int) -> None:
    checks.check_attention(kernels, AttentionCheck(mixed(1, 20, 0, 3000), 32, 8, 128, window=window))


def test_decode_of_a_long_context(kernels: CudaKernels) -> None:
    checks.check_attention(kernels, AttentionCheck(((1, 32768), (1, 3)), 32, 8, 128))


@DTYPES
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_prefill_and_mixed_batches(kernels: CudaKernels, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    prefills = ((64, 64), (200, 200), (17, 300), (2, 2), (128, 640))
    checks.check_attention(kernels, AttentionCheck(prefills, *heads, dtype=dtype))
    checks.check_attention(kernels, AttentionCheck(mixed(2, 12, 5, 700), *heads, dtype=dtype))


@pytest.mark.parametrize("window", [1, 40, 500])
def test_prefill_with_a_window(kernels: CudaKernels, window: int) -> None:
    checks.check_attention(kernels, AttentionCheck(mixed(3, 4, 6, 900), 32, 8, 128, window=window))


def test_a_sequences_bits_do_not_depend_on_its_batch(kernels: CudaKernels) -> None:
    checks.check_same_alone(kernels, AttentionCheck(mixed(4, 30, 6, 1500), 32, 8, 128))


@DTYPES
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_a_cache_of_8_bits(e4m3_kernels: CudaKernels, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    checks.check_quantised_write(e4m3_kernels, 100, *heads, dtype)
    for sequences, window in ((mixed(5, 40, 0, 1500), None), (mixed(6, 12, 5, 700), 100)):
        check = AttentionCheck(sequences, *heads, dtype, window, torch.float8_e4m3fn, checks.E4M3_SCALES)
        checks.check_attention(e4m3_kernels, check)


@DTYPES
@pytest.mark.parametrize("width", [64, 576, 2048, 4096, 5120])
def test_rms_norm(kernels: CudaKernels, width: int, dtype: torch.dtype) -> None:
    checks.check_rms_norm(kernels, 33, width, dtype)


@DTYPES
@pytest.mark.parametrize("head_dim", [64, 128])
def test_rms_norm_of_heads(kernels: CudaKernels, head_dim: int, dtype: torch.dtype) -> None:
    checks.check_rms_norm_of_heads(kernels, 33, 16, head_dim, dtype)


@DTYPES
@pytest.mark.parametrize("width", [1536, 8192, 14336])
def test_silu_and_mul(kernels: CudaKernels, width: int, dtype: torch.dtype) -> None:
    checks.check_silu_and_mul(kernels, 33, width, dtype)


@DTYPES
@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_rope_and_write_kv(kernels: CudaKernels, heads: tuple[int, int, int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    checks.check_rope_and_write_kv(kernels, 100, *heads, dtype)


@DTYPES
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_write_kv(kernels: CudaKernels, head_dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    checks.check_write_kv(kernels, 100, 3, head_dim, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("vocab_size", [8, 1000, 49152, 128256, 151936])
def test_sampling(kernels: CudaKernels, vocab_size: int, dtype: torch.dtype) -> None:
    checks.check_sample(kernels, 70, vocab_size, dtype)


@pytest.mark.parametrize("row", [(32, 2, 8, 16, 128), (30, 2, 3, 16, 64), (1, 2, 1, 16, 64)], ids=str)
def test_copies_and_swaps(kernels: CudaKernels, row: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    checks.check_copy_blocks(kernels, 64, row)
    checks.check_swap(kernels, 65, row)
