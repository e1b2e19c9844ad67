"""RMS norm of rows, of x or of `residual += x`, with the row in registers between its two uses.

Memory is read and written once: width x 2 bytes of x and of the result per row, with a residual twice that; the weights
come from the L2 cache. A decode step's few rows are bound by latency: two loads deep, one barrier at most.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba_kernels.cuda.reduction import make_block_sum, make_lane_sum
from numba_kernels.cuda.target import Kernel, Target

ELEMENTS = ("bf16", "f16")
MAX_WIDTH = 16384
COMMON_WIDTHS = (64, 128, 576, 2048, 2560, 4096, 5120, 8192)  # heads (Qwen3's) and hidden sizes
_LANE_ELEMENTS = 8  # 16 bytes
_WARP_CHUNKS = 64  # what a warp takes on alone: two loads of 16 bytes a lane
_NUM_THREADS, _MAX_THREADS = 128, 512  # of a block

# x, residual, weight, out; strides of x (group, row), of residual (row); rows_per_group, eps
RMS_NORM_ARGUMENTS = ("int64",) * 4 + ("int64",) * 3 + ("int32", "float32")


@dataclass(frozen=True, slots=True)
class RmsNormVariant:
    """What is constant in a compiled norm. Raises ValueError for a width that has no kernel."""

    width: int  # a multiple of 8
    element: str = "bf16"  # of every tensor
    residual: bool = False

    def __post_init__(self) -> None:
        if self.element not in ELEMENTS or not 0 < self.width <= MAX_WIDTH or self.width % _LANE_ELEMENTS:
            raise ValueError(f"no norm of {self.width} elements {self.element}")

    @property
    def name(self) -> str:
        """Of the kernel."""
        return f"rms-norm-{self.element}-{self.width}" + ("-residual" if self.residual else "")

    @property
    def num_chunks(self) -> int:
        """Of 16 bytes in a row."""
        return self.width // _LANE_ELEMENTS

    @property
    def threads_per_row(self) -> int:
        """A power of two up to a warp, or else whole warps with two chunks a thread, above 8192 with up to four."""
        if self.num_chunks <= _WARP_CHUNKS:
            return min(32, 1 << (self.num_chunks - 1).bit_length())
        return min(_MAX_THREADS, -(-self.num_chunks // 64) * 32)

    @property
    def num_threads(self) -> int:
        """Of a block."""
        return _NUM_THREADS if self.num_chunks <= _WARP_CHUNKS else self.threads_per_row

    @property
    def rows_per_block(self) -> int:
        """The grid's first extent is rows_per_group divided by this, rounded up."""
        return self.num_threads // self.threads_per_row

    @property
    def chunks_per_thread(self) -> int:
        """What each thread holds."""
        return -(-self.num_chunks // self.threads_per_row)

    @property
    def is_whole(self) -> bool:
        """Whether every thread has all of its chunks."""
        return self.num_chunks == self.threads_per_row * self.chunks_per_thread


def make_load_row(variant: RmsNormVariant, load: Any, target: Target) -> Any:
    """load_row(held, row, lane): this thread's chunks by `load`, one of `ptx`'s; zero behind the row's end."""
    int64, uint32 = target.int64, target.uint32
    stride, num_chunks, whole = variant.threads_per_row, variant.num_chunks, variant.is_whole
    held_chunks = variant.chunks_per_thread

    @target.device
    def load_row(held, row, lane):  # type: ignore[no-untyped-def]
        for c in range(held_chunks):
            if whole or lane + c * stride < num_chunks:
                w0, w1, w2, w3 = load(row + int64(lane + c * stride) * 16)
                held[c * 4] = w0
                held[c * 4 + 1] = w1
                held[c * 4 + 2] = w2
                held[c * 4 + 3] = w3
            else:
                for i in range(4):
                    held[c * 4 + i] = uint32(0)

    return load_row


def make_store_row(variant: RmsNormVariant, target: Target) -> Any:
    """store_row(held, row, lane)."""
    ptx, int64, held_chunks = target.ptx, target.int64, variant.chunks_per_thread
    stride, num_chunks, whole = variant.threads_per_row, variant.num_chunks, variant.is_whole

    @target.device
    def store_row(held, row, lane):  # type: ignore[no-untyped-def]
        for c in range(held_chunks):
            if whole or lane + c * stride < num_chunks:
                to = row + int64(lane + c * stride) * 16
                ptx.stg128(to, held[c * 4], held[c * 4 + 1], held[c * 4 + 2], held[c * 4 + 3])

    return store_row


def make_row_sum(variant: RmsNormVariant, target: Target) -> Any:
    """row_sum(x): the sum over a row's threads."""
    cuda, float32 = target.cuda, target.float32
    if variant.rows_per_block > 1:
        return make_lane_sum(variant.threads_per_row, target)
    num_warps = variant.num_threads // 32
    block_sum = make_block_sum(num_warps, target)

    @target.device
    def row_sum(x):  # type: ignore[no-untyped-def]
        return block_sum(x, cuda.shared.array(num_warps, float32))

    return row_sum


def make_weighted(element: str, target: Target) -> Any:
    """weighted(pair, factor, weights): the pair times factor, rounded, times the pair of weights, rounded."""
    pack, unpack = getattr(target.ptx, f"pack_{element}"), getattr(target.ptx, f"unpack_{element}")

    @target.device
    def weighted(pair, factor, weights):  # type: ignore[no-untyped-def]
        low, high = unpack(pair)
        low, high = unpack(pack(low * factor, high * factor))
        weight_low, weight_high = unpack(weights)
        return pack(low * weight_low, high * weight_high)

    return weighted


def make_rms_norm(variant: RmsNormVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (ceil(rows_per_group / rows_per_block), num_groups), `num_threads` threads.

    x [num_groups, rows_per_group, width]: a norm of [num_tokens, width] is one group of num_tokens rows; a norm per
    head of [num_tokens, num_heads, width] is one group for each token. out: the same shape, contiguous. weight
    [width]. residual [rows_per_group, width]: only with one group, else 0, as its stride. Addresses, then strides in
    bytes, all multiples of 16. x and weight must not be written during the launch.

    As the CPU's: (x + residual) rounded; that over the root of its mean square + eps, rounded; times weight, rounded.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    float32, uint32, width, has_residual = target.float32, target.uint32, variant.width, variant.residual
    pack, unpack = getattr(ptx, f"pack_{variant.element}"), getattr(ptx, f"unpack_{variant.element}")
    load_row, load_written = make_load_row(variant, ptx.ldg128, target), make_load_row(variant, ptx.ld128, target)
    store_row, row_sum = make_store_row(variant, target), make_row_sum(variant, target)
    weighted = make_weighted(variant.element, target)
    threads, rows_per_block = variant.threads_per_row, variant.rows_per_block
    held_words, inverse_width = variant.chunks_per_thread * 4, 1.0 / width

    @target.device
    def added(a, b):  # type: ignore[no-untyped-def]
        a_low, a_high = unpack(a)
        b_low, b_high = unpack(b)
        return pack(a_low + b_low, a_high + b_high)

    def rms_norm(x, residual, weight, out, group_stride, row_stride, residual_stride, rows_per_group, eps):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        lane = int32(thread % threads)
        own = int32(int32(cuda.blockIdx.x) * rows_per_block + thread // threads)
        row = int64(min(own, int32(rows_per_group - 1)))  # a thread without a row helps its warp's sums
        group = int64(cuda.blockIdx.y)
        held = cuda.local.array(held_words, uint32)
        weights = cuda.local.array(held_words, uint32)
        load_row(held, x + group * group_stride + row * row_stride, lane)
        if has_residual:
            before = cuda.local.array(held_words, uint32)
            load_written(before, residual + row * residual_stride, lane)
        load_row(weights, weight, lane)
        if has_residual:
            for i in range(held_words):
                held[i] = added(before[i], held[i])
            if own < rows_per_group:
                store_row(held, residual + row * residual_stride, lane)
        total = float32(0.0)
        for i in range(held_words):
            low, high = unpack(held[i])
            total += low * low + high * high
        factor = ptx.rsqrt(row_sum(total) * float32(inverse_width) + eps)
        for i in range(held_words):
            held[i] = weighted(held[i], factor, weights[i])
        if own < rows_per_group:
            store_row(held, out + (group * rows_per_group + row) * (2 * width), lane)

    return rms_norm


@functools.cache
def rms_norm_kernel(variant: RmsNormVariant) -> Kernel:
    """`make_rms_norm` for the compiler."""
    return Kernel(
        lambda target: make_rms_norm(variant, target),
        RMS_NORM_ARGUMENTS,
        variant.num_threads,
        (1024 if variant.chunks_per_thread <= 2 else 512) // variant.num_threads,
        name=variant.name,
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )


def common_rms_norms() -> list[RmsNormVariant]:
    """Of common widths in bfloat16, and one in float16; another is the same source, compiled when used."""
    variants = [RmsNormVariant(w, residual=r) for w in COMMON_WIDTHS for r in (False, True) if w > 128 or not r]
    return [*variants, RmsNormVariant(4096, "f16"), RmsNormVariant(4096, "f16", True)]
