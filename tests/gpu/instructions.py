"""What every instruction of `ptx.py` is tried with on a GPU, and how closely it has to agree with its twin.

An instruction on registers is run by one generic kernel (`probes.py`): all that is said of it here is its operands,
what they are drawn from, and the agreement. Instructions on memory are run by the probes that name them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]  # bits of 32-bit operands, one per lane
Draw = Callable[[np.random.Generator, int], list[Words]]  # one array for each operand

# Zeros, infinities, quiet and signalling NaN, the smallest and largest subnormals and normals, ones, of either sign.
_SPECIAL = (0, 0x7F800000, 0x7FC00000, 0x7F800001, 1, 0x007FFFFF, 0x00800000, 0x7F7FFFFF, 0x3F800000, 0x7FFFFFFF)
SPECIAL_BITS = np.array([*_SPECIAL, *(x | 0x80000000 for x in _SPECIAL)], dtype=np.uint32)


@dataclass(frozen=True, slots=True)
class RegisterInstruction:
    """One that takes and gives registers: u uint32, i int32, f float32, one letter for each."""

    operands: str
    results: str
    draw: Draw
    agree: Callable[[list[Words], list[Words], list[Words]], NDArray[np.bool_]]  # operands, results, twin's: per lane
    min_compute_capability: tuple[int, int] = (8, 0)


# Agreement: of the bits, of numbers, of approximations.


def same_bits(_operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
    """Every bit of every result."""
    return np.logical_and.reduce([r == e for r, e in zip(results, expected, strict=True)])


def same_floats(_operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
    """Every bit, but that any NaN is like any other: which one is not promised."""
    pairs = zip(results, expected, strict=True)
    return np.logical_and.reduce([(r == e) | (_is_nan(r) & _is_nan(e)) for r, e in pairs])


def same_numbers(_operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
    """Equal as float32: zeros of either sign are one number, and NaN is NaN."""
    pairs = [(r.view(np.float32), e.view(np.float32)) for r, e in zip(results, expected, strict=True)]
    return np.logical_and.reduce([(r == e) | (np.isnan(r) & np.isnan(e)) for r, e in pairs])


def same_halves(_operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
    """Both float16 of a word: every bit, but that any NaN is like any other."""
    halves = [(r.view(np.uint16), e.view(np.uint16)) for r, e in zip(results, expected, strict=True)]
    return np.logical_and.reduce(
        [((r == e) | (_is_half_nan(r) & _is_half_nan(e))).reshape(-1, 2).all(axis=1) for r, e in halves]
    )


def same_e4m3(_operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
    """All four numbers of a word: every bit, but that NaN of either sign are alike."""
    (found,), (true,) = ([word.view(np.uint8) for word in words] for words in (results, expected))
    agreed: NDArray[np.bool_] = ((found == true) | ((found & true & 0x7F) == 0x7F)).reshape(-1, 4).all(axis=1)
    return agreed


def within(
    exact: Callable[[Any], Any], relative: float, *, absolute: float = 0.0
) -> Callable[[list[Words], list[Words], list[Words]], NDArray[np.bool_]]:
    """An approximation of `exact` (float64) that flushes subnormal operands and results, as ".approx.ftz" does."""

    def agree(operands: list[Words], results: list[Words], _expected: list[Words]) -> NDArray[np.bool_]:
        (word,), (result,) = operands, results
        with np.errstate(all="ignore"):
            found = _flushed(result).view(np.float32).astype(np.float64)
            true = np.asarray(exact(_flushed(word).view(np.float32).astype(np.float64)))
            rounded = _flushed(true.astype(np.float32).view(np.uint32)).view(np.float32).astype(np.float64)
            error = np.abs(found - true)
        near = error <= np.maximum(relative * np.abs(true), absolute)
        smallest = float(np.finfo(np.float32).tiny)  # beside it, rounding and flushing may fall either way
        tiny = (np.abs(true) <= smallest * (1 + 2**-20)) & (np.abs(found) <= smallest)
        return near | tiny | (found == rounded) | (np.isnan(found) & np.isnan(true))

    return agree


def _is_nan(words: Words) -> NDArray[np.bool_]:
    return (words & 0x7FFFFFFF) > 0x7F800000


def _is_half_nan(words: NDArray[np.uint16]) -> NDArray[np.bool_]:
    return (words & 0x7FFF) > 0x7C00


def _flushed(words: Words) -> Words:
    """Subnormals become zeros of their sign."""
    return np.where((words & 0x7F800000) == 0, words & np.uint32(0x80000000), words)


# Operands.


def any_bits(num_operands: int) -> Draw:
    """Every pattern alike, special ones first and in all their pairs as far as there is room."""

    def draw(rng: np.random.Generator, num_lanes: int) -> list[Words]:
        words = [rng.integers(0, 2**32, num_lanes, np.uint32) for _ in range(num_operands)]
        grid = np.meshgrid(*[SPECIAL_BITS] * min(num_operands, 2), indexing="ij")
        for word, special in zip(words, grid, strict=False):
            num = min(num_lanes, special.size)
            word[:num] = special.reshape(-1)[:num]
        return words

    return draw


def any_quiet_bits(num_operands: int) -> Draw:
    """`any_bits` without signalling NaN, which the simulator's floats cannot hold."""

    def draw(rng: np.random.Generator, num_lanes: int) -> list[Words]:
        return [np.where(_is_nan(word), word | 0x00400000, word) for word in any_bits(num_operands)(rng, num_lanes)]

    return draw


