"""What happens to a step's projected heads before attention, in one pass: norm, rotation, and the way into the cache.

Each thread holds 8 elements of a head's first half and the 8 of its second that turn with them: 32 bytes. Per token
head_dim x 2 bytes of every head of q, k and v are read and written once, and head_dim x 4 of cos and sin, which the
other heads find in the L1 cache.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numba_kernels.cuda.reduction import make_lane_sum
from numba_kernels.cuda.rms_norm import make_weighted
from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 128
HEAD_DIMS = (64, 96, 128, 256)
ELEMENTS = ("bf16", "f16")

# q, k, v, q_norm, k_norm, cos, sin, positions, k_cache, v_cache, slot_mapping; strides of q, k and v (row, head) and
# of the cache (block, token, head); num_heads, num_kv_heads; eps, k_inverse_scale, v_inverse_scale
ROPE_KV_WRITE_ARGUMENTS = ("int64",) * 11 + ("int64",) * 9 + ("int32", "int32") + ("float32",) * 3


@dataclass(frozen=True, slots=True)
class RopeVariant:
    """What is constant in a compiled kernel. Raises ValueError for what has no kernel.

    `norm` is built and tested, but the engine does not launch it yet: it norms the heads by `rms_norm` before.
    """

    head_dim: int
    element: str = "bf16"  # of q, k, v and the cache
    block_size: int = 16  # tokens per block of the cache
    norm: bool = False  # whether the heads of q and k are normed first, as Qwen3 does
    kv_element: str = ""  # "e4m3": a cache of 8-bit numbers, from compute capability 8.9 on

    def __post_init__(self) -> None:
        known = self.element in ELEMENTS and self.kv_element in ("", "e4m3")
        if self.head_dim not in HEAD_DIMS or not known or self.block_size <= 0:
            raise ValueError(f"no rotation of head_dim {self.head_dim}, {self.element}, blocks of {self.block_size}")
        if self.norm and self.lanes_per_head & (self.lanes_per_head - 1):
            raise ValueError(f"no norm of heads of {self.head_dim} with their rotation: use rms_norm before it")

    @property
    def name(self) -> str:
        """Of the kernel."""
        elements = f"{self.element}-{self.kv_element}" if self.kv_element else self.element
        return f"rope-kv-write-{elements}-{self.head_dim}-b{self.block_size}{'-norm' if self.norm else ''}"

    @property
    def lanes_per_head(self) -> int:
        """Threads for a head."""
        return self.head_dim // 16

    def num_blocks(self, num_heads: int, num_kv_heads: int) -> int:
        """The grid's second extent."""
        return -(-(num_heads + 2 * num_kv_heads) * self.lanes_per_head // NUM_THREADS)


def make_norm_head(variant: RopeVariant, target: Target) -> tuple[Any, Any]:
    """head_factor(x, eps) -> what a head of which each of its lanes holds the 8 words `x` is to be multiplied by;
    scale_head(x, factor, weight): x times that and the weights at the lane's address. As `rms_norm` does it.

    Two functions, because all lanes of a warp have to sum, those of v too, but v is not to be scaled.
    """
    ptx, float32, head_dim = target.ptx, target.float32, variant.head_dim
    unpack, weighted = getattr(ptx, f"unpack_{variant.element}"), make_weighted(variant.element, target)
    head_sum, inverse_dim = make_lane_sum(variant.lanes_per_head, target), 1.0 / head_dim

    @target.device
    def head_factor(x, eps):  # type: ignore[no-untyped-def]
        total = float32(0.0)
        for i in range(8):
            low, high = unpack(x[i])
            total += low * low + high * high
        return ptx.rsqrt(head_sum(total) * float32(inverse_dim) + eps)

    @target.device
    def scale_head(x, factor, weight):  # type: ignore[no-untyped-def]
        for half in range(2):
            w0, w1, w2, w3 = ptx.ldg128(weight + half * head_dim)
            x[half * 4] = weighted(x[half * 4], factor, w0)
            x[half * 4 + 1] = weighted(x[half * 4 + 1], factor, w1)
            x[half * 4 + 2] = weighted(x[half * 4 + 2], factor, w2)
            x[half * 4 + 3] = weighted(x[half * 4 + 3], factor, w3)

    return head_factor, scale_head


def make_rotate(element: str, target: Target) -> Any:
    """rotate(x, cos, sin): turn words 0-3 of x with words 4-7, by the 8 angles at the addresses cos and sin."""
    cuda, ptx, float32 = target.cuda, target.ptx, target.float32
    pack, unpack = getattr(ptx, f"pack_{element}"), getattr(ptx, f"unpack_{element}")

    @target.device
    def load_angles(values, address):  # type: ignore[no-untyped-def]
        for i in range(2):
            a, b, c, d = ptx.ldg_f32x4(address + i * 16)
            values[i * 4] = a
            values[i * 4 + 1] = b
            values[i * 4 + 2] = c
            values[i * 4 + 3] = d

    @target.device
    def rotate(x, cos_address, sin_address):  # type: ignore[no-untyped-def]
        cos = cuda.local.array(8, float32)
        sin = cuda.local.array(8, float32)
        load_angles(cos, cos_address)
        load_angles(sin, sin_address)
        for i in range(4):
            a0, a1 = unpack(x[i])
            b0, b1 = unpack(x[i + 4])
            c0, c1, s0, s1 = cos[2 * i], cos[2 * i + 1], sin[2 * i], sin[2 * i + 1]
            x[i] = pack(a0 * c0 - b0 * s0, a1 * c1 - b1 * s1)
            x[i + 4] = pack(b0 * c0 + a0 * s0, b1 * c1 + a1 * s1)

    return rotate


def make_store_quantised(variant: RopeVariant, target: Target) -> Any:
    """store_quantised(x, to, inverse_scale): x times inverse_scale as e4m3; `to` is where the first half goes.

    As `kv_write` does it: from rounded elements, what is beyond 448 becoming 448.
    """
    ptx, half_bytes = target.ptx, variant.head_dim // 2
    unpack = getattr(ptx, f"unpack_{variant.element}")

    @target.device
    def quantise(first, second, inverse_scale):  # type: ignore[no-untyped-def]
        a, b = unpack(first)
        c, d = unpack(second)
        return ptx.pack_e4m3(a * inverse_scale, b * inverse_scale, c * inverse_scale, d * inverse_scale)

    @target.device
    def store_quantised(x, to, inverse_scale):  # type: ignore[no-untyped-def]
        ptx.stg64(to, quantise(x[0], x[1], inverse_scale), quantise(x[2], x[3], inverse_scale))
        ptx.stg64(to + half_bytes, quantise(x[4], x[5], inverse_scale), quantise(x[6], x[7], inverse_scale))

    return store_quantised


def make_rope_kv_write(variant: RopeVariant, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_tokens, variant.num_blocks(num_heads, num_kv_heads)), `NUM_THREADS` threads.

    q [num_tokens, num_heads, head_dim], rotated in place; k and v [num_tokens, num_kv_heads, head_dim], left as they
    are; q_norm and k_norm [head_dim] (0 without `norm`, as eps); cos and sin float32 [max_positions, head_dim / 2];
    positions int64 [num_tokens]; a layer's K and V [num_blocks, ..., num_kv_heads, block_size, head_dim]; slot_mapping
    int64 [num_tokens], block * block_size + offset, or -1: neither k nor v is written, q is rotated all the same.
    Addresses, then strides in bytes; all but positions' and slot_mapping's multiples of 16. For a cache of e4m3, 1 /
    the scales: what its numbers are to be multiplied by to be k and v again. But for q, no input may be written during
    the launch, and q and k may not overlap.

    As the CPU's: element i of the first half turns with element i of the second, in float32, rounded once.
    """
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    uint32, has_norm, head_dim, block_size = target.uint32, variant.norm, variant.head_dim, variant.block_size
    lanes, rotate = variant.lanes_per_head, make_rotate(variant.element, target)
    quantised, stored_bytes = bool(variant.kv_element), 8 if variant.kv_element else 16
    store_quantised = make_store_quantised(variant, target)
    head_factor, scale_head = make_norm_head(variant, target)

    def rope_kv_write(  # type: ignore[no-untyped-def]
        q, k, v, q_norm, k_norm, cos, sin, positions, k_cache, v_cache, slot_mapping, q_stride, q_head_stride, k_stride,
        k_head_stride, v_stride, v_head_stride, block_stride, token_stride, head_stride, num_heads, num_kv_heads, eps,
        k_inverse_scale, v_inverse_scale
    ):  # fmt: skip
        token = int64(cuda.blockIdx.x)
        position = ptx.ldg_i64(positions + token * 8)
        slot = ptx.ldg_i64(slot_mapping + token * 8)
        item = int32(int32(cuda.blockIdx.y) * NUM_THREADS + int32(cuda.threadIdx.x))
        first_v = int32(num_heads + num_kv_heads)
        exists = item < (first_v + num_kv_heads) * lanes
        # A thread without work does the last one's, for its warp's sums, and stores nothing.
        head = int32(min(int32(item // lanes), int32(first_v + num_kv_heads - 1)))
        lane = int32(item % lanes)
        at = int64(lane) * 16
        block = int64(uint32(slot) // uint32(block_size))
        place = block * block_stride + (slot - block * block_size) * token_stride + int64(lane) * stored_bytes
        if head < num_heads:
            source = q + token * q_stride + head * q_head_stride + at
            to = source
        elif head < first_v:
            source = k + token * k_stride + (head - num_heads) * k_head_stride + at
            to = k_cache + place + (head - num_heads) * head_stride
        else:
            source = v + token * v_stride + (head - first_v) * v_head_stride + at
            to = v_cache + place + (head - first_v) * head_stride
        x = cuda.local.array(8, uint32)
        for half in range(2):
            w0, w1, w2, w3 = ptx.ld128(source + half * head_dim)
            x[half * 4] = w0
            x[half * 4 + 1] = w1
            x[half * 4 + 2] = w2
            x[half * 4 + 3] = w3
        if has_norm:
            factor = head_factor(x, eps)
            if head < first_v:
                scale_head(x, factor, (q_norm if head < num_heads else k_norm) + at)
        if head < first_v:
            angle = position * (head_dim * 2) + at * 2
            rotate(x, cos + angle, sin + angle)
        if exists and (head < num_heads or slot >= 0):
            if quantised and head >= num_heads:
                store_quantised(x, to, k_inverse_scale if head < first_v else v_inverse_scale)
            else:
                ptx.stg128(to, x[0], x[1], x[2], x[3])
                ptx.stg128(to + head_dim, x[4], x[5], x[6], x[7])

    return rope_kv_write


@functools.cache
def rope_kv_write_kernel(variant: RopeVariant) -> Kernel:
    """`make_rope_kv_write` for the compiler."""
    return Kernel(
        lambda target: make_rope_kv_write(variant, target),
        ROPE_KV_WRITE_ARGUMENTS,
        NUM_THREADS,
        8,
        name=variant.name,
        min_compute_capability=(8, 9) if variant.kv_element else (8, 0),
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )


def common_rope_kv_writes() -> list[RopeVariant]:
    """Every head_dim and element, and head_dim 64 and 128 in bfloat16 with a norm, all into a cache of e4m3 too."""
    plain = [RopeVariant(head_dim, element) for head_dim in HEAD_DIMS for element in ELEMENTS]
    variants = [*plain, RopeVariant(64, norm=True), RopeVariant(128, norm=True)]
    return [*variants, *(dataclasses.replace(v, kv_element="e4m3") for v in variants)]
