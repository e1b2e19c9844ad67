"""Every instruction that Numba cannot name, as inline PTX. No other file holds PTX.

Each has a twin of the same name in `ptx_twins.py`, with which the simulator runs the kernels. Global addresses are
int64, shared ones int32. Loads and stores keep their order among themselves: left free, they are moved to where their
values are used, and nothing is in flight. What each does is in the PTX ISA, chapter "Instruction Set".
"""

import inspect
from typing import Any

from llvmlite import ir
from numba import types
from numba.cuda import cgutils
from numba.cuda.extending import intrinsic

_LLVM = {
    types.uint32: ir.IntType(32),
    types.int32: ir.IntType(32),
    types.int64: ir.IntType(64),
    types.float32: ir.FloatType(),
}
_CONSTRAINT = {types.uint32: "r", types.int32: "r", types.int64: "l", types.float32: "f"}
U32, I32, I64, F32 = types.uint32, types.int32, types.int64, types.float32


def _instruction(name: str, outputs: list[Any], inputs: list[Any], template: str, *flags: str) -> Any:
    """An intrinsic for a PTX template: $0 and on are the outputs, then the inputs. Several outputs are a tuple.

    Flags: "ordered" (keeps its place among other ordered ones), "memory" (ordered, and no other access to memory
    moves across it), "convergent" (all lanes of the warp run it together), "early" (an output is written before the
    last input is read, so none shares a register with an input).
    """
    written = "=&" if "early" in flags else "="
    constraints = [f"{written}{_CONSTRAINT[t]}" for t in outputs] + [_CONSTRAINT[t] for t in inputs]
    constraints += ["~{memory}"] if "memory" in flags else []
    results = [_LLVM[t] for t in outputs]
    llvm_result = results[0] if len(results) == 1 else ir.LiteralStructType(results) if results else ir.VoidType()
    function_type = ir.FunctionType(llvm_result, [_LLVM[t] for t in inputs])
    returned = outputs[0] if len(outputs) == 1 else types.UniTuple(outputs[0], len(outputs)) if outputs else types.void
    attributes = ("convergent",) if "convergent" in flags else ()
    ordered = "ordered" in flags or "memory" in flags

    def generate(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        assembly = ir.InlineAsm(function_type, template, ",".join(constraints), side_effect=ordered)
        result = builder.call(assembly, args, attrs=attributes)
        if len(outputs) > 1:
            return cgutils.pack_array(builder, [builder.extract_value(result, i) for i in range(len(outputs))])
        return result if outputs else context.get_dummy_value()

    def declare(_context: Any, *_args: Any) -> Any:
        return returned(*inputs), generate

    # Numba asks for the parameters by name, and takes no "*args" from an intrinsic.
    names = ["context", *(f"operand_{i}" for i in range(len(inputs)))]
    positional = inspect.Parameter.POSITIONAL_OR_KEYWORD
    declare.__signature__ = inspect.Signature([inspect.Parameter(n, positional) for n in names])  # type: ignore[attr-defined]
    declare.__name__ = declare.__qualname__ = name
    return intrinsic(declare)


# Global memory. "nc" reads through the non-coherent path: only for what nothing writes during the launch.
_STREAM = "ld.global.nc.L1::no_allocate.L2::128B"
ldg128 = _instruction("ldg128", [U32] * 4, [I64], f"{_STREAM}.v4.u32 {{$0,$1,$2,$3}}, [$4];", "ordered")
ldg64 = _instruction("ldg64", [U32] * 2, [I64], f"{_STREAM}.v2.u32 {{$0,$1}}, [$2];", "ordered")
ldg_i32 = _instruction("ldg_i32", [I32], [I64], "ld.global.nc.s32 $0, [$1];", "ordered")
ldg_i64 = _instruction("ldg_i64", [I64], [I64], "ld.global.nc.s64 $0, [$1];", "ordered")
ldg_f32 = _instruction("ldg_f32", [F32], [I64], "ld.global.nc.f32 $0, [$1];")
ldg_f32x4 = _instruction("ldg_f32x4", [F32] * 4, [I64], "ld.global.nc.v4.f32 {$0,$1,$2,$3}, [$4];", "ordered")
_LDG_U16 = "{ .reg .u16 t; ld.global.nc.u16 t, [$1]; cvt.u32.u16 $0, t; }"
ldg_u16 = _instruction("ldg_u16", [U32], [I64], _LDG_U16, "ordered")
# The ordinary path: for what this launch writes too, each thread only what it read itself.
ld128 = _instruction("ld128", [U32] * 4, [I64], "ld.global.v4.u32 {$0,$1,$2,$3}, [$4];", "ordered")
stg128 = _instruction("stg128", [], [I64] + [U32] * 4, "st.global.v4.u32 [$0], {$1,$2,$3,$4};", "memory")
stg64 = _instruction("stg64", [], [I64] + [U32] * 2, "st.global.v2.u32 [$0], {$1,$2};", "memory")
stg_u32 = _instruction("stg_u32", [], [I64, U32], "st.global.u32 [$0], $1;", "memory")
stg_i64 = _instruction("stg_i64", [], [I64, I64], "st.global.s64 [$0], $1;", "memory")
stg_f32 = _instruction("stg_f32", [], [I64, F32], "st.global.f32 [$0], $1;", "memory")
stg_f32x2 = _instruction("stg_f32x2", [], [I64, F32, F32], "st.global.v2.f32 [$0], {$1,$2};", "memory")

# Asynchronous copies from global to shared memory, in groups (sm_80 and later).
cp_async16 = _instruction("cp_async16", [], [I32, I64], "cp.async.cg.shared.global.L2::128B [$0], [$1], 16;", "memory")
# The same of num_bytes (0 or 16): what is left over is filled with zeros, and not read.
cp_async16_zfill = _instruction(
    "cp_async16_zfill", [], [I32, I64, I32], "cp.async.cg.shared.global.L2::128B [$0], [$1], 16, $2;", "memory"
)
cp_async_commit = _instruction("cp_async_commit", [], [], "cp.async.commit_group;", "memory")
cp_async_wait0 = _instruction("cp_async_wait0", [], [], "cp.async.wait_group 0;", "memory")
cp_async_wait1 = _instruction("cp_async_wait1", [], [], "cp.async.wait_group 1;", "memory")

# Shared memory, by address.
sts_u32 = _instruction("sts_u32", [], [I32, U32], "st.shared.u32 [$0], $1;", "memory")
sts128 = _instruction("sts128", [], [I32] + [U32] * 4, "st.shared.v4.u32 [$0], {$1,$2,$3,$4};", "memory")
lds128 = _instruction("lds128", [U32] * 4, [I32], "ld.shared.v4.u32 {$0,$1,$2,$3}, [$4];", "memory")

# Warps. All 32 lanes take part.
shfl_xor_f32 = _instruction(
    "shfl_xor_f32", [F32], [F32, I32], "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "ordered", "convergent"
)
# From `delta` lanes below, or a lane's own where there is none; from any lane.
shfl_up_f32 = _instruction(
    "shfl_up_f32", [F32], [F32, I32], "shfl.sync.up.b32 $0, $1, $2, 0x0, 0xffffffff;", "ordered", "convergent"
)
shfl_f32 = _instruction(
    "shfl_f32", [F32], [F32, I32], "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", "ordered", "convergent"
)
redux_min_i32 = _instruction(
    "redux_min_i32", [I32], [I32], "redux.sync.min.s32 $0, $1, 0xffffffff;", "ordered", "convergent"
)
redux_max_i32 = _instruction(
    "redux_max_i32", [I32], [I32], "redux.sync.max.s32 $0, $1, 0xffffffff;", "ordered", "convergent"
)
# 1 if the number is not 0 in any lane.
vote_any = _instruction(
    "vote_any",
    [I32],
    [I32],
    "{ .reg .pred p; setp.ne.s32 p, $1, 0; vote.sync.any.pred p, p, 0xffffffff; selp.s32 $0, 1, 0, p; }",
    "ordered",
    "convergent",
)
movmatrix_trans = _instruction(
    "movmatrix_trans", [U32], [U32], "movmatrix.sync.aligned.m8n8.trans.b16 $0, $1;", "ordered", "convergent"
)


def _ldmatrix(name: str, modifier: str) -> Any:
    """Four 8x8 matrices of 16-bit elements from shared memory: lane l has the address of row l % 8 of matrix l / 8."""
    template = f"ldmatrix.sync.aligned.m8n8.x4{modifier}.shared.b16 {{$0,$1,$2,$3}}, [$4];"
    return _instruction(name, [U32] * 4, [I32], template, "memory", "convergent")


# Lane l receives elements 2 (l % 4) and the next of row l / 4 of each matrix; transposed, of column l / 4.
ldmatrix_x4 = _ldmatrix("ldmatrix_x4", "")
ldmatrix_x4_trans = _ldmatrix("ldmatrix_x4_trans", ".trans")


def _mma(name: str, element: str) -> Any:
    """D[16, 8] = A[16, 16] B[16, 8] + C, float32 sums. Arguments: four of A, two of B, four of C; returns four of D."""
    operation = f"mma.sync.aligned.m16n8k16.row.col.f32.{element}.{element}.f32"
    operands = "{$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$10,$11,$12,$13};"
    return _instruction(name, [F32] * 4, [U32] * 6 + [F32] * 4, f"{operation} {operands}", "convergent")


mma_bf16 = _mma("mma_bf16", "bf16")
mma_f16 = _mma("mma_f16", "f16")

# The number itself, anew wherever this stands: what depends on it is not kept from one round of a loop to the next.
opaque_i32 = _instruction("opaque_i32", [I32], [I32], "mov.b32 $0, $1;", "ordered")

# Arithmetic within a lane. A pair is two 16-bit numbers, the first in the low half.
prmt = _instruction("prmt", [U32], [U32] * 3, "prmt.b32 $0, $1, $2, $3;")
ex2 = _instruction("ex2", [F32], [F32], "ex2.approx.ftz.f32 $0, $1;")
lg2 = _instruction("lg2", [F32], [F32], "lg2.approx.ftz.f32 $0, $1;")
fmax = _instruction("fmax", [F32], [F32, F32], "max.f32 $0, $1, $2;")
pack_bf16 = _instruction("pack_bf16", [U32], [F32, F32], "cvt.rn.bf16x2.f32 $0, $2, $1;")
pack_f16 = _instruction("pack_f16", [U32], [F32, F32], "cvt.rn.f16x2.f32 $0, $2, $1;")
_UNPACK_BF16 = "shl.b32 $0, $2, 16; and.b32 $1, $2, 0xffff0000;"
unpack_bf16 = _instruction("unpack_bf16", [F32] * 2, [U32], _UNPACK_BF16, "early")
_UNPACK_F16 = "{ .reg .f16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }"
unpack_f16 = _instruction("unpack_f16", [F32] * 2, [U32], _UNPACK_F16)
f32_bits = _instruction("f32_bits", [I32], [F32], "mov.b32 $0, $1;")
bits_f32 = _instruction("bits_f32", [F32], [I32], "mov.b32 $0, $1;")
# Rounded as IEEE 754 says, whatever the compiler may do to other arithmetic.
sub_rn = _instruction("sub_rn", [F32], [F32, F32], "sub.rn.f32 $0, $1, $2;")
mul_rn = _instruction("mul_rn", [F32], [F32, F32], "mul.rn.f32 $0, $1, $2;")
fma_rn = _instruction("fma_rn", [F32], [F32] * 3, "fma.rn.f32 $0, $1, $2, $3;")
rcp_rn = _instruction("rcp_rn", [F32], [F32], "rcp.rn.f32 $0, $1;")
# Like pack_f16, but what is beyond float16's range becomes its largest number.
pack_f16_finite = _instruction("pack_f16_finite", [U32], [F32, F32], "cvt.rn.satfinite.f16x2.f32 $0, $2, $1;")
rsqrt = _instruction("rsqrt", [F32], [F32], "rsqrt.approx.ftz.f32 $0, $1;")
rcp = _instruction("rcp", [F32], [F32], "rcp.approx.ftz.f32 $0, $1;")

# Four e4m3 numbers in a word, the first in the lowest byte, as two pairs of float16, exactly; and from four float32,
# rounded to nearest even, what is beyond 448 becoming 448. Compute capability 8.9 and later.
_UNPACK_E4M3 = "{ .reg .b16 l, h; mov.b32 {l, h}, $2; cvt.rn.f16x2.e4m3x2 $0, l; cvt.rn.f16x2.e4m3x2 $1, h; }"
unpack_e4m3 = _instruction("unpack_e4m3", [U32] * 2, [U32], _UNPACK_E4M3)
_PACK_E4M3 = (
    "{ .reg .b16 l, h; cvt.rn.satfinite.e4m3x2.f32 l, $2, $1; cvt.rn.satfinite.e4m3x2.f32 h, $4, $3; "
    "mov.b32 $0, {l, h}; }"
)
pack_e4m3 = _instruction("pack_e4m3", [U32], [F32] * 4, _PACK_E4M3)


@intrinsic
def smem_addr(_context: Any, array: Any) -> Any:
    """Where a `cuda.shared.array` begins in shared memory."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, value=args[0]).data
        function_type = ir.FunctionType(ir.IntType(32), [ir.IntType(64)])
        template = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
        assembly = ir.InlineAsm(function_type, template, "=r,l", side_effect=False)
        return builder.call(assembly, [builder.ptrtoint(data, ir.IntType(64))])

    return types.int32(array), generate
