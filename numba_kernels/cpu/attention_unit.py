"""One unit of attention work, the same for every path: which rows, which tokens, in which order, merged how.

A path is a tuple of device functions (see `attention_plain.py` for the simplest). They share `Launch`, the step's
arguments, and `Scratch`, one thread's memory. Nothing here depends on the vectors or tiles a path computes with.

Why every row comes out the same to the bit, whoever its neighbours are: steps and partitions stand at fixed tokens; a
path computes a row's numbers in an order that doesn't depend on the other rows of its tile; and a step or partition in
which a row sees nothing leaves it as it was: its weights are exactly 0, the factor on what it has is exactly 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from numba_kernels.cpu.attention_plan import (
    HEAD,
    PART_BEGIN,
    PART_END,
    PARTITION,
    ROW_BEGIN,
    ROW_END,
    ROWS_PART_BEGIN,
    ROWS_PART_END,
    SEQ,
    SLOT,
    SPLIT,
    SPLIT_UNITS,
    STEP,
    UNIT_FIELDS,
)
from numba_kernels.cpu.jit import bits_f32, exact_device, f32_ptr, i32_ptr, i64_ptr

GROUP = 16  # tokens that lie together whatever the block size
STATE_TAIL = 32  # floats of a row's state behind its head_dim sums: 16 of l, then m and the last step's factor
L_OFFSET, M_OFFSET, FACTOR_OFFSET = 0, 16, 17
SPARE_BYTES = 8192 + 64
NO_SCORE = np.float32(-1e30)  # m of a row that has seen nothing: finite, so that m - m is 0


class Launch(NamedTuple):
    """Arguments of one call, all int64: addresses, strides in bytes, and sizes."""

    q: int  # [num_tokens, num_heads, head_dim], last dimension contiguous
    q_token_stride: int
    q_head_stride: int
    out: int
    out_token_stride: int
    out_head_stride: int
    cache: int  # this layer's K of block 0
    block_stride: int
    value_offset: int  # from a block's K to its V
    head_stride: int
    block_size: int
    block_tables: int
    table_width: int
    seq_lens: int
    cu_seqlens_q: int
    group: int
    head_dim: int
    window: int  # 0: none
    units: int
    num_units: int
    counters: int
    partials: int
    is_bfloat16: int  # element type of q, out and cache: 1 bfloat16, 0 float32
    scale_bits: int  # scale * log2(e), a float32's bits


NUM_CALL_FIELDS = 7  # the first fields, up to `cache`, differ from layer to layer


class Scratch(NamedTuple):
    """Addresses in one thread's memory, each aligned to 64 bytes."""

    q: int  # [MAX_ROWS, head_dim] in what the path multiplies with
    state: int  # [MAX_ROWS, head_dim + STATE_TAIL] float32: weighted sum of V, then l, m and factor
    merged: int  # the same, of the partitions before
    scores: int  # [tile rows, STEP] float32
    weights: int  # [tile rows, STEP] in what the path multiplies with
    k_groups: int  # int64 [4]: addresses of the step's groups of K
    v_groups: int  # int64 [4]: of V
    k: int  # [head_dim, STEP] float32: for paths that reorder K
    v: int  # [STEP, head_dim] float32: for paths that convert V, or must blank its tail
    spare: int  # SPARE_BYTES for the path itself


class Rows(NamedTuple):
    """The rows of a unit and what they see."""

    seq: int
    head: int  # kv head
    begin: int  # first row
    num: int
    first_position: int  # position of query 0 of the sequence in this step
    low: int  # first token that any row sees
    high: int  # one past the last


class Step(NamedTuple):
    """One step of the softmax: STEP tokens at a fixed place."""

    token: int  # its first token
    group_begin: int  # groups that some row of the unit sees: the others are never read
    group_end: int


def call_device(function: Callable[..., Any]) -> Any:
    """Decorator: an exact helper that is large enough to be called rather than inlined everywhere."""
    return njit(nogil=True, boundscheck=False, error_model="numpy")(function)


