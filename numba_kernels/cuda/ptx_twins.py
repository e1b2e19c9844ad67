"""The instructions of `ptx.py` in Python, for the simulator: same names, arguments and results.

Written from the PTX ISA's text and figures, not from what a GPU was seen to do: a conformance test on a GPU has to
confirm each (`tests/gpu`). Approximate instructions (ex2, lg2, rsqrt, rcp) are exact here, but for subnormals.
"""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np

from numba_kernels.cuda.device_memory import AddressSpace, CheckedArray

f32 = np.float32
_LANE = np.arange(32)
_GROUP, _IN_GROUP = _LANE >> 2, _LANE & 3  # the fragments' "groupID" and "threadID_in_group"


def _bfloat16_bits(value: Any) -> int:
    bits = int(np.asarray(value, f32).view(np.uint32))
    if bits & 0x7FFFFFFF > 0x7F800000:
        return 0x7FFF
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def _flushed(value: Any) -> Any:
    """What ".ftz" does to operands and results: a subnormal becomes the zero of its sign."""
    return np.copysign(f32(0), value) if np.abs(value) < np.finfo(f32).tiny else value


def _bfloat16_pairs(words: Any) -> Any:
    """uint32 [...] -> float32 [..., 2]."""
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], axis=-1).view(f32)


def _float16_pairs(words: Any) -> Any:
    """uint32 [...] -> float32 [..., 2]."""
    return np.ascontiguousarray(words)[..., None].view(np.float16).astype(f32)


