"""The product's kernels by name: what the compile gate, prebuilding and the model go through.

Those of the usual shapes: blocks of 16 tokens, the cache's default; the usual widths of norms, in float16 one; rows of
logits that take 1024 threads. Any other shape is the same source, compiled when used. The rotation that norms the heads
too is here, but the engine does not launch it yet (`RopeVariant`).
"""

from numba_kernels.cuda.block_copy import copy_blocks_kernel
from numba_kernels.cuda.decode import ELEMENTS, HEAD_DIMS, decode_kernels
from numba_kernels.cuda.decode_merge import merge_splits_kernel
from numba_kernels.cuda.kv_write import write_kv_kernels
from numba_kernels.cuda.prefill import prefill_kernels
from numba_kernels.cuda.rms_norm import common_rms_norms, rms_norm_kernel
from numba_kernels.cuda.rope_kv_write import common_rope_kv_writes, rope_kv_write_kernel
from numba_kernels.cuda.sample import sample_kernel
from numba_kernels.cuda.sample_row import SampleVariant
from numba_kernels.cuda.sampled_ids import take_sampled_kernel
from numba_kernels.cuda.silu_and_mul import silu_and_mul_kernel
from numba_kernels.cuda.target import Kernel


def catalog() -> dict[str, Kernel]:
    """By name. Raises ValueError if two kernels share one, or one has none."""
    kernels = [
        *decode_kernels(),
        *prefill_kernels(),
        *(merge_splits_kernel(head_dim, element) for head_dim in HEAD_DIMS for element in ELEMENTS),
        *write_kv_kernels(),
        copy_blocks_kernel(),
        take_sampled_kernel(),
        *map(rms_norm_kernel, common_rms_norms()),
        *map(rope_kv_write_kernel, common_rope_kv_writes()),
        *(silu_and_mul_kernel(element) for element in ELEMENTS),
        *(sample_kernel(SampleVariant(element)) for element in ("f32", *ELEMENTS)),
    ]
    named = {kernel.name: kernel for kernel in kernels}
    if len(named) < len(kernels) or "" in named:
        names = sorted(kernel.name for kernel in kernels)
        raise ValueError(f"each kernel needs a name of its own: {names}")
    return named
