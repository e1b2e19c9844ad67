"""Cuts a step's attention into units of work for the threads.

A unit is one sequence, one kv head, up to `MAX_ROWS` rows and a range of partitions of the sequence's keys. A row is
one (query, head of the group) pair: row r of a sequence is query r // group, head r % group. A partition is
`PARTITION` tokens at fixed places. Every row is computed partition by partition and merged in order, whichever unit
does it: the plan decides who works, never what comes out, so it may look at the whole batch.
"""

from typing import NamedTuple

import numpy as np

from numba_kernels.cpu.jit import exact_device, i32_ptr, kernel
from numba_kernels.metadata import AttentionMetadata

MAX_ROWS = 48  # rows of one unit: a multiple of the row tiles of every path (6 and 16)
STEP = 64  # tokens of one step of the online softmax
PARTITION = 256  # tokens that can be done apart from the others: a multiple of STEP
UNITS_PER_THREAD = 4  # a unit is cut into partitions until there are about this many for each thread

# Fields of a unit, int64.
SEQ, HEAD, ROW_BEGIN, ROW_END, PART_BEGIN, PART_END = 0, 1, 2, 3, 4, 5
SPLIT, SPLIT_UNITS, ROWS_PART_BEGIN, ROWS_PART_END, SLOT = 6, 7, 8, 9, 10  # SPLIT -1: this unit does all partitions
UNIT_FIELDS = 11

# What `_plan` finds wrong, int64 result.
_BAD_LENGTHS, _TABLE_TOO_SHORT, _BAD_BLOCK = -1, -2, -3


class Plan(NamedTuple):
    """Units, heaviest first, and the room they need besides."""

    units: np.ndarray  # int64 [num_units, UNIT_FIELDS]
    counters: np.ndarray  # int64 [1 + num_splits]: next unit to do, then units done of each split
    num_slots: int  # rows x partitions of split units: partial results
    cost: int  # tiles of six rows x partitions


class Shape(NamedTuple):
    """What the plan depends on besides the sequences, all int."""

    num_kv_heads: int
    group: int  # query heads per kv head
    window: int  # sliding window, 0 for none
    block_size: int
    num_blocks: int
    num_threads: int


@exact_device
def _cut(cu_seqlens, seq_lens, num_seqs, tables, table_width, shape, budget, units):  # type: ignore[no-untyped-def]
    """Units that cost about `budget`, into `units` if it has room for any: (cost, units, splits, slots), or a fault."""
    cu, lens, table = i32_ptr(cu_seqlens), i32_ptr(seq_lens), i32_ptr(tables)
    cost, num_units, num_splits, num_slots = 0, 0, 0, 0
    for s in range(num_seqs):
        num_queries = np.int64(cu[s + 1]) - np.int64(cu[s])
        seq_len = np.int64(lens[s])
        if num_queries < 0 or seq_len < num_queries:
            return _BAD_LENGTHS, 0, 0, 0
        if num_queries == 0:
            continue
        used = (seq_len + shape.block_size - 1) // shape.block_size
        if used > table_width:
            return _TABLE_TOO_SHORT, 0, 0, 0
        first = max(0, seq_len - num_queries - shape.window + 1) // shape.block_size if shape.window > 0 else 0
        for b in range(first, used):
            if table[s * table_width + b] < 0 or table[s * table_width + b] >= shape.num_blocks:
                return _BAD_BLOCK, 0, 0, 0
        for row in range(0, num_queries * shape.group, MAX_ROWS):
            row_end = min(row + MAX_ROWS, num_queries * shape.group)
            begin = seq_len - num_queries + row // shape.group
            end = seq_len - num_queries + (row_end - 1) // shape.group + 1
            part = max(0, begin - shape.window + 1) // PARTITION if shape.window > 0 else 0
            part_end = (end + PARTITION - 1) // PARTITION
            weight = (row_end - row + 5) // 6
            cost += weight * (part_end - part) * shape.num_kv_heads
            size = min(part_end - part, max(1, budget // weight))
            pieces = (part_end - part + size - 1) // size
            for head in range(shape.num_kv_heads):
                for piece in range(pieces):
                    if units.shape[0] > 0:
                        u = units[num_units]
                        u[SEQ], u[HEAD], u[ROW_BEGIN], u[ROW_END] = s, head, row, row_end
                        u[PART_BEGIN] = part + piece * size
                        u[PART_END] = min(part_end, part + (piece + 1) * size)
                        u[SPLIT], u[SPLIT_UNITS] = (num_splits if pieces > 1 else -1), pieces
                        u[ROWS_PART_BEGIN], u[ROWS_PART_END], u[SLOT] = part, part_end, num_slots
                    num_units += 1
                if pieces > 1:
                    num_splits += 1
                    num_slots += (part_end - part) * (row_end - row)
    return cost, num_units, num_splits, num_slots


@kernel(exact=True)
def _plan(cu_seqlens, seq_lens, num_seqs, tables, table_width, shape):  # type: ignore[no-untyped-def]
    """(cost or fault, units, splits, slots): first the total cost, then what a thread's share of it leads to."""
    units = np.empty((0, UNIT_FIELDS), np.int64)
    whole = np.int64(1) << 60
    cost, num_units, splits, slots = _cut(cu_seqlens, seq_lens, num_seqs, tables, table_width, shape, whole, units)
    if cost > 0:
        share = max(1, cost // (shape.num_threads * UNITS_PER_THREAD)) if shape.num_threads > 1 else whole
        for _ in range(2):
            cost, num_units, splits, slots = _cut(
                cu_seqlens, seq_lens, num_seqs, tables, table_width, shape, share, units
            )
            if units.shape[0] == 0:
                units = np.empty((num_units, UNIT_FIELDS), np.int64)
    return cost, units, splits, slots


def build_plan(metadata: AttentionMetadata, shape: Shape) -> Plan:
    """The plan of one step for layers of this shape.

    Raises `ValueError` where the batch contradicts itself or names a block outside the cache.
    """
    tables = metadata.block_tables
    cost, units, num_splits, num_slots = _plan(
        metadata.cu_seqlens_q.data_ptr(),
        metadata.seq_lens.data_ptr(),
        metadata.num_seqs,
        tables.data_ptr(),
        tables.shape[1],
        shape,
    )
    _raise_for(cost)
    tiles = (units[:, ROW_END] - units[:, ROW_BEGIN] + 5) // 6
    heaviest_first = np.argsort(tiles * (units[:, PART_BEGIN] - units[:, PART_END]), kind="stable")
    return Plan(units[heaviest_first], np.zeros(1 + num_splits, np.int64), num_slots, cost)


def _raise_for(code: int) -> None:
    if code == _BAD_LENGTHS:
        raise ValueError("cu_seqlens_q must not fall, and no sequence may have more queries than seq_lens says")
    if code == _TABLE_TOO_SHORT:
        raise ValueError("block_tables has fewer columns than seq_lens needs blocks")
    if code == _BAD_BLOCK:
        raise ValueError("block_tables names a block outside the cache")