def _e4m3_numbers() -> Any:
    """float16 [256]: what each code stands for. Exponents up to 15 are finite, only the last mantissa is NaN."""
    codes = np.arange(256)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = np.where(exponent == 0, mantissa * 2.0**-9, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    size[codes & 127 == 127] = np.nan
    return np.where(codes >= 128, -size, size).astype(np.float16)


_E4M3 = _e4m3_numbers()
_E4M3_SIZES = _E4M3[:127].astype(np.float64)  # rising, up to 448


def _e4m3_bits(value: Any) -> int:
    if np.isnan(value):
        return 0x7F
    size = min(abs(float(value)), _E4M3_SIZES[-1])
    below = int(np.searchsorted(_E4M3_SIZES, size, "right")) - 1
    above = min(below + 1, len(_E4M3_SIZES) - 1)
    excess = 2 * size - _E4M3_SIZES[below] - _E4M3_SIZES[above]
    code = above if excess > 0 or (excess == 0 and below % 2) else below
    return code | (0x80 if np.signbit(value) else 0)


def _mma(lanes: list[tuple[Any, ...]], pairs: Callable[[Any], Any]) -> list[Any]:
    """m16n8k16: the fragments' elements are placed as in the PTX ISA's figures for 16-bit types."""
    words = pairs(np.array([lane[:6] for lane in lanes], dtype=np.uint32))  # [lane, register, 2]
    c = np.array([lane[6:] for lane in lanes], dtype=f32)
    a, b, d = np.empty((16, 16), f32), np.empty((16, 8), f32), np.empty((16, 8), f32)
    for i in range(2):
        column = _IN_GROUP * 2 + i
        a[_GROUP, column], a[_GROUP + 8, column] = words[:, 0, i], words[:, 1, i]
        a[_GROUP, column + 8], a[_GROUP + 8, column + 8] = words[:, 2, i], words[:, 3, i]
        b[column, _GROUP], b[column + 8, _GROUP] = words[:, 4, i], words[:, 5, i]
        d[_GROUP, column], d[_GROUP + 8, column] = c[:, i], c[:, 2 + i]
    # Row by row: a NaN in one row of A must not reach another, whatever the matrix library does.
    d += np.einsum("mk,kn->mn", a, b)
    left, right = _IN_GROUP * 2, _IN_GROUP * 2 + 1
    results = np.stack([d[_GROUP, left], d[_GROUP, right], d[_GROUP + 8, left], d[_GROUP + 8, right]], axis=1)
    return [tuple(row) for row in results]


def _transpose8x8(lanes: list[tuple[Any, ...]]) -> list[Any]:
    words = np.array([lane[0] for lane in lanes], dtype=np.uint32)
    matrix = np.empty((8, 8), dtype=np.uint32)
    matrix[_GROUP, _IN_GROUP * 2], matrix[_GROUP, _IN_GROUP * 2 + 1] = words & 0xFFFF, words >> 16
    turned = matrix.T
    return [int(w) for w in turned[_GROUP, _IN_GROUP * 2] | turned[_GROUP, _IN_GROUP * 2 + 1] << 16]


def _spread_matrices(lanes: list[tuple[Any, ...]]) -> list[Any]:
    """From the four words of each lane's row to one word of each of the four matrices."""
    words = np.array([lane[0] for lane in lanes], dtype=np.uint32).reshape(4, 8, 4)  # [matrix, row, word]
    return words[:, _GROUP, _IN_GROUP].T.tolist()


def _spread_transposed(lanes: list[tuple[Any, ...]]) -> list[Any]:
    rows = np.array([lane[0] for lane in lanes], dtype=np.uint32).view(np.uint16).reshape(4, 8, 8)
    turned = np.ascontiguousarray(rows.transpose(0, 2, 1)).view(np.uint32)  # [matrix, column, pair of rows]
    return turned[:, _GROUP, _IN_GROUP].T.tolist()


def _shuffle_xor(lanes: list[tuple[Any, ...]]) -> list[Any]:
    return [lanes[i ^ lane[1]][0] for i, lane in enumerate(lanes)]


# What a whole warp does together: from the arguments of its 32 lanes to their 32 results.
WARP_OPERATIONS: dict[str, Callable[[list[tuple[Any, ...]]], list[Any]]] = {
    "mma_bf16": lambda lanes: _mma(lanes, _bfloat16_pairs),
    "mma_f16": lambda lanes: _mma(lanes, _float16_pairs),
    "movmatrix_trans": _transpose8x8,
    "shfl_xor_f32": _shuffle_xor,
    "shfl_up_f32": lambda lanes: [lanes[i - lane[1]][0] if i >= lane[1] else lane[0] for i, lane in enumerate(lanes)],
    "shfl_f32": lambda lanes: [lanes[lane[1] & 31][0] for lane in lanes],
    "redux_min_i32": lambda lanes: [min(int(lane[0]) for lane in lanes)] * len(lanes),
    "redux_max_i32": lambda lanes: [max(int(lane[0]) for lane in lanes)] * len(lanes),
    "vote_any": lambda lanes: [int(any(lane[0] for lane in lanes))] * len(lanes),
    "ldmatrix_x4": _spread_matrices,
    "ldmatrix_x4_trans": _spread_transposed,
}


class PtxTwins:
    """The instructions, over one launch's memory. `together` hands a warp operation to the scheduler; `copies` is the
    running lane's list of groups of asynchronous copies, of which the last is still open."""

    def __init__(
        self,
        memory: AddressSpace,
        shared: Callable[[], AddressSpace],
        together: Callable[[str, tuple[Any, ...]], Any],
        copies: Callable[[], list[list[tuple[int, tuple[int, ...]]]]],
        early_copies: bool,
    ) -> None:
        self._memory, self._shared, self._together, self._copies = memory, shared, together, copies
        self._early_copies = early_copies

    def ldg128(self, address: int) -> tuple[int, ...]:
        return self._memory.read(address, "<4I")

    def ldg64(self, address: int) -> tuple[int, ...]:
        return self._memory.read(address, "<2I")

    def ldg_i32(self, address: int) -> int:
        return int(self._memory.read(address, "<i")[0])

    def ldg_i64(self, address: int) -> int:
        return int(self._memory.read(address, "<q")[0])

    def ldg_f32(self, address: int) -> Any:
        return f32(self._memory.read(address, "<f")[0])

    def ldg_f32x4(self, address: int) -> Any:
        return np.array(self._memory.read(address, "<4f"), f32)

    def ldg_u16(self, address: int) -> int:
        return int(self._memory.read(address, "<H")[0])

    def ld128(self, address: int) -> tuple[int, ...]:
        return self._memory.read(address, "<4I")

    def stg128(self, address: int, a: int, b: int, c: int, d: int) -> None:
        self._memory.write(address, "<4I", a, b, c, d)

    def stg64(self, address: int, a: int, b: int) -> None:
        self._memory.write(address, "<2I", a, b)

    def stg_u32(self, address: int, value: int) -> None:
        self._memory.write(address, "<I", value)

    def stg_i64(self, address: int, value: int) -> None:
        self._memory.write(address, "<q", value)

    def stg_f32(self, address: int, value: Any) -> None:
        self._memory.write(address, "<f", value)

    def stg_f32x2(self, address: int, first: Any, second: Any) -> None:
        self._memory.write(address, "<2f", first, second)

    def smem_addr(self, array: CheckedArray) -> int:
        return array.address

    def cp_async16(self, target: int, source: int) -> None:
        """Arrives as late as it may, when this lane waits for its group, or as early."""
        self.cp_async16_zfill(target, source, 16)

    def cp_async16_zfill(self, target: int, source: int, num_bytes: int) -> None:
        words = self._memory.read(source, "<4I") if num_bytes else (0, 0, 0, 0)
        self._copies()[-1].append((target, words))
        if self._early_copies:
            self._shared().write(target, "<4I", *words)

    def cp_async_commit(self) -> None:
        self._copies().append([])

    def cp_async_wait0(self) -> None:
        self._arrive(0)

    def cp_async_wait1(self) -> None:
        self._arrive(1)

    def _arrive(self, may_be_pending: int) -> None:
        groups = self._copies()
        while len(groups) - 1 > may_be_pending:
            for target, words in groups.pop(0):
                if not self._early_copies:
                    self._shared().write(target, "<4I", *words)

    def sts_u32(self, address: int, value: int) -> None:
        self._shared().write(address, "<I", value)

    def sts128(self, address: int, a: int, b: int, c: int, d: int) -> None:
        self._shared().write(address, "<4I", a, b, c, d)

    def lds128(self, address: int) -> tuple[int, ...]:
        return self._shared().read(address, "<4I")

    def ldmatrix_x4(self, address: int) -> Any:
        return self._together("ldmatrix_x4", (self._shared().read(address, "<4I"),))

    def ldmatrix_x4_trans(self, address: int) -> Any:
        return self._together("ldmatrix_x4_trans", (self._shared().read(address, "<4I"),))

    def shfl_xor_f32(self, value: Any, mask: int) -> Any:
        return self._together("shfl_xor_f32", (value, mask))

    def shfl_up_f32(self, value: Any, delta: int) -> Any:
        return self._together("shfl_up_f32", (value, delta))

    def shfl_f32(self, value: Any, lane: int) -> Any:
        return self._together("shfl_f32", (value, lane))

    def redux_min_i32(self, value: int) -> Any:
        return self._together("redux_min_i32", (value,))

    def redux_max_i32(self, value: int) -> Any:
        return self._together("redux_max_i32", (value,))

    def vote_any(self, value: int) -> Any:
        return self._together("vote_any", (value,))

    def movmatrix_trans(self, pair: int) -> Any:
        return self._together("movmatrix_trans", (pair,))

    def mma_bf16(self, *operands: Any) -> Any:
        return self._together("mma_bf16", operands)

    def mma_f16(self, *operands: Any) -> Any:
        return self._together("mma_f16", operands)

    def opaque_i32(self, value: int) -> int:
        return value

    def prmt(self, a: int, b: int, selector: int) -> int:
        data = struct.pack("<2I", a, b)
        return int.from_bytes(bytes(data[(selector >> (4 * i)) & 7] for i in range(4)), "little")

    def ex2(self, value: Any) -> Any:
        return _flushed(np.exp2(_flushed(f32(value))))

    def lg2(self, value: Any) -> Any:
        return np.log2(_flushed(f32(value)))

    def fmax(self, a: Any, b: Any) -> Any:
        return np.fmax(f32(a), f32(b))

    def pack_bf16(self, low: Any, high: Any) -> int:
        return _bfloat16_bits(low) | _bfloat16_bits(high) << 16

    def pack_f16(self, low: Any, high: Any) -> int:
        return int(np.array([low, high], np.float16).view(np.uint32)[0])

    def unpack_bf16(self, pair: int) -> tuple[Any, Any]:
        low, high = np.array([pair << 16 & 0xFFFFFFFF, pair & 0xFFFF0000], np.uint32).view(f32)
        return low, high

    def unpack_f16(self, pair: int) -> tuple[Any, Any]:
        low, high = np.array([pair], np.uint32).view(np.float16).astype(f32)
        return low, high

    def f32_bits(self, value: Any) -> int:
        return int(np.asarray(value, f32).view(np.int32))

    def bits_f32(self, bits: int) -> Any:
        return np.array(bits, np.int32).view(f32)[()]

    def sub_rn(self, a: Any, b: Any) -> Any:
        return f32(a) - f32(b)

    def mul_rn(self, a: Any, b: Any) -> Any:
        return f32(a) * f32(b)

    def fma_rn(self, a: Any, b: Any, c: Any) -> Any:
        """In float64: the product is exact there, the sum rounded twice, which shows in one case of 2**29 or so."""
        return f32(np.float64(a) * np.float64(b) + np.float64(c))

    def rcp_rn(self, value: Any) -> Any:
        return f32(1.0) / f32(value)

    def pack_f16_finite(self, low: Any, high: Any) -> int:
        largest = f32(np.finfo(np.float16).max)
        return self.pack_f16(np.clip(f32(low), -largest, largest), np.clip(f32(high), -largest, largest))

    def unpack_e4m3(self, word: int) -> tuple[int, int]:
        low, high = _E4M3[np.frombuffer(struct.pack("<I", word), np.uint8)].view(np.uint32)
        return int(low), int(high)

    def pack_e4m3(self, *numbers: Any) -> int:
        return int.from_bytes(bytes(_e4m3_bits(number) for number in numbers), "little")

    def rsqrt(self, value: Any) -> Any:
        return f32(1.0 / np.sqrt(np.float64(_flushed(f32(value)))))

    def rcp(self, value: Any) -> Any:
        return _flushed(f32(1.0) / _flushed(f32(value)))
