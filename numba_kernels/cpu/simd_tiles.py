"""The two register tiles of vector attention: a few rows against 16 x 4 tokens, or against a few vectors of head_dim.

Each loaded vector of K or V meets every row of the tile, each broadcast row element every vector: up to 6 x 4 sums stay
in registers. A row's sums are the same to the bit whatever the number of rows.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from numba_kernels.cpu.simd import _F32, _I32, _I64, _V16F, _at, _fill, _fma, _offset, _splat, multiply_add

MAX_TILE_ROWS = 6  # 24 sums, 4 vectors and a broadcast fill 29 of the 32 registers


def _literals(arguments: Sequence[types.Type]) -> list[int]:
    return [a.literal_value for a in arguments]


class _Sums:
    """rows x vectors of float32 sums, kept in registers: LLVM turns the stack slots into them."""

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self.builder, self.rows, self.vectors = builder, rows, vectors
        self.slots = [[cgutils.alloca_once(builder, _V16F) for _ in range(vectors)] for _ in range(rows)]
        for slot in (slot for row in self.slots for slot in row):
            builder.store(_fill(0.0), slot)

    def add(self, is_bfloat16: bool, x: Any, x_stride: Any, y_addresses: list[Any]) -> None:
        """Every row's element at x + row * x_stride times every vector."""
        b = self.builder
        for r in range(self.rows):
            address = b.add(x, b.mul(x_stride, ir.Constant(_I64, r)))
            element = b.load(_at(b, address, _I32), align=4)
            for v, y in enumerate(y_addresses):
                slot = self.slots[r][v]
                b.store(multiply_add(b, is_bfloat16, b.load(slot), element, y), slot)


@intrinsic(prefer_literal=True)
def score_tile(_context, rows, is_bfloat16, out, out_stride, x, x_stride, groups, count):  # type: ignore[no-untyped-def]
    """Scores of `rows` rows of x with four groups of 16 tokens, over `count` bfloat16 pairs or float32.

    groups: address of four int64 addresses; one vector of 16 tokens for each step of the count. bfloat16: scores go
    to out. float32: they are added to out (the caller sums short runs of head_dim, for precision).
    """
    num_rows, bf16 = _literals((rows, is_bfloat16))

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        _, _, out_, out_stride_, x_, x_stride_, groups_, count_ = a
        bases = [b.load(_at(b, _offset(b, groups_, 8 * g), _I64)) for g in range(4)]
        sums = _Sums(b, num_rows, 4)
        with cgutils.for_range(b, count_) as loop:
            at = b.mul(loop.index, ir.Constant(_I64, 64))
            element = b.add(x_, b.mul(loop.index, ir.Constant(_I64, 4)))
            sums.add(bool(bf16), element, x_stride_, [b.add(base, at) for base in bases])
        for r in range(num_rows):
            row = b.add(out_, b.mul(out_stride_, ir.Constant(_I64, r)))
            for v in range(4):
                target = _at(b, _offset(b, row, 64 * v), _V16F)
                value = b.load(sums.slots[r][v])
                b.store(value if bf16 else b.fadd(b.load(target, align=4), value), target, align=4)
        return c.get_dummy_value()

    return types.void(rows, is_bfloat16, *(types.int64,) * 6), generate


@intrinsic(prefer_literal=True)
def value_tile(_context, rows, vectors, is_bfloat16, out, out_stride, factors, x, x_stride, groups, where, step):  # type: ignore[no-untyped-def] # fmt: skip
    """out = out * factor + x . V for `rows` rows and `vectors` vectors of head_dim.

    factors: address of row 0's factor, the others out_stride apart. x: weights of 64 tokens, in groups of 16. groups:
    address of four addresses of V; `where` = (byte offset of the vectors in a token, first group, end group); step:
    bytes from a token (or a pair of tokens) to the next.
    """
    num_rows, num_vectors, bf16 = _literals((rows, vectors, is_bfloat16))
    per_group = 8 if bf16 else 16

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        _, _, _, out_, out_stride_, factors_, x_, x_stride_, groups_, where_, step_ = a
        offset, first, end = cgutils.unpack_tuple(b, where_, 3)
        sums = _Sums(b, num_rows, num_vectors)
        with cgutils.for_range_slice(b, first, end, ir.Constant(_I64, 1), intp=_I64) as (group, _):
            base = b.add(b.load(_at(b, b.add(groups_, b.mul(group, ir.Constant(_I64, 8))), _I64)), offset)
            weights = b.add(x_, b.mul(group, ir.Constant(_I64, 4 * per_group)))
            with cgutils.for_range(b, ir.Constant(_I64, per_group), intp=_I64) as loop:
                y = b.add(base, b.mul(loop.index, step_))
                element = b.add(weights, b.mul(loop.index, ir.Constant(_I64, 4)))
                sums.add(bool(bf16), element, x_stride_, [_offset(b, y, 64 * v) for v in range(num_vectors)])
        for r in range(num_rows):
            shift = b.mul(out_stride_, ir.Constant(_I64, r))
            factor = _splat(b, b.load(_at(b, b.add(factors_, shift), _F32)))
            for v in range(num_vectors):
                target = _at(b, _offset(b, b.add(out_, shift), 64 * v), _V16F)
                b.store(_fma(b, b.load(target, align=4), factor, b.load(sums.slots[r][v])), target, align=4)
        return c.get_dummy_value()

    where_type = types.UniTuple(types.int64, 3)
    return types.void(rows, vectors, is_bfloat16, *(types.int64,) * 6, where_type, types.int64), generate


@intrinsic(prefer_literal=True)
def turn_tile(_context, is_bfloat16, source, source_stride, target):  # type: ignore[no-untyped-def]
    """Transpose 16 rows of 16 elements, source_stride bytes apart, into 16 rows of float32, 64 bytes apart."""
    (bf16,) = _literals((is_bfloat16,))

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        _, source_, stride_, target_ = a
        words = ir.VectorType(ir.IntType(16), 16)
        rows = []
        for r in range(16):
            address = b.add(source_, b.mul(stride_, ir.Constant(_I64, r)))
            if bf16:
                wide = b.zext(b.load(_at(b, address, words), align=2), ir.VectorType(_I32, 16))
                rows.append(b.bitcast(b.shl(wide, _fill(16, wide.type)), _V16F))
            else:
                rows.append(b.load(_at(b, address, _V16F), align=4))
        order = ir.VectorType(_I32, 16)
        halves = [ir.Constant(order, [n for i in range(8) for n in (h + i, h + i + 16)]) for h in (0, 8)]
        for _ in range(4):  # zipping row i with row i + 8, four times over, is a transpose
            rows = [b.shuffle_vector(rows[i], rows[i + 8], half) for i in range(8) for half in halves]
        for r in range(16):
            b.store(rows[r], _at(b, _offset(b, target_, 64 * r), _V16F), align=4)
        return c.get_dummy_value()

    return types.void(is_bfloat16, types.int64, types.int64, types.int64), generate
