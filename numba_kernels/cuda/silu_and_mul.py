"""silu(gate) * up over the fused projection, 16 bytes of each a thread.

Per row width x 4 bytes are read and width x 2 written, each once.
"""

import functools
from collections.abc import Callable

from numba_kernels.cuda.target import Kernel, Target

NUM_THREADS = 256
_LANE_ELEMENTS = 8  # 16 bytes
_MINUS_LOG2_E = -1.4426950408889634

# gate_up, out; gate_up's row stride; width
SILU_AND_MUL_ARGUMENTS = ("int64",) * 3 + ("int32",)


def num_chunks(width: int) -> int:
    """The grid's second extent."""
    return -(-width // (_LANE_ELEMENTS * NUM_THREADS))


def make_silu_and_mul(element: str, target: Target) -> Callable[..., None]:
    """The kernel. Grid (num_tokens, num_chunks(width)), `NUM_THREADS` threads.

    gate_up [num_tokens, 2 * width], gate first; out [num_tokens, width], contiguous; width a multiple of 8. Addresses,
    then gate_up's stride in bytes, all multiples of 16. gate_up must not be written during the launch.
    In float32, rounded once. Below -88, where silu's absolute value is under 1e-36, it is 0.
    """
    cuda, ptx, int64, float32 = target.cuda, target.ptx, target.int64, target.float32
    pack, unpack = getattr(ptx, f"pack_{element}"), getattr(ptx, f"unpack_{element}")

    @target.device
    def silu_times(x, up):  # type: ignore[no-untyped-def]
        return x * ptx.rcp(float32(1.0) + ptx.ex2(x * float32(_MINUS_LOG2_E))) * up

    @target.device
    def pair(gate, up):  # type: ignore[no-untyped-def]
        gate_low, gate_high = unpack(gate)
        up_low, up_high = unpack(up)
        return pack(silu_times(gate_low, up_low), silu_times(gate_high, up_high))

    def silu_and_mul(gate_up, out, stride, width):  # type: ignore[no-untyped-def]
        row = int64(cuda.blockIdx.x)
        at = (int64(cuda.blockIdx.y) * NUM_THREADS + int64(cuda.threadIdx.x)) * _LANE_ELEMENTS
        if at < width:
            gate = gate_up + row * stride + at * 2
            g0, g1, g2, g3 = ptx.ldg128(gate)
            u0, u1, u2, u3 = ptx.ldg128(gate + int64(width) * 2)
            ptx.stg128(out + (row * width + at) * 2, pair(g0, u0), pair(g1, u1), pair(g2, u2), pair(g3, u3))

    return silu_and_mul


@functools.cache
def silu_and_mul_kernel(element: str) -> Kernel:
    """`make_silu_and_mul` for the compiler; element bf16 or f16."""
    return Kernel(
        lambda target: make_silu_and_mul(element, target),
        SILU_AND_MUL_ARGUMENTS,
        NUM_THREADS,
        8,
        name=f"silu-and-mul-{element}",
        instructions=("LDG.128", "STG.128"),
        wide=True,
    )