@intrinsic
def fetch_add(_context: Any, _address: types.Type) -> Any:
    """Add one to the int64 at an address, for all threads in one order; returns the value before."""

    def generate(_c: Any, builder: Any, _signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "seq_cst")

    return types.int64(types.int64), generate


@intrinsic
def read_launch(_context: Any, _address: types.Type) -> Any:
    """The `Launch` that lies at an address, one int64 after the other."""
    num_fields = len(Launch._fields)

    def generate(_c: Any, builder: Any, _signature: Any, args: Any) -> Any:
        fields = ir.ArrayType(ir.IntType(64), num_fields)
        return builder.load(builder.inttoptr(args[0], fields.as_pointer()))

    return types.NamedUniTuple(types.int64, num_fields, Launch)(types.int64), generate


@exact_device
def state_stride(launch):  # type: ignore[no-untyped-def]
    """Bytes of one row's state."""
    return (launch.head_dim + STATE_TAIL) * 4


@exact_device
def row_low(launch, rows, row):  # type: ignore[no-untyped-def]
    """First token that row `row` of the unit sees."""
    position = rows.first_position + (rows.begin + row) // launch.group
    return max(np.int64(0), position - launch.window + 1) if launch.window > 0 else np.int64(0)


@exact_device
def row_high(launch, rows, row):  # type: ignore[no-untyped-def]
    """One past the last token that row `row` of the unit sees."""
    return rows.first_position + (rows.begin + row) // launch.group + 1


@exact_device
def query_of(launch, rows, row):  # type: ignore[no-untyped-def]
    """(token, head) of a row of the unit, as indices of q and out."""
    query = (rows.begin + row) // launch.group
    token = np.int64(i32_ptr(launch.cu_seqlens_q)[rows.seq]) + query
    return token, rows.head * launch.group + (rows.begin + row) - query * launch.group


@exact_device
def unit_rows(launch, unit):  # type: ignore[no-untyped-def]
    seq = unit[SEQ]
    cu, lens = i32_ptr(launch.cu_seqlens_q), i32_ptr(launch.seq_lens)
    first_position: Any = np.int64(lens[seq]) - (np.int64(cu[seq + 1]) - np.int64(cu[seq]))
    num = unit[ROW_END] - unit[ROW_BEGIN]
    zero: Any = np.int64(0)
    bare = Rows(seq, unit[HEAD], unit[ROW_BEGIN], num, first_position, zero, zero)
    low, high = row_low(launch, bare, zero), row_high(launch, bare, num - 1)
    return Rows(seq, unit[HEAD], unit[ROW_BEGIN], num, first_position, low, high)


@call_device
def clear_state(launch, rows, state):  # type: ignore[no-untyped-def]
    """No token seen: sums and l zero, m lower than any score."""
    width = launch.head_dim + STATE_TAIL
    p = f32_ptr(state)
    for row in range(rows.num):
        for i in range(width):
            p[row * width + i] = np.float32(0.0)
        p[row * width + launch.head_dim + M_OFFSET] = NO_SCORE