def floats_between(low: float, high: float) -> Draw:
    """Half of any bits, half in a range where results are neither zero nor infinite."""

    def draw(rng: np.random.Generator, num_lanes: int) -> list[Words]:
        (words,) = any_bits(1)(rng, num_lanes)
        half = num_lanes // 2
        words[half:] = rng.uniform(low, high, num_lanes - half).astype(np.float32).view(np.uint32)
        return [words]

    return draw


def any_numbers(num_operands: int) -> Draw:
    """Half `any_quiet_bits`, half numbers of like size, whose sums and products are rounded."""

    def draw(rng: np.random.Generator, num_lanes: int) -> list[Words]:
        words = any_quiet_bits(num_operands)(rng, num_lanes)
        half = num_lanes // 2
        for word in words:
            word[half:] = rng.uniform(-8, 8, num_lanes - half).astype(np.float32).view(np.uint32)
        return words

    return draw


def _bytes_and_selectors(rng: np.random.Generator, num_lanes: int) -> list[Words]:
    """The selector's sign mode (bit 3 of a nibble) is left out: no kernel uses it, and the twin does not know it."""
    a, b, selector = any_bits(3)(rng, num_lanes)
    return [a, b, selector & np.uint32(0x77777777)]


def _in_a_few_lanes(rng: np.random.Generator, num_lanes: int) -> list[Words]:
    """Not 0 in no lane, in one of 64 and in all, warp by warp."""
    share = np.resize(np.repeat([0, 1 / 64, 1], 32), num_lanes)
    (value,) = any_bits(1)(rng, num_lanes)
    return [np.where(rng.random(num_lanes) < share, value, np.uint32(0))]


def _floats_around_e4m3(rng: np.random.Generator, num_lanes: int) -> list[Words]:
    """Any bits; numbers of its range; and numbers halfway between two of its own."""
    words = any_bits(4)(rng, num_lanes)
    third = num_lanes // 3
    for word in words:
        signs = rng.choice(np.array([-1, 1], np.float32), num_lanes)
        sizes = np.exp2(rng.uniform(-11, 9.5, num_lanes)).astype(np.float32)
        whole = rng.integers(0, 16, num_lanes) + np.float32(0.5)
        halfway = np.ldexp(whole, rng.integers(-9, 6, num_lanes)).astype(np.float32)
        word[third : 2 * third] = (signs * sizes)[third : 2 * third].view(np.uint32)
        word[2 * third :] = (signs * halfway)[2 * third :].view(np.uint32)
    return words


def _value_and_lane_mask(rng: np.random.Generator, num_lanes: int) -> list[Words]:
    (value,) = any_bits(1)(rng, num_lanes)
    masks = np.array([1, 2, 4, 8, 16, 3, 31, 0], np.uint32)
    return [value, np.resize(np.repeat(masks, 32), num_lanes)]


def _value_and_lane(rng: np.random.Generator, num_lanes: int) -> list[Words]:
    (value,) = any_bits(1)(rng, num_lanes)
    return [value, rng.integers(0, 32, num_lanes, np.uint32)]


# Tensor-core products: of small whole numbers, where float32 sums are exact and any misplaced element shows; and of
# real ones with infinities and NaN, where each of 16 products may be cut off at the bits of the largest.


def _products(from_float: Callable[[NDArray[np.float32]], NDArray[np.uint16]]) -> Draw:
    def draw(rng: np.random.Generator, num_lanes: int) -> list[Words]:
        whole = rng.integers(-8, 9, (6, num_lanes, 2)).astype(np.float32)
        real = rng.standard_normal((6, num_lanes, 2), np.float32) * np.float32(2.0 ** rng.integers(-8, 9))
        rare = rng.random(real.shape) < 1 / 512
        real[rare] = rng.choice(np.array([np.inf, -np.inf, np.nan], np.float32), int(rare.sum()))
        is_whole = np.arange(num_lanes) // 32 % 2 == 0
        pairs = from_float(np.where(is_whole[None, :, None], whole, real))
        sums = np.where(is_whole, rng.integers(-64, 65, (4, num_lanes)), rng.standard_normal((4, num_lanes)))
        words = [np.ascontiguousarray(pair).view(np.uint32)[:, 0] for pair in pairs]
        return words + [np.ascontiguousarray(row).view(np.uint32) for row in sums.astype(np.float32)]

    return draw


