"""A row of logits as the sampling kernel sees it: tiles of 32 lanes x 16 bytes, and each logit's distance to the best.

The *distance* (largest logit - logit) / temperature is at least 0, so its bits, read as an integer, are in the order of
the numbers: a token is kept where its distance's bits are at most a threshold. It is minus the scaled logit of
`serve_paged.engine.truncation`, to the bit. Tokens at 88 and beyond weigh nothing: e**-88 is no normal float32.
"""

from dataclasses import dataclass
from typing import Any

from numba_kernels.cuda.target import Target

INFINITE = 0x7F800000  # the bits of float32's infinity
FARTHEST = 0x42B00000  # of 88.0
_MINUS_LOG2_E = -1.4426950408889634
_SIZE = {"f32": 4, "bf16": 2, "f16": 2}
_MASKED = {"f32": 0xFF800000, "bf16": 0xFF80FF80, "f16": 0xFC00FC00}  # a word of minus infinities


@dataclass(frozen=True, slots=True)
class SampleVariant:
    """What is constant in a compiled sampling kernel. Raises ValueError for what has no kernel."""

    element: str = "f32"  # of the logits
    num_threads: int = 1024  # for a row

    def __post_init__(self) -> None:
        if self.element not in _SIZE or self.num_threads not in range(32, 1025, 32):
            raise ValueError(f"no sampling from {self.element} by {self.num_threads} threads")

    @property
    def name(self) -> str:
        """Of the kernel."""
        return f"sample-{self.element}-t{self.num_threads}"

    @property
    def chunk(self) -> int:
        """Logits in 16 bytes: what a lane has of a tile."""
        return 16 // _SIZE[self.element]

    @property
    def tile(self) -> int:
        """Logits that a warp reads at once."""
        return 32 * self.chunk

    @property
    def num_warps(self) -> int:
        """Of the block that has the row."""
        return self.num_threads // 32


