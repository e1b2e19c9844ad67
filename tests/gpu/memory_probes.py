"""Probes of the instructions on memory. What has to come out is said in numpy, apart from the twins."""

from collections.abc import Callable
from typing import Any

import numpy as np

from numba_kernels.cuda.target import Kernel, Target
from tests.gpu.instructions import Words, any_quiet_bits, same_bits
from tests.gpu.probes import ARGUMENTS, NUM_THREADS, Probe

_SHARED_WORDS = NUM_THREADS * 4


def _rows(words: list[Words]) -> Any:
    """[num_operands, num_lanes] as [num_lanes, num_operands]."""
    return np.stack(words, axis=1)


def _words(rows: Any) -> list[Words]:
    return [np.ascontiguousarray(column) for column in np.asarray(rows, np.uint32).T]


def _probe(
    name: str,
    make: Callable[[Target], Callable[..., None]],
    instructions: tuple[str, ...],
    expect: Callable[[list[Words]], list[Words]],
    num_operands: int = 4,
    num_results: int = 4,
) -> Probe:
    kernel = Kernel(make, ARGUMENTS, NUM_THREADS, name=f"probe-{name}")
    return Probe(kernel, instructions, num_results, any_quiet_bits(num_operands), expect, same_bits)


# Global memory. Operands lie one behind the other: a wide access of lane l reads its words 4 l and on.


def _make_wide_load(name: str) -> Callable[[Target], Callable[..., None]]:
    def make(target: Target) -> Callable[..., None]:
        cuda, ptx, int64 = target.cuda, target.ptx, target.int64
        load = getattr(ptx, name)

        def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
            lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
            a, b, c, d = load(operands + lane * 16)
            ptx.stg128(results + lane * 16, d, c, b, a)

        return probe

    return make


def _quads_reversed(words: list[Words]) -> list[Words]:
    flat = np.stack(words).reshape(-1, 4)[:, ::-1]
    return list(np.ascontiguousarray(flat).reshape(4, -1))


def _make_ldg64(target: Target) -> Callable[..., None]:
    cuda, ptx, int64 = target.cuda, target.ptx, target.int64

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        a, b = ptx.ldg64(operands + lane * 8)
        ptx.stg64(results + lane * 8, b, a)

    return probe


def _pairs_reversed(words: list[Words]) -> list[Words]:
    return list(np.ascontiguousarray(np.stack(words).reshape(-1, 2)[:, ::-1]).reshape(2, -1))


def _make_scalars(target: Target) -> Callable[..., None]:
    cuda, ptx, int64, uint32 = target.cuda, target.ptx, target.int64, target.uint32

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        ptx.stg_u32(results + lane * 4, uint32(ptx.ldg_i32(operands + lane * 4)))
        ptx.stg_f32(results + (lane + num_lanes) * 4, ptx.ldg_f32(operands + (lane + num_lanes) * 4))
        wide = ptx.ldg_i64(operands + num_lanes * 8 + lane * 8)
        ptx.stg_u32(results + num_lanes * 8 + lane * 8, uint32(wide))
        ptx.stg_u32(results + num_lanes * 8 + lane * 8 + 4, uint32(wide >> 32))

    return probe


def _make_halves(target: Target) -> Callable[..., None]:
    cuda, ptx, int64, uint32 = target.cuda, target.ptx, target.int64, target.uint32

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        low, high = ptx.ldg_u16(operands + lane * 4), ptx.ldg_u16(operands + lane * 4 + 2)
        ptx.stg_u32(results + lane * 4, uint32(high | (low << 16)))

    return probe


def _halves_swapped(words: list[Words]) -> list[Words]:
    return [(word >> np.uint32(16)) | (word << np.uint32(16)) for word in words]


def _make_stg_i64(target: Target) -> Callable[..., None]:
    cuda, ptx, int64 = target.cuda, target.ptx, target.int64

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        ptx.stg_i64(results + lane * 8, ptx.ldg_i64(operands + lane * 8))

    return probe


def _make_float_pairs(target: Target) -> Callable[..., None]:
    cuda, ptx, int64 = target.cuda, target.ptx, target.int64

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        ptx.stg_f32x2(results + lane * 8, ptx.ldg_f32(operands + lane * 8 + 4), ptx.ldg_f32(operands + lane * 8))

    return probe


def _make_float_quads(target: Target) -> Callable[..., None]:
    cuda, ptx, int64 = target.cuda, target.ptx, target.int64

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(cuda.threadIdx.x)
        a, b, c, d = ptx.ldg_f32x4(operands + lane * 16)
        ptx.stg_f32x2(results + lane * 16, d, c)
        ptx.stg_f32x2(results + lane * 16 + 8, b, a)

    return probe


