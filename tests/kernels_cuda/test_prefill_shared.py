"""Shared memory gives 32 words of 4 bytes at once, each from a bank of its own: 8 pieces of 16 bytes."""

from collections.abc import Callable
from typing import Any

import pytest

from numba_kernels.cuda.prefill_load import rows_per_pass
from numba_kernels.cuda.prefill_shared import make_lane_offsets, make_place, make_step, make_swizzle
from numba_kernels.cuda.prefill_variant import HEAD_DIMS, PrefillVariant
from numba_kernels.cuda.target import Target

PLAIN = Target(None, None, device=lambda f: f, int32=int, int64=int, uint32=int, float32=float)
HEAD_DIM = pytest.mark.parametrize("head_dim", HEAD_DIMS)


def num_banks(addresses: list[int]) -> int:
    """Different banks of a phase's accesses of 16 bytes."""
    return len({(address // 4 + word) % 32 for address in addresses for word in range(4)})


def straight(row: int, chunk: int, head_dim: int) -> int:
    return row * head_dim * 2 + chunk * 16


def phases(address_of: Callable[[int], int], num_lanes: int = 32) -> list[list[int]]:
    """16 bytes a lane are served 8 lanes at a time."""
    return [[address_of(lane) for lane in range(first, first + 8)] for first in range(0, num_lanes, 8)]


@HEAD_DIM
def test_a_tile_is_filled_completely(head_dim: int) -> None:
    swizzle = make_swizzle(head_dim, PLAIN)
    places = {swizzle(row, chunk) for row in range(16) for chunk in range(head_dim // 8)}
    assert places == set(range(0, 16 * head_dim * 2, 16))


@HEAD_DIM
def test_copies_into_a_tile_have_no_conflict(head_dim: int) -> None:
    swizzle, chunks, rows = make_swizzle(head_dim, PLAIN), head_dim // 8, rows_per_pass(PrefillVariant(head_dim))
    for phase in phases(lambda thread: swizzle(thread // chunks, thread % chunks), rows * chunks):
        assert num_banks(phase) == 32


@HEAD_DIM
def test_8_bit_numbers_arrive_in_the_place_of_what_they_become(head_dim: int) -> None:
    place, swizzle = make_place(head_dim, PLAIN), make_swizzle(head_dim, PLAIN)
    for row in range(16):
        for piece in range(head_dim // 16):
            chunks = {swizzle(row, 2 * piece), swizzle(row, 2 * piece + 1)}
            assert {place(row, piece), place(row, piece) ^ 16} == chunks


@HEAD_DIM
def test_8_bit_numbers_are_copied_read_and_written_without_a_conflict(head_dim: int) -> None:
    place, pieces = make_place(head_dim, PLAIN), head_dim // 16
    for other in (0, 16):
        for phase in phases(lambda thread: place(thread // pieces, thread % pieces) ^ other, 32 * pieces):  # noqa: B023
            assert num_banks(phase) == 32


@pytest.mark.parametrize("head_dim", [96, 128, 256])
def test_always_in_the_even_place_there_would_be_conflicts(head_dim: int) -> None:
    swizzle, pieces = make_swizzle(head_dim, PLAIN), head_dim // 16
    all_phases = phases(lambda thread: swizzle(thread // pieces, 2 * (thread % pieces)), 32 * pieces)
    assert min(map(num_banks, all_phases)) < 32


@HEAD_DIM
def test_ldmatrix_finds_its_rows_without_a_conflict(head_dim: int) -> None:
    swizzle, step = make_swizzle(head_dim, PLAIN), make_step(head_dim, PLAIN)
    rows_first, elements_first = make_lane_offsets(head_dim, PLAIN)
    for c in range(head_dim // 16):
        for lane in range(32):
            low, half = lane % 8, lane // 8 % 2 * 8
            assert step(rows_first(lane), c) == swizzle(low + half, 2 * c + lane // 16)
            assert step(elements_first(lane), c) == swizzle(low + lane // 16 * 8, 2 * c + half // 8)
        for offset in (rows_first, elements_first):
            for phase in phases(lambda lane: step(offset(lane), c)):  # noqa: B023
                assert num_banks(phase) == 32


@HEAD_DIM
def test_staging_the_result_has_no_conflict(head_dim: int) -> None:
    swizzle = make_swizzle(head_dim, PLAIN)
    for chunk in range(head_dim // 8):
        words = {swizzle(lane // 4, chunk) // 4 + lane % 4 for lane in range(32)}
        assert len({word % 32 for word in words}) == 32


@HEAD_DIM
def test_without_the_exchange_there_are_conflicts(head_dim: int) -> None:
    assert num_banks([straight(row, 0, head_dim) for row in range(8)]) < 32


def test_rows_are_cut_into_queries_as_by_a_division() -> None:
    from numba_kernels.cuda.prefill_rows import make_query_of

    reciprocal_of, query_of = make_query_of(PLAIN)
    for group_size in (*range(1, 33), 64, 71, 128):
        reciprocal: Any = reciprocal_of(group_size)
        last = 2**32 // group_size - 1
        rows = {
            *range(200),
            *(k * group_size + d for k in (1000, 99_999, last // group_size) for d in (-1, 0, 1)),
            last,
        }
        assert all(query_of(row, reciprocal) == row // group_size for row in rows if 0 <= row <= min(last, 2**31 - 2))