def variant_for(element: str, vocab_size: int) -> SampleVariant:
    """With as many threads as a row has 16 bytes, up to 1024: every real vocabulary's."""
    chunks = -(-vocab_size * _SIZE[element] // 16)
    return SampleVariant(element, min(1024, max(1, -(-chunks // 32)) * 32))


def make_load_words(variant: SampleVariant, target: Target) -> Any:
    """load_words(row, tile, vocab_size): the 16 bytes of this lane; minus infinity behind the row's end."""
    cuda, ptx, int32, int64, uint32 = target.cuda, target.ptx, target.int32, target.int64, target.uint32
    chunk, size, masked = variant.chunk, _SIZE[variant.element], _MASKED[variant.element]

    @target.device
    def last_words(row, first, vocab_size):  # type: ignore[no-untyped-def]
        words = cuda.local.array(4, uint32)
        for i in range(4):
            words[i] = uint32(masked)
        for i in range(chunk):
            if first + i < vocab_size:
                at = row + int64(first + i) * size
                if size == 4:
                    words[i] = uint32(ptx.ldg_i32(at))
                elif i & 1:
                    words[i >> 1] = uint32((words[i >> 1] & 0xFFFF) | (ptx.ldg_u16(at) << 16))
                else:
                    words[i >> 1] = uint32((words[i >> 1] & 0xFFFF0000) | ptx.ldg_u16(at))
        return words[0], words[1], words[2], words[3]

    @target.device
    def load_words(row, tile, vocab_size):  # type: ignore[no-untyped-def]
        first = int32((tile * 32 + int32(cuda.threadIdx.x & 31)) * chunk)
        if first + chunk <= vocab_size:
            return ptx.ldg128(row + int64(first) * size)
        return last_words(row, first, vocab_size)

    return load_words


def make_widen(variant: SampleVariant, target: Target) -> Any:
    """widen(values, four words): the logits in them as float32."""
    ptx, int32, is_float32 = target.ptx, target.int32, variant.element == "f32"
    unpack = ptx.unpack_bf16 if is_float32 else getattr(ptx, f"unpack_{variant.element}")

    @target.device
    def widen(values, w0, w1, w2, w3):  # type: ignore[no-untyped-def]
        if is_float32:
            values[0] = ptx.bits_f32(int32(w0))
            values[1] = ptx.bits_f32(int32(w1))
            values[2] = ptx.bits_f32(int32(w2))
            values[3] = ptx.bits_f32(int32(w3))
        else:
            values[0], values[1] = unpack(w0)
            values[2], values[3] = unpack(w1)
            values[4], values[5] = unpack(w2)
            values[6], values[7] = unpack(w3)

    return widen


def make_distance(target: Target) -> Any:
    """distance(value, best, minus_temperature, inverse): the bits of (best - value) / temperature, correctly rounded.

    `inverse` is 1 / temperature, correctly rounded; then one correction of the quotient makes it exact (P. Markstein,
    "Computation of elementary functions on the IBM RISC System/6000 processor", 1990). Infinite quotients stay so.
    """
    ptx, int32 = target.ptx, target.int32

    @target.device
    def distance(value, best, minus_temperature, inverse):  # type: ignore[no-untyped-def]
        apart = ptx.sub_rn(best, value)
        quotient = ptx.mul_rn(apart, inverse)
        exact = ptx.fma_rn(ptx.fma_rn(minus_temperature, quotient, apart), inverse, quotient)
        return int32(ptx.f32_bits(exact) if ptx.f32_bits(quotient) < INFINITE else INFINITE)

    return distance


def make_weight(target: Target) -> Any:
    """weight(bits): e to the minus of a distance; 1 for the best token."""
    ptx, float32 = target.ptx, target.float32

    @target.device
    def weight(bits):  # type: ignore[no-untyped-def]
        return ptx.ex2(ptx.mul_rn(ptx.bits_f32(bits), float32(_MINUS_LOG2_E)))

    return weight


def make_cutoff(target: Target) -> Any:
    """cutoff(threshold, best, temperature): a logit below those of all tokens within the threshold, but not by much.

    Most chunks have no such token, and one comparison finds that out.
    """
    ptx, float32 = target.ptx, target.float32

    @target.device
    def cutoff(threshold, best, temperature):  # type: ignore[no-untyped-def]
        reach = ptx.bits_f32(threshold) * temperature
        return best - reach - float32(1e-5) * (reach + abs(best))

    return cutoff


def make_largest(variant: SampleVariant, target: Target) -> Any:
    """largest(row, vocab_size, shared_keys, shared_ids) -> (the largest logit's key, the lowest id that has it).

    Shared memory: int32 [num_warps] each. A *key* is an int32 in the order of the numbers, 0 for both zeros: the bits
    of a positive number, minus those of the absolute value of a negative one; NaN comes above everything.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    load_words, widen, chunk, num_warps = (
        make_load_words(variant, target),
        make_widen(variant, target),
        variant.chunk,
        variant.num_warps,
    )
    tile_size, nothing, no_id = variant.tile, -(2**31), 2**31 - 1

    @target.device
    def key_of(value):  # type: ignore[no-untyped-def]
        bits = ptx.f32_bits(value)
        magnitude = int32(bits & 0x7FFFFFFF)
        return int32(no_id if magnitude > INFINITE else (bits if bits >= 0 else -magnitude))

    @target.device
    def largest(row, vocab_size, shared_keys, shared_ids):  # type: ignore[no-untyped-def]
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        values = cuda.local.array(chunk, float32)
        best, best_id = int32(nothing), int32(no_id)
        tile, end = warp, int32((vocab_size + tile_size - 1) // tile_size)
        w0, w1, w2, w3 = load_words(row, tile, vocab_size)
        while tile < end:
            n0, n1, n2, n3 = load_words(row, int32(tile + num_warps), vocab_size)
            widen(values, w0, w1, w2, w3)
            for i in range(chunk):
                key = key_of(values[i])
                if key > best:
                    best = key
                    best_id = int32((tile * 32 + lane) * chunk + i)
            w0, w1, w2, w3 = n0, n1, n2, n3
            tile = int32(tile + num_warps)
        warp_best = ptx.redux_max_i32(best)
        warp_id = ptx.redux_min_i32(best_id if best == warp_best else int32(no_id))
        if lane == 0:
            shared_keys[warp] = warp_best
            shared_ids[warp] = warp_id
        cuda.syncthreads()
        best = int32(shared_keys[lane] if lane < num_warps else nothing)
        best_id = int32(shared_ids[lane] if lane < num_warps else no_id)
        block_best = ptx.redux_max_i32(best)
        return block_best, ptx.redux_min_i32(best_id if best == block_best else int32(no_id))

    return largest
