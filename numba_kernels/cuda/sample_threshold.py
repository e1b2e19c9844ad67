"""How far from the best a token may be: the smallest threshold within which tokens number, or weigh, enough.

A pass over the row sums what lies within each of 8 thresholds; the first that suffices and the one before it bracket
the answer, and the next pass divides the bracket. It ends when all tokens inside are equally far. The sums are in a
fixed order and grow with the threshold whatever the rounding, so the answer is exact for the sums as they are.
"""

from typing import Any

from numba_kernels.cuda.reduction import make_lane_sum
from numba_kernels.cuda.sample_row import (
    FARTHEST,
    INFINITE,
    SampleVariant,
    make_cutoff,
    make_distance,
    make_load_words,
    make_weight,
    make_widen,
)
from numba_kernels.cuda.target import Target

PIVOTS = 8
_DOUBLE = 0x00800000  # the first bracket's thresholds are 88, 44, 22, ...: one exponent apart
_TINY = 1e-30  # below the best token's weight, 1, and above what may come out as 0


def make_measure(variant: SampleVariant, target: Target) -> Any:
    """measure(sums, row, vocab_size, best, temperature, inverse, low, high, step, counting) -> (nearest, farthest).

    Of this lane's tokens: how many (`counting`), or how much weight, within each threshold high - (7 - j) * step, into
    sums[j]; and the smallest and largest distance in the bracket low < distance <= high.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    load_words, widen, chunk = make_load_words(variant, target), make_widen(variant, target), variant.chunk
    distance, weight, cutoff = make_distance(target), make_weight(target), make_cutoff(target)
    tile_size, num_warps = variant.tile, variant.num_warps

    @target.device
    def measure(sums, row, vocab_size, best, temperature, inverse, low, high, step, counting):  # type: ignore[no-untyped-def]
        values = cuda.local.array(chunk, float32)
        for j in range(PIVOTS):
            sums[j] = float32(0.0)
        nearest, farthest = int32(INFINITE), int32(-1)
        worth_a_look = cutoff(high, best, temperature)
        minus_temperature = float32(-temperature)
        tile, end = int32(cuda.threadIdx.x >> 5), int32((vocab_size + tile_size - 1) // tile_size)
        w0, w1, w2, w3 = load_words(row, tile, vocab_size)
        while tile < end:
            tile = int32(tile + num_warps)
            n0, n1, n2, n3 = load_words(row, tile, vocab_size)
            widen(values, w0, w1, w2, w3)
            top = values[0]
            for i in range(1, chunk):
                top = ptx.fmax(top, values[i])
            if top >= worth_a_look:
                for i in range(chunk):
                    bits = distance(values[i], best, minus_temperature, inverse)
                    amount = float32(1.0) if counting else weight(bits)
                    for j in range(PIVOTS):
                        if bits <= int32(high - (PIVOTS - 1 - j) * step):
                            sums[j] += amount
                    if low < bits and bits <= high:
                        nearest = int32(min(nearest, bits))
                        farthest = int32(max(farthest, bits))
            w0, w1, w2, w3 = n0, n1, n2, n3
        return nearest, farthest

    return measure


def make_share_sums(variant: SampleVariant, target: Target) -> Any:
    """share_sums(sums, nearest, farthest, shared_sums, shared_ends, totals) -> (nearest, farthest) of the block.

    Shared memory: shared_sums float32 [PIVOTS, 32], shared_ends int32 [2, 32], totals float32 [PIVOTS]: the sums over
    the block, which every thread may read until its next call.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    warp_sum, num_warps = make_lane_sum(32, target), variant.num_warps

    @target.device
    def share_sums(sums, nearest, farthest, shared_sums, shared_ends, totals):  # type: ignore[no-untyped-def]
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        nearest, farthest = ptx.redux_min_i32(nearest), ptx.redux_max_i32(farthest)
        for j in range(PIVOTS):
            total = warp_sum(sums[j])
            if lane == 0:
                shared_sums[j * 32 + warp] = total
        if lane == 0:
            shared_ends[warp] = nearest
            shared_ends[32 + warp] = farthest
        cuda.syncthreads()
        pivot = warp
        while pivot < PIVOTS:
            total = warp_sum(shared_sums[pivot * 32 + lane] if lane < num_warps else float32(0.0))
            if lane == 0:
                totals[pivot] = total
            pivot = int32(pivot + num_warps)
        nearest = ptx.redux_min_i32(shared_ends[lane] if lane < num_warps else int32(INFINITE))
        farthest = ptx.redux_max_i32(shared_ends[32 + lane] if lane < num_warps else int32(-1))
        cuda.syncthreads()
        return nearest, farthest

    return share_sums


