"""Kernels with what the compile gate has to find, each broken in one way."""

import dataclasses
from typing import Any

from numba_kernels.cuda.decode import DecodeVariant, decode_kernel
from numba_kernels.cuda.decode_merge import merge_splits_kernel
from numba_kernels.cuda.target import Kernel, Target
from tests.kernels_cuda.planted import planted_decode

VARIANT = DecodeVariant(64)


def broken_kernels() -> dict[str, Kernel]:
    """By what is wrong with them."""
    product = "c0, c1, c2, c3 = mma(a0, a1, a2, a3, p0, p1, c0, c1, c2, c3)"
    broken = {
        "spilling": dataclasses.replace(decode_kernel(DecodeVariant(128)), min_blocks_per_sm=5),
        "run-time-index": _decode_with("shared_out[at] = acc[u * 4]", "shared_out[at] = acc[u * 4 + (g & 1)]"),
        "float64": _decode_with("s0 = s0 * scale if", "s0 = s0 * scale * 1.1 if"),
        "no-tensor-core": _decode_with(product, "c0, c1, c2, c3 = c0 + a0 * p0, c1 + a1 * p1, c2 + a2 * p0, c3 + a3"),
        "unkept-promise": dataclasses.replace(merge_splits_kernel(64, "bf16"), instructions=("HMMA",)),
        "narrow-loads": Kernel(_make_narrow_loads, ("int64", "int64"), 32, instructions=("LDG.128",), wide=True),
    }
    return {name: dataclasses.replace(kernel, name=name) for name, kernel in broken.items()}


def _decode_with(old: str, new: str) -> Kernel:
    source = planted_decode(old, new)
    return dataclasses.replace(decode_kernel(VARIANT), make=lambda target: source.decode(VARIANT, target))


def _make_narrow_loads(target: Target) -> Any:
    cuda, ptx, int64 = target.cuda, target.ptx, target.int64

    def narrow_loads(to, source):  # type: ignore[no-untyped-def]
        at = int64(cuda.threadIdx.x) * 16
        w0, w1 = ptx.ldg64(source + at)
        w2, w3 = ptx.ldg64(source + at + 8)
        ptx.stg128(to + at, w0, w1, w2, w3)

    return narrow_loads
