"""Vectors of 16 float32 as a Numba type, and the two register tiles that attention spends its time in.

Everything is LLVM vector code, so it compiles anywhere; 512-bit registers and VDPBF16PS are used where the processor
has them (a processor without VDPBF16PS gets two fused multiply-adds). Addresses are int64. No operation here is ever
reordered: kernels that use it are compiled `exact`.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from numba_kernels.layout import has_avx512_bf16

_I16, _I32, _I64, _F32 = ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_V16F, _V16I, _V16H, _V16B = (ir.VectorType(t, 16) for t in (_F32, _I32, _I16, ir.IntType(1)))
Generate = Callable[[Any, Any, Any, Any], Any]


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite does not know: it only has to be printed."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_V16BF, _V32BF = ir.VectorType(_BFloat(), 16), ir.VectorType(_BFloat(), 32)


class _VectorType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="v16f32")


v16 = _VectorType()


@register_model(_VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: types.Type) -> None:
        super().__init__(manager, fe_type, _V16F)


def _at(builder: Any, address: Any, element: ir.Type) -> Any:
    return builder.inttoptr(address, element.as_pointer())


def _call(builder: Any, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    signature = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def _fill(value: float | int, vector: ir.VectorType = _V16F) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _splat(builder: Any, value: Any, vector: ir.VectorType = _V16F) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(one, undefined, _fill(0, ir.VectorType(_I32, vector.count)))


def _fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    return _call(builder, "llvm.fma.v16f32", _V16F, [x, y, z])


def _offset(builder: Any, address: Any, num_bytes: int) -> Any:
    return builder.add(address, ir.Constant(_I64, num_bytes))


@intrinsic
def vload(_context: Any, _address: types.Type) -> Any:
    """16 float32 at an address."""
    return v16(types.int64), lambda _c, b, _s, a: b.load(_at(b, a[0], _V16F), align=4)


@intrinsic
def vload_bf16(_context: Any, _address: types.Type) -> Any:
    """16 bfloat16 at an address, as float32."""

    def generate(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        words = b.load(_at(b, a[0], _V16H), align=2)
        return b.bitcast(b.shl(b.zext(words, _V16I), _fill(16, _V16I)), _V16F)

    return v16(types.int64), generate


@intrinsic
def vload_splat(_context: Any, _address: types.Type) -> Any:
    """The float32 at an address, 16 times."""
    return v16(types.int64), lambda _c, b, _s, a: _splat(b, b.load(_at(b, a[0], _F32), align=4))


@intrinsic
def vstore(_context: Any, _address: types.Type, _x: types.Type) -> Any:
    """Store 16 float32."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        b.store(a[1], _at(b, a[0], _V16F), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, v16), generate


@intrinsic
def vstore_first(_context: Any, _address: types.Type, _x: types.Type) -> Any:
    """Store the first of the 16 float32."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        b.store(b.extract_element(a[1], ir.Constant(_I32, 0)), _at(b, a[0], _F32), align=4)
        return c.get_dummy_value()

    return types.void(types.int64, v16), generate


def _round_to_bf16(b: Any, x: Any) -> Any:
    """16 float32 -> 16 words of bfloat16, to nearest even; NaN stays NaN."""
    if has_avx512_bf16():
        return b.bitcast(_call(b, "llvm.x86.avx512bf16.cvtneps2bf16.512", _V16BF, [x]), _V16H)
    bits = b.bitcast(x, _V16I)
    odd = b.and_(b.lshr(bits, _fill(16, _V16I)), _fill(1, _V16I))
    rounded = b.lshr(b.add(b.add(bits, odd), _fill(0x7FFF, _V16I)), _fill(16, _V16I))
    return b.trunc(b.select(b.fcmp_unordered("uno", x, x), _fill(0x7FC0, _V16I), rounded), _V16H)


@intrinsic
def vstore_bf16(_context: Any, _address: types.Type, _x: types.Type) -> Any:
    """Store 16 float32 as bfloat16, rounded to nearest even."""

    def generate(c: Any, b: Any, _s: Any, a: Any) -> Any:
        b.store(_round_to_bf16(b, a[1]), _at(b, a[0], _V16H), align=2)
        return c.get_dummy_value()

    return types.void(types.int64, v16), generate


@intrinsic
def vsplat(_context: Any, _x: types.Type) -> Any:
    """A float32, 16 times."""
    return v16(types.float32), lambda _c, b, _s, a: _splat(b, a[0])


@intrinsic
def vadd(_context: Any, _x: types.Type, _y: types.Type) -> Any:
    """x + y."""
    return v16(v16, v16), lambda _c, b, _s, a: b.fadd(a[0], a[1])


@intrinsic
def vsub(_context: Any, _x: types.Type, _y: types.Type) -> Any:
    """x - y."""
    return v16(v16, v16), lambda _c, b, _s, a: b.fsub(a[0], a[1])


@intrinsic
def vmul(_context: Any, _x: types.Type, _y: types.Type) -> Any:
    """x * y."""
    return v16(v16, v16), lambda _c, b, _s, a: b.fmul(a[0], a[1])


@intrinsic
def vdiv(_context: Any, _x: types.Type, _y: types.Type) -> Any:
    """x / y."""
    return v16(v16, v16), lambda _c, b, _s, a: b.fdiv(a[0], a[1])


@intrinsic
def vfma(_context: Any, _x: types.Type, _y: types.Type, _z: types.Type) -> Any:
    """x * y + z, rounded once."""
    return v16(v16, v16, v16), lambda _c, b, _s, a: _fma(b, *a)


def _max(b: Any, x: Any, y: Any) -> Any:
    return b.select(b.fcmp_ordered(">", x, y), x, y)


@intrinsic
def vmax(_context: Any, _x: types.Type, _y: types.Type) -> Any:
    """The greater; y where either is NaN."""
    return v16(v16, v16), lambda _c, b, _s, a: _max(b, a[0], a[1])


def _fold(b: Any, x: Any, combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Combine all 16 elements; the result stands in each. Always in the same order: halves first."""
    for distance in (8, 4, 2, 1):
        order = ir.Constant(_V16I, [i ^ distance for i in range(16)])
        x = combine(b, x, b.shuffle_vector(x, ir.Constant(_V16F, ir.Undefined), order))
    return x


