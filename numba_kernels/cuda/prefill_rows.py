"""A sequence's rows: row = query x group_size + head. From a row back to its query, without a division."""

from typing import Any

from numba_kernels.cuda.target import Target


def make_query_of(target: Target) -> tuple[Any, Any]:
    """reciprocal_of(group_size), query_of(row, reciprocal) -> row / group_size, rounded down.

    With m = (2^32 - 1) / G rounded down = (2^32 - 1 - r) / G, r < G, and row = q G + t:
    (row + 1) m / 2^32 = q + (t + 1) / G - (row + 1) (1 + r) / (2^32 G). The last term is above 0 and, while
    (row + 1) G <= 2^32, at most 1 / G: rounded down this is q.
    """
    int32, int64, uint32 = target.int32, target.int64, target.uint32

    @target.device
    def reciprocal_of(group_size):  # type: ignore[no-untyped-def]
        return uint32(uint32(0xFFFFFFFF) // uint32(group_size))

    @target.device
    def query_of(row, reciprocal):  # type: ignore[no-untyped-def]
        return int32((int64(uint32(row + 1)) * int64(reciprocal)) >> 32)

    return reciprocal_of, query_of