def _bfloat16_of(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Cut off, but NaN stays NaN."""
    return np.where(np.isnan(values), np.uint16(0x7FC0), (values.view(np.uint32) >> 16).astype(np.uint16))


def _products_agree(to_float: Callable[[Words], NDArray[np.float64]]) -> Any:
    def agree(operands: list[Words], results: list[Words], expected: list[Words]) -> NDArray[np.bool_]:
        found, true = (np.stack([word.view(np.float32) for word in words]) for words in (results, expected))
        with np.errstate(all="ignore"):
            largest = np.stack([np.abs(to_float(word)) for word in operands[:6]]).reshape(6, -1, 32, 2)
            sums = np.stack([np.abs(word.view(np.float32)) for word in operands[6:]])
            finite = np.where(np.isfinite(largest), largest, 0)
            a, b = (part.max(axis=(0, 2, 3)).repeat(32) for part in (finite[:4], finite[4:]))
            bound = 2.0**-23 * 20 * (16 * a * b + sums)
            near = np.abs(found.astype(np.float64) - true) <= bound
        same = (found == true) | (np.isnan(found) & np.isnan(true)) | near
        is_whole = np.arange(found.shape[1]) // 32 % 2 == 0
        agreed: NDArray[np.bool_] = np.where(is_whole, found == true, same).all(axis=0)
        return agreed

    return agree


def _pairs_of_bfloat16(words: Words) -> NDArray[np.float64]:
    return np.stack([words << np.uint32(16), words & np.uint32(0xFFFF0000)], -1).view(np.float32).astype(np.float64)


def _pairs_of_float16(words: Words) -> NDArray[np.float64]:
    return words[..., None].view(np.float16).astype(np.float64)


def _mma(element: str) -> RegisterInstruction:
    if element == "bf16":
        return RegisterInstruction("uuuuuuffff", "ffff", _products(_bfloat16_of), _products_agree(_pairs_of_bfloat16))
    to_half: Callable[[Any], Any] = lambda values: values.astype(np.float16).view(np.uint16)  # noqa: E731
    return RegisterInstruction("uuuuuuffff", "ffff", _products(to_half), _products_agree(_pairs_of_float16))


# Bounds of the approximate ones: as the PTX ISA states them for the whole range.
REGISTER_INSTRUCTIONS: dict[str, RegisterInstruction] = {
    "shfl_xor_f32": RegisterInstruction("fi", "f", _value_and_lane_mask, same_floats),
    "shfl_up_f32": RegisterInstruction("fi", "f", _value_and_lane, same_floats),
    "shfl_f32": RegisterInstruction("fi", "f", _value_and_lane, same_floats),
    "redux_min_i32": RegisterInstruction("i", "i", any_bits(1), same_bits),
    "redux_max_i32": RegisterInstruction("i", "i", any_bits(1), same_bits),
    "vote_any": RegisterInstruction("i", "i", _in_a_few_lanes, same_bits),
    "movmatrix_trans": RegisterInstruction("u", "u", any_bits(1), same_bits),
    "mma_bf16": _mma("bf16"),
    "mma_f16": _mma("f16"),
    "opaque_i32": RegisterInstruction("i", "i", any_bits(1), same_bits),
    "prmt": RegisterInstruction("uuu", "u", _bytes_and_selectors, same_bits),
    "ex2": RegisterInstruction("f", "f", floats_between(-130, 130), within(np.exp2, 2.0**-22)),
    "lg2": RegisterInstruction("f", "f", floats_between(0.4, 2.1), within(np.log2, 2.0**-22, absolute=2.0**-22)),
    "fmax": RegisterInstruction("ff", "f", any_quiet_bits(2), same_numbers),
    "pack_bf16": RegisterInstruction("ff", "u", any_bits(2), same_bits),
    "pack_f16": RegisterInstruction("ff", "u", any_bits(2), same_halves),
    "unpack_bf16": RegisterInstruction("u", "ff", any_bits(1), same_floats),
    "unpack_f16": RegisterInstruction("u", "ff", any_bits(1), same_floats),
    "f32_bits": RegisterInstruction("f", "i", any_quiet_bits(1), same_bits),
    "bits_f32": RegisterInstruction("i", "f", any_bits(1), same_floats),
    "sub_rn": RegisterInstruction("ff", "f", any_numbers(2), same_floats),
    "mul_rn": RegisterInstruction("ff", "f", any_numbers(2), same_floats),
    "fma_rn": RegisterInstruction("fff", "f", any_numbers(3), same_floats),
    "rcp_rn": RegisterInstruction("f", "f", floats_between(-4, 4), same_floats),
    "pack_f16_finite": RegisterInstruction("ff", "u", any_bits(2), same_halves),
    "unpack_e4m3": RegisterInstruction("u", "uu", any_bits(1), same_halves, (8, 9)),
    "pack_e4m3": RegisterInstruction("ffff", "u", _floats_around_e4m3, same_e4m3, (8, 9)),
    "rsqrt": RegisterInstruction("f", "f", floats_between(0.1, 10), within(lambda x: 1 / np.sqrt(x), 2.0**-22.4)),
    "rcp": RegisterInstruction("f", "f", floats_between(-4, 4), within(lambda x: 1 / x, 2.0**-23)),
}