@call_device
def find_groups(launch, rows, step, scratch):  # type: ignore[no-untyped-def]
    """Addresses of the step's groups of 16 tokens; a group that no row sees takes a neighbour's, and isn't weighed."""
    table = i32_ptr(launch.block_tables)
    k, v = i64_ptr(scratch.k_groups), i64_ptr(scratch.v_groups)
    for g in range(STEP // GROUP):
        token = step.token + min(max(g, step.group_begin), step.group_end - 1) * GROUP
        block = token // launch.block_size
        address = launch.cache + np.int64(table[rows.seq * launch.table_width + block]) * launch.block_stride
        address += rows.head * launch.head_stride
        bytes_per_token = launch.head_dim * (4 - 2 * launch.is_bfloat16)
        address += (token - block * launch.block_size) * bytes_per_token
        k[g], v[g] = address, address + launch.value_offset


@call_device
def attend_partition(prepare, tile, launch, scale_log2, rows, part, state, scratch):  # type: ignore[no-untyped-def]
    """The unit's rows over one partition of the keys, into `state` (all rows, cleared before)."""
    begin = max(part * PARTITION, rows.low // STEP * STEP)
    for token in range(begin, min((part + 1) * PARTITION, rows.high), STEP):
        group_begin = max(np.int64(0), rows.low - token) // GROUP
        group_end = min(np.int64(STEP), rows.high - token + GROUP - 1) // GROUP
        step = Step(token, group_begin, group_end)
        find_groups(launch, rows, step, scratch)
        prepare(launch, rows, step, scratch)
        tile(launch, scale_log2, rows, step, state, scratch)


@exact_device
def attend_unit(load_q, prepare, tile, merge, finish, launch, scale_log2, u, scratch):  # type: ignore[no-untyped-def]
    """One unit, from its queries to its rows of `out`, or to partial results that the last unit of a split merges."""
    unit = i64_ptr(launch.units + u * (UNIT_FIELDS * 8))
    rows = unit_rows(launch, unit)
    load_q(launch, rows, scratch)
    split = unit[SPLIT]
    stride = state_stride(launch)
    slots = launch.partials + unit[SLOT] * stride
    for part in range(unit[PART_BEGIN], unit[PART_END]):
        state = scratch.state if split < 0 else slots + (part - unit[ROWS_PART_BEGIN]) * rows.num * stride
        clear_state(launch, rows, state)
        attend_partition(prepare, tile, launch, scale_log2, rows, part, state, scratch)
        if split < 0 and unit[PART_END] - unit[PART_BEGIN] > 1:
            if part == unit[PART_BEGIN]:
                clear_state(launch, rows, scratch.merged)
            merge(launch, rows, scratch.merged, scratch.state)
    if split >= 0:
        if fetch_add(launch.counters + (1 + split) * 8) + 1 < unit[SPLIT_UNITS]:
            return
        i64_ptr(launch.counters)[1 + split] = 0
        clear_state(launch, rows, scratch.merged)
        for part in range(unit[ROWS_PART_END] - unit[ROWS_PART_BEGIN]):
            merge(launch, rows, scratch.merged, slots + part * rows.num * stride)
        finish(launch, rows, scratch.merged)
    elif unit[PART_END] - unit[PART_BEGIN] > 1:
        finish(launch, rows, scratch.merged)
    else:
        finish(launch, rows, scratch.state)


@exact_device
def carve(launch, memory):  # type: ignore[no-untyped-def]
    """Lay the scratch out in `scratch_bytes` of memory."""
    base = (memory + 63) & ~np.int64(63)
    q = base + SPARE_BYTES
    state = q + 48 * launch.head_dim * 4
    merged = state + 48 * state_stride(launch)
    scores = merged + 48 * state_stride(launch)
    weights = scores + 16 * STEP * 4
    k = weights + 16 * STEP * 4
    v = k + launch.head_dim * STEP * 4
    groups = v + launch.head_dim * STEP * 4
    return Scratch(q, state, merged, scores, weights, groups, groups + 64, k, v, base)


@exact_device
def scratch_bytes(launch):  # type: ignore[no-untyped-def]
    """Bytes that `carve` needs."""
    return (
        SPARE_BYTES
        + 64
        + 192
        + 48 * (launch.head_dim * 4 + 2 * state_stride(launch))
        + 8192
        + launch.head_dim * STEP * 8
    )


@call_device
def work(load_q, prepare, tile, merge, finish, arguments):  # type: ignore[no-untyped-def]
    """One thread: take units until none is left."""
    launch = read_launch(arguments)
    scale_log2 = bits_f32(np.uint32(launch.scale_bits))
    memory = np.empty(scratch_bytes(launch), np.uint8)
    scratch = carve(launch, memory.ctypes.data)
    while True:
        u = fetch_add(launch.counters)
        if u >= launch.num_units:
            break
        attend_unit(load_q, prepare, tile, merge, finish, launch, scale_log2, u, scratch)
    return memory[0]  # keeps the memory alive to here