# Shared memory. Operands and results lie lane by lane in quads of words, as copies of 16 bytes want them.


def _make_copies(target: Target) -> Callable[..., None]:
    """Two groups of copies; the first is read when only the second may be pending, then the second."""
    cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
    float32, second_group, half = target.float32, NUM_THREADS * 8, NUM_THREADS // 2
    num_words = NUM_THREADS * 4  # half of the lanes' quads in each group

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        block = int64(cuda.blockIdx.x) * NUM_THREADS * 16
        memory = cuda.shared.array(num_words, float32)
        base = ptx.smem_addr(memory)
        at = int32(thread % half) * 16
        if thread < half:
            ptx.cp_async16(int32(base + at), operands + block + int64(at))
        ptx.cp_async_commit()
        if thread < half:
            ptx.cp_async16(int32(base + second_group + at), operands + block + second_group + int64(at))
        ptx.cp_async_commit()
        ptx.cp_async_wait1()
        cuda.syncthreads()
        mirrored = int32(int32(half - 1 - thread % half) * 16)
        if thread < half:
            a, b, c, d = ptx.lds128(int32(base + mirrored))
            ptx.stg128(results + block + int64(at), a, b, c, d)
        ptx.cp_async_wait0()
        cuda.syncthreads()
        if thread >= half:
            a, b, c, d = ptx.lds128(int32(base + second_group + mirrored))
            ptx.stg128(results + block + second_group + int64(at), a, b, c, d)

    return probe