@intrinsic
def vmax_all(_context: Any, _x: types.Type) -> Any:
    """The greatest element, 16 times."""
    return v16(v16), lambda _c, b, _s, a: _fold(b, a[0], _max)


@intrinsic
def vsum_all(_context: Any, _x: types.Type) -> Any:
    """The sum of the elements, 16 times."""
    return v16(v16), lambda _c, b, _s, a: _fold(b, a[0], lambda b, x, y: b.fadd(x, y))


@intrinsic
def vkeep(_context: Any, _x: types.Type, _low: types.Type, _high: types.Type) -> Any:
    """Element i where low <= i < high, elsewhere minus infinity."""

    def generate(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        lanes = ir.Constant(_V16I, list(range(16)))
        low, high = (_splat(b, b.trunc(v, _I32), _V16I) for v in a[1:])
        kept = b.and_(b.icmp_signed(">=", lanes, low), b.icmp_signed("<", lanes, high))
        return b.select(kept, a[0], _fill(float("-inf")))

    return v16(v16, types.int64, types.int64), generate


@intrinsic
def vlow_halves(_context: Any, _x: types.Type) -> Any:
    """The low 16 bits of every 32: the first of each bfloat16 pair, with zero as the second."""

    def generate(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        return b.bitcast(b.and_(b.bitcast(a[0], _V16I), _fill(0xFFFF, _V16I)), _V16F)

    return v16(v16), generate


# 2**r for |r| <= 1/2, relative error below 1e-7 (Cephes' exp2f).
_EXP2 = (1.535336188e-4, 1.339887440e-3, 9.618437357e-3, 5.550332471e-2, 2.402264791e-1, 6.931472028e-1, 1.0)
_MAGIC = 12582912.0  # 1.5 * 2**23: the low bits of x + _MAGIC are round(x)


@intrinsic
def vexp2(_context: Any, _x: types.Type) -> Any:
    """2**x for x <= 0, relative error below 1e-7: exactly 1 at 0, exactly 0 below -126; NaN gives NaN."""

    def generate(_c: Any, b: Any, _s: Any, a: Any) -> Any:
        shifted = b.fadd(a[0], _fill(_MAGIC))
        r = b.fsub(a[0], b.fsub(shifted, _fill(_MAGIC)))
        p = _fill(_EXP2[0])
        for coefficient in _EXP2[1:]:
            p = _fma(b, p, r, _fill(coefficient))
        exponent = b.shl(b.bitcast(shifted, _V16I), _fill(23, _V16I))
        y = b.bitcast(b.add(b.bitcast(p, _V16I), exponent), _V16F)
        return b.select(b.fcmp_ordered("<", a[0], _fill(-126.0)), _fill(0.0), y)

    return v16(v16), generate


def multiply_add(b: Any, is_bfloat16: bool, total: Any, x: Any, y_address: Any) -> Any:
    """total += x . y for one vector of y: x an i32 (a bfloat16 pair, or the bits of a float32) that meets every lane.

    With bfloat16 each lane of y is a pair too, and the two products are added.
    """
    if not is_bfloat16:
        return _fma(b, b.bitcast(_splat(b, x, _V16I), _V16F), b.load(_at(b, y_address, _V16F), align=4), total)
    pairs = _splat(b, x, _V16I)
    if has_avx512_bf16():
        y = b.load(_at(b, y_address, _V32BF), align=4)
        return _call(b, "llvm.x86.avx512bf16.dpbf16ps.512", _V16F, [total, b.bitcast(pairs, _V32BF), y])
    words, high = b.load(_at(b, y_address, _V16I), align=4), _fill(0xFFFF0000, _V16I)
    for shift in (False, True):
        x16, y16 = (b.shl(w, _fill(16, _V16I)) if not shift else b.and_(w, high) for w in (pairs, words))
        total = _fma(b, b.bitcast(x16, _V16F), b.bitcast(y16, _V16F), total)
    return total
