"""Every operation once, small: what compute-sanitizer watches. `python -m tests.gpu.sanitized`."""

import torch

from numba_kernels.cuda.kernels import CudaKernels
from tests.gpu import checks
from tests.gpu.checks import AttentionCheck
from tests.gpu.device import gpu_kernels

BATCHES = (
    ((1, 37), (1, 1), (1, 300)),  # decode, in one part and in two
    ((40, 40), (7, 90)),  # prefill, and a chunk of it
    ((1, 20), (33, 50), (1, 270)),
)
HEADS = ((4, 2, 64), (4, 2, 128), (12, 1, 128), (2, 1, 96), (2, 1, 256))


def run(kernels: CudaKernels) -> None:
    """Raises AssertionError for a wrong result, too."""
    torch.manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16):
        for heads in HEADS:
            for batch in BATCHES:
                checks.check_attention(kernels, AttentionCheck(batch, *heads, dtype=dtype))
        checks.check_attention(kernels, AttentionCheck(BATCHES[2], 4, 2, 64, dtype=dtype, window=33))
        checks.check_rms_norm(kernels, 5, 576, dtype)
        checks.check_rms_norm_of_heads(kernels, 5, 4, 128, dtype)
        checks.check_silu_and_mul(kernels, 5, 1536, dtype)
        checks.check_write_kv(kernels, 20, 2, 64, dtype)
        checks.check_rope_and_write_kv(kernels, 20, 4, 2, 64, dtype)
        checks.check_sample(kernels, 7, 1000, dtype)
        for kv_dtype in kernels.quantised_dtypes:
            checks.check_quantised_write(kernels, 20, 4, 2, 64, dtype)
            for batch in BATCHES:
                checks.check_attention(kernels, AttentionCheck(batch, 4, 2, 128, dtype=dtype, kv_dtype=kv_dtype))
    checks.check_copy_blocks(kernels, 9, (3, 2, 2, 16, 64))
    checks.check_swap(kernels, 9, (3, 2, 2, 16, 64))


if __name__ == "__main__":
    run(gpu_kernels())
    print("all results are right")
