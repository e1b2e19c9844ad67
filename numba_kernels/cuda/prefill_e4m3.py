"""What a cache of 8-bit numbers adds to prefill: its tiles become float16 where they lie, and so does Q.

float16 holds every e4m3 number exactly. 16 bytes, as they are copied, are 16 elements, and so two of a row's chunks in
shared memory. They arrive in one of the two (`make_place`), and the thread that copied them writes both, between its
wait for them and the barrier: until then nobody else looks there. So a tile takes the room it takes for 16-bit numbers,
and what reads it knows no difference. The zeros in place of what nobody sees become zeros.
"""

from typing import Any

from numba_kernels.cuda.prefill_load import rows_per_pass, tokens_per_pass
from numba_kernels.cuda.prefill_shared import make_place, make_swizzle
from numba_kernels.cuda.prefill_variant import PrefillVariant
from numba_kernels.cuda.target import Target


def make_widen_tile(variant: PrefillVariant, target: Target) -> Any:
    """widen_tile(stage): what this thread copied of K and V, by `load_tile`, becomes float16."""
    cuda, int32, uint32 = target.cuda, target.int32, target.uint32
    place, swizzle = make_place(variant.head_dim, target), make_swizzle(variant.head_dim, target)
    widen_pair = make_widen_pair(target)
    pieces, at_once, tile_bytes = variant.kv_pieces, tokens_per_pass(variant), variant.tile_bytes
    passes, loading = variant.tile_tokens // at_once, at_once * pieces

    @target.device
    def widen_tile(stage):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        row = int32(uint32(thread) // uint32(pieces))
        piece = int32(thread - row * pieces)
        if thread < loading:
            for i in range(passes):
                in_tile = int32(i * at_once + row)
                arrived = place(in_tile, piece)
                is_even = arrived == swizzle(in_tile, 2 * piece)
                widen_pair(int32(stage + arrived), is_even)
                widen_pair(int32(stage + tile_bytes + arrived), is_even)

    return widen_tile


def make_widen_pair(target: Target) -> Any:
    """widen_pair(at, is_even): 16 numbers at `at`, the place of the even chunk of two or of the odd, to both.

    First the one at `at`: as 8 threads read without a conflict, so they write.
    """
    ptx, int32 = target.ptx, target.int32

    @target.device
    def widen_pair(at, is_even):  # type: ignore[no-untyped-def]
        w0, w1, w2, w3 = ptx.lds128(at)
        a, b = ptx.unpack_e4m3(w0 if is_even else w2)
        c, d = ptx.unpack_e4m3(w1 if is_even else w3)
        ptx.sts128(at, a, b, c, d)
        a, b = ptx.unpack_e4m3(w2 if is_even else w0)
        c, d = ptx.unpack_e4m3(w3 if is_even else w1)
        ptx.sts128(int32(at ^ 16), a, b, c, d)

    return widen_pair


def make_narrow_q(variant: PrefillVariant, target: Target) -> Any:
    """narrow_q(base): what this thread copied of Q, by `load_q`, from bfloat16 to float16.

    The range of float16 is that of any sensible query: beyond 65504 becomes 65504, below 6e-8 becomes 0.
    """
    cuda, ptx, int32, uint32 = target.cuda, target.ptx, target.int32, target.uint32
    swizzle, chunks, tile_rows = make_swizzle(variant.head_dim, target), variant.head_dim // 8, variant.tile_rows
    at_once = rows_per_pass(variant)
    loading = at_once * chunks

    @target.device
    def narrow(pair):  # type: ignore[no-untyped-def]
        low, high = ptx.unpack_bf16(pair)
        return ptx.pack_f16_finite(low, high)

    @target.device
    def narrow_q(base):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        in_tile = int32(uint32(thread) // uint32(chunks))
        chunk = int32(thread - in_tile * chunks)
        if thread >= loading:
            in_tile = int32(tile_rows)
        while in_tile < tile_rows:
            at = int32(base + swizzle(in_tile, chunk))
            w0, w1, w2, w3 = ptx.lds128(at)
            ptx.sts128(at, narrow(w0), narrow(w1), narrow(w2), narrow(w3))
            in_tile = int32(in_tile + at_once)

    return narrow_q
