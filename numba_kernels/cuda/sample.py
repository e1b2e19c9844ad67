"""One step's choice of tokens without the host: a block of threads for each row of logits.

Passes over the row, the first from memory and the others from the L2 cache: one for the largest logit, which is all
that a greedy row needs; for each of top_k and top_p one with 8 thresholds an exponent apart, then some 3 to 8 more,
each of which leaves an eighth of the bracket (`sample_threshold.py`); one for the draw (`sample_draw.py`). Chunks that
lie beyond the bracket cost one comparison. An SM reads 64 bytes a cycle from L2: a row of 128,256 float32 takes it
about 5 us a pass, and a pass in which every token is weighed against 8 thresholds about 20 us (some 36 instructions a
token). Predicted, not yet measured: 5 us greedy, 12 drawn from everything, 45 with top_p where few tokens matter, 150
where the distribution is flat.

Against the CPU's sampler: the tokens within top_k and min_p are the same to the bit, for distances are. Sums of weights
are float32, to within some 1e-6 of the total: the result differs where top_p or the uniform number falls that close to
a token's boundary, and nowhere else. A row's result depends on the row alone.
"""

import functools
from collections.abc import Callable

from numba_kernels.cuda.sample_draw import make_draw
from numba_kernels.cuda.sample_row import INFINITE, SampleVariant, make_largest
from numba_kernels.cuda.sample_threshold import PIVOTS, make_threshold
from numba_kernels.cuda.target import Kernel, Target

# logits, temperature, top_k, top_p, log_min_p, uniform, token_ids, largest, is_finite; row stride; vocab_size
SAMPLE_ARGUMENTS = ("int64",) * 9 + ("int64", "int32")


def make_sample(variant: SampleVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_rows), `variant.num_threads` threads.

    logits [num_rows, vocab_size], not written, each row at a multiple of 16 bytes; what is behind a row's end is not
    read. Of each row, [num_rows]: temperature float32, 0 for the largest logit (the lowest id among equals); top_k
    int32, top_p, log_min_p float32 as in `make_threshold`; uniform float32 in [0, 1). Results, [num_rows]: token_ids
    int64; largest float32, the row's largest logit; is_finite int32, 0 if that is NaN or infinite: then the row has a
    NaN or plus infinity, or nothing but minus infinities, and the token id, though within the vocabulary, means
    nothing. Addresses, then the logits' row stride in bytes.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    float32, uint32, num_warps = target.float32, target.uint32, variant.num_warps
    largest, threshold, draw = (
        make_largest(variant, target),
        make_threshold(variant, target),
        make_draw(variant, target),
    )
    num_sums = 32 * PIVOTS

    def sample(  # type: ignore[no-untyped-def]
        logits, temperatures, top_ks, top_ps, log_min_ps, uniforms, token_ids, largests, are_finite, row_stride,
        vocab_size
    ):  # fmt: skip
        shared_keys = cuda.shared.array(num_warps, int32)
        shared_ids = cuda.shared.array(num_warps, int32)
        shared_sums = cuda.shared.array(num_sums, float32)
        shared_ends = cuda.shared.array(64, int32)
        totals = cuda.shared.array(PIVOTS, float32)
        parts = cuda.shared.array(num_warps, float32)
        index = int64(cuda.blockIdx.x)
        row = logits + index * row_stride
        key, token = largest(row, vocab_size, shared_keys, shared_ids)
        best = ptx.bits_f32(key if key >= 0 else int32(int32(-key) | int32(-(2**31))))
        is_finite = key > -INFINITE and key < INFINITE
        temperature = ptx.ldg_f32(temperatures + index * 4)
        if is_finite and temperature > float32(0.0):
            inverse = ptx.rcp_rn(temperature)
            bits = threshold(
                row, vocab_size, best, temperature, inverse, ptx.ldg_i32(top_ks + index * 4),
                ptx.ldg_f32(top_ps + index * 4), ptx.ldg_f32(log_min_ps + index * 4), shared_sums, shared_ends, totals,
            )  # fmt: skip
            uniform = ptx.ldg_f32(uniforms + index * 4)
            token = draw(row, vocab_size, best, temperature, inverse, bits, uniform, parts)
        if cuda.threadIdx.x == 0:
            ptx.stg_i64(token_ids + index * 8, int64(token))
            ptx.stg_f32(largests + index * 4, best)
            ptx.stg_u32(are_finite + index * 4, uint32(1 if is_finite else 0))

    return sample


@functools.cache
def sample_kernel(variant: SampleVariant) -> Kernel:
    """`make_sample` for the compiler."""
    return Kernel(
        lambda target: make_sample(variant, target),
        SAMPLE_ARGUMENTS,
        variant.num_threads,
        name=variant.name,
        instructions=("LDG.128", "MUFU.EX2"),
    )