def make_find_threshold(variant: SampleVariant, target: Target) -> Any:
    """find_threshold(row, vocab_size, best, temperature, inverse, high, counting, goal, shared arrays): its bits.

    Of tokens within `high`: the smallest threshold that holds `goal` of them (`counting`), or that share of their
    weight; `high` if there are fewer. All threads of a block call it together and get the same.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32
    measure, share_sums = make_measure(variant, target), make_share_sums(variant, target)

    @target.device
    def find_threshold(  # type: ignore[no-untyped-def]
        row, vocab_size, best, temperature, inverse, high, counting, goal, shared_sums, shared_ends, totals
    ):
        sums = cuda.local.array(PIVOTS, float32)
        low, step, is_first, is_open = int32(-1), int32(_DOUBLE), True, True
        while is_open:
            nearest, farthest = measure(sums, row, vocab_size, best, temperature, inverse, low, high, step, counting)
            nearest, farthest = share_sums(sums, nearest, farthest, shared_sums, shared_ends, totals)
            if is_first and not counting:
                goal = ptx.fmax(goal * totals[PIVOTS - 1], float32(_TINY))
            is_first = False
            if totals[PIVOTS - 1] < goal or nearest >= farthest:
                is_open = False
            else:
                first = int32(PIVOTS - 1)
                for j in range(PIVOTS - 1):
                    if totals[PIVOTS - 2 - j] >= goal:
                        first = int32(PIVOTS - 2 - j)
                high = int32(high - (PIVOTS - 1 - first) * step)
                low = int32(low if first == 0 else max(low, int32(high - step)))
                step = int32((high - low + PIVOTS - 1) // PIVOTS)
        return high

    return find_threshold


def make_threshold(variant: SampleVariant, target: Target) -> Any:
    """threshold(row, vocab_size, best, temperature, inverse, top_k, top_p, log_min_p, shared arrays): its bits.

    top_k, then top_p of the weight that is left, then min_p, as `serve_paged.engine.truncation`. A top_k below 1 or not
    below the vocabulary's size and a top_p of 1 cut nothing, nor does a log_min_p of minus infinity.
    """
    ptx, int32, float32 = target.ptx, target.int32, target.float32
    find_threshold = make_find_threshold(variant, target)

    @target.device
    def threshold(  # type: ignore[no-untyped-def]
        row, vocab_size, best, temperature, inverse, top_k, top_p, log_min_p, shared_sums, shared_ends, totals
    ):
        bits = int32(FARTHEST)
        cut = 0 if top_k > 0 and top_k < vocab_size else 1
        last = 2 if top_p < float32(1.0) else 1
        while cut < last:  # written once, for the compiler copies it to where it is called
            counting = cut == 0
            goal = float32(top_k) if counting else top_p
            bits = find_threshold(
                row, vocab_size, best, temperature, inverse, bits, counting, goal, shared_sums, shared_ends, totals
            )
            cut += 1
        # 0 - x, not -x: the bits of -0.0 are those of a large distance.
        return int32(min(bits, ptx.f32_bits(ptx.sub_rn(float32(0.0), log_min_p))))

    return threshold