def _halves_mirrored(words: list[Words]) -> list[Words]:
    quads = np.stack(words).reshape(-1, 2, NUM_THREADS // 2, 4)[:, :, ::-1]
    return list(np.ascontiguousarray(quads).reshape(4, -1))


def _make_partial_copies(target: Target) -> Callable[..., None]:
    """Even lanes copy, odd ones fill with zeros; every lane reads its neighbour's."""
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(thread)
        memory = cuda.shared.array(_SHARED_WORDS, float32)
        base = ptx.smem_addr(memory)
        num_bytes = int32(16 - thread % 2 * 16)
        ptx.cp_async16_zfill(int32(base + thread * 16), operands + lane * 16, num_bytes)
        ptx.cp_async_commit()
        ptx.cp_async_wait0()
        cuda.syncthreads()
        a, b, c, d = ptx.lds128(int32(base + (thread ^ 1) * 16))
        ptx.stg128(results + lane * 16, a, b, c, d)

    return probe


def _neighbours_or_zero(words: list[Words]) -> list[Words]:
    quads = np.stack(words).reshape(-1, 2, 4).copy()
    quads[:, 1] = 0
    return list(np.ascontiguousarray(quads[:, ::-1]).reshape(4, -1))


def _make_shared_words(target: Target) -> Callable[..., None]:
    """Two arrays, so that the second's address is not the first's; one is read by index, the other by address."""
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32
    uint32 = target.uint32

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(thread)
        first = cuda.shared.array(NUM_THREADS, float32)
        second = cuda.shared.array(_SHARED_WORDS, float32)
        ptx.sts_u32(int32(ptx.smem_addr(first) + thread * 4), uint32(ptx.ldg_i32(operands + lane * 16)))
        for i in range(4):
            at = int32(ptx.smem_addr(second) + (i * NUM_THREADS + thread) * 4)
            ptx.sts_u32(at, uint32(ptx.ldg_i32(operands + lane * 16 + i * 4)))
        cuda.syncthreads()
        _, b, c, d = ptx.lds128(int32(ptx.smem_addr(second) + thread * 16))
        ptx.stg128(results + lane * 16, uint32(0), b, c, d)
        ptx.stg_f32(results + lane * 16, first[NUM_THREADS - 1 - thread])

    return probe


def _shared_words(words: list[Words]) -> list[Words]:
    quads = np.stack(words).reshape(-1, NUM_THREADS, 4)
    by_address = np.ascontiguousarray(quads.transpose(0, 2, 1)).reshape(-1, NUM_THREADS, 4).copy()
    by_address[:, :, 0] = quads[:, ::-1, 0]
    return list(by_address.reshape(4, -1))


def _make_shared_quads(target: Target) -> Callable[..., None]:
    """Every lane reads what its neighbour wrote."""
    cuda, ptx, int32, int64, float32 = target.cuda, target.ptx, target.int32, target.int64, target.float32

    def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
        thread = int32(cuda.threadIdx.x)
        lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(thread)
        base = ptx.smem_addr(cuda.shared.array(_SHARED_WORDS, float32))
        a, b, c, d = ptx.ldg128(operands + lane * 16)
        ptx.sts128(int32(base + thread * 16), a, b, c, d)
        cuda.syncthreads()
        a, b, c, d = ptx.lds128(int32(base + (thread ^ 1) * 16))
        ptx.stg128(results + lane * 16, a, b, c, d)

    return probe


def _neighbours(words: list[Words]) -> list[Words]:
    quads = np.stack(words).reshape(-1, 2, 4)[:, ::-1]
    return list(np.ascontiguousarray(quads).reshape(4, -1))


def _make_ldmatrix(name: str) -> Callable[[Target], Callable[..., None]]:
    def make(target: Target) -> Callable[..., None]:
        cuda, ptx, int32, int64 = target.cuda, target.ptx, target.int32, target.int64
        uint32, float32 = target.uint32, target.float32
        ldmatrix = getattr(ptx, name)

        def probe(operands, results, num_lanes):  # type: ignore[no-untyped-def]
            thread = int32(cuda.threadIdx.x)
            lane = int64(cuda.blockIdx.x) * NUM_THREADS + int64(thread)
            memory = cuda.shared.array(_SHARED_WORDS, float32)
            row = int32(ptx.smem_addr(memory) + thread * 16)
            for i in range(4):
                ptx.sts_u32(int32(row + i * 4), uint32(ptx.ldg_i32(operands + lane * 16 + i * 4)))
            cuda.syncthreads()
            a, b, c, d = ldmatrix(row)
            ptx.stg128(results + lane * 16, a, b, c, d)

        return probe

    return make


def _matrices(transposed: bool) -> Callable[[list[Words]], list[Words]]:
    """As the PTX ISA draws it: lane l gets elements (l / 4, 2 (l % 4)) and the next of each 8x8 matrix."""

    def expect(words: list[Words]) -> list[Words]:
        elements = np.stack(words).reshape(-1, 4, 8, 4).view(np.uint16)  # [warp, matrix, row, column]
        turned = elements.swapaxes(2, 3) if transposed else elements
        pairs = np.ascontiguousarray(turned).view(np.uint32)  # [warp, matrix, row, pair]: lane is row * 4 + pair
        lanes = pairs.reshape(-1, 4, 32).swapaxes(1, 2)  # [warp, lane, matrix]
        return list(np.ascontiguousarray(lanes).reshape(4, -1))

    return expect


def memory_probes() -> list[Probe]:
    """All of them."""
    return [
        *(_probe(f"{name}", _make_wide_load(name), (name, "stg128"), _quads_reversed) for name in ("ldg128", "ld128")),
        _probe("ldg64", _make_ldg64, ("ldg64", "stg64"), _pairs_reversed, 2, 2),
        _probe("scalars", _make_scalars, ("ldg_i32", "ldg_f32", "ldg_i64", "stg_u32", "stg_f32"), list),
        _probe("ldg-u16", _make_halves, ("ldg_u16", "stg_u32"), _halves_swapped, 1, 1),
        _probe("stg-i64", _make_stg_i64, ("stg_i64", "ldg_i64"), list, 2, 2),
        _probe("stg-f32x2", _make_float_pairs, ("stg_f32x2", "ldg_f32"), _pairs_reversed, 2, 2),
        _probe("ldg-f32x4", _make_float_quads, ("ldg_f32x4", "stg_f32x2"), _quads_reversed),
        _probe(
            "cp-async",
            _make_copies,
            ("cp_async16", "cp_async_commit", "cp_async_wait0", "cp_async_wait1", "lds128", "smem_addr"),
            _halves_mirrored,
        ),
        _probe("cp-async-zfill", _make_partial_copies, ("cp_async16_zfill",), _neighbours_or_zero),
        _probe("shared-words", _make_shared_words, ("sts_u32", "lds128", "smem_addr"), _shared_words),
        _probe("shared-quads", _make_shared_quads, ("sts128", "lds128", "smem_addr"), _neighbours),
        _probe("ldmatrix", _make_ldmatrix("ldmatrix_x4"), ("ldmatrix_x4",), _matrices(False)),
        _probe("ldmatrix-trans", _make_ldmatrix("ldmatrix_x4_trans"), ("ldmatrix_x4_trans",), _matrices(True)),
    ]
