"""Where a block's Q, K and V lie in shared memory, such that no access has a bank conflict.

A row is a token (or a query row) of head_dim 16-bit elements, in chunks of 16 bytes; shared memory has 32 banks of 4
bytes, so 8 chunks are what it gives in one go, and they have to differ in their address modulo 128 bytes.

A row's chunks are exchanged by XOR with a number f(row). Where a row is a multiple of 128 bytes (head_dim 64, 128,
256), f = row % 8: `ldmatrix` reads the same chunk of 8 rows that follow one another, to which XOR gives 8 different
places. Where it is an odd multiple of 64 bytes (head_dim 96), neighbours differ by 64 bytes already, and f = row / 2 %
4 separates the pairs. Either way f permutes the chunks within 128 (64) bytes of one row, so a copy of 8 chunks that lie
next to each other, in one row or at the same place of two, is free of conflicts as well, as `tests` count.
"""

from typing import Any

from numba_kernels.cuda.target import Target


def make_swizzle(head_dim: int, target: Target) -> Any:
    """swizzle(row, chunk) -> the offset in bytes, in a tile that begins at a multiple of 128."""
    int32 = target.int32
    row_bytes, shift, mask = head_dim * 2, *_pattern(head_dim)

    @target.device
    def swizzle(row, chunk):  # type: ignore[no-untyped-def]
        return int32(row * row_bytes + ((chunk ^ ((row >> shift) & mask)) << 4))

    return swizzle


def make_place(head_dim: int, target: Target) -> Any:
    """place(row, piece) -> where 16 bytes of 8-bit numbers arrive, which are to become chunks 2 piece and 2 piece + 1.

    The place of either. Copies that lie next to each other, 8 at a time, are free of conflicts if four go to an even
    place and four to an odd one.
    """
    int32, swizzle, pieces = target.int32, make_swizzle(head_dim, target), head_dim // 16

    @target.device
    def place(row, piece):  # type: ignore[no-untyped-def]
        return int32((swizzle(row, 2 * piece) & ~16) | (((row * pieces + piece) & 4) << 2))

    return place


def make_step(head_dim: int, target: Target) -> Any:
    """step(address, c) -> the address 16 c elements further in the same row.

    `address`: of one of a row's first two chunks, swizzled. The part of c that the swizzle's XOR can reach is XORed
    too, the rest is added; both are constants in an unrolled loop.
    """
    int32 = target.int32
    _, mask = _pattern(head_dim)
    low = mask << 4

    @target.device
    def step(address, c):  # type: ignore[no-untyped-def]
        return int32((address ^ ((c * 32) & low)) + ((c * 32) & ~low))

    return step


def _pattern(head_dim: int) -> tuple[int, int]:
    """(shift, mask) of f(row) = row >> shift & mask."""
    return (0, 7) if head_dim % 64 == 0 else (1, 3)


def make_lane_offsets(head_dim: int, target: Target) -> tuple[Any, Any]:
    """Two functions lane -> the offset of the row of 16 bytes that the lane names to ldmatrix.x4.

    The first orders the four 8x8 matrices of 16 rows x 16 elements as an A operand is (rows 0 .. 7, rows 8 .. 15, then
    the same of elements 8 .. 15), which, transposed, is also the order of two B operands of V. The second orders them
    as two B operands of K: elements 0 .. 7 and 8 .. 15 of rows 0 .. 7, then of rows 8 .. 15.
    """
    swizzle = make_swizzle(head_dim, target)

    @target.device
    def rows_first(lane):  # type: ignore[no-untyped-def]
        return swizzle(lane & 15, lane >> 4)

    @target.device
    def elements_first(lane):  # type: ignore[no-untyped-def]
        return swizzle((lane & 7) + ((lane >> 4) << 3), (lane >> 3) & 1)

    return rows_first, elements_first
