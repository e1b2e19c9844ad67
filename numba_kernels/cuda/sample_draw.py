"""A draw from the tokens within a threshold: inverts the cumulative distribution in the order of token ids.

The row is divided among the warps, then the part where the number falls, until that is one tile; then among the tile's
lanes; then among a lane's logits. Each level sums in a fixed order.
"""

from typing import Any

from numba_kernels.cuda.reduction import make_lane_sum
from numba_kernels.cuda.sample_row import (
    SampleVariant,
    make_cutoff,
    make_distance,
    make_load_words,
    make_weight,
    make_widen,
)
from numba_kernels.cuda.target import Target


def make_pick(target: Target) -> Any:
    """pick(weight, prefix, rest) -> (lane, prefix before it): the first whose prefix is above `rest`.

    Of a warp's weights and their inclusive prefix sums; never a lane without weight. Where rounding leaves no prefix
    above `rest`, the last lane with weight.
    """
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32

    @target.device
    def pick(weight, prefix, rest):  # type: ignore[no-untyped-def]
        lane = int32(cuda.threadIdx.x & 31)
        has_weight = weight > float32(0.0)
        first = ptx.redux_min_i32(lane if has_weight and prefix > rest else int32(32))
        last = ptx.redux_max_i32(lane if has_weight else int32(0))
        chosen = int32(first if first < 32 else last)
        before = ptx.shfl_f32(prefix, int32((chosen - 1) & 31))
        return chosen, before if chosen > 0 else float32(0.0)

    return pick


def make_prefix_sum(target: Target) -> Any:
    """prefix_sum(x): the sum over this lane and those below it."""
    cuda, ptx, int32, float32 = target.cuda, target.ptx, target.int32, target.float32

    @target.device
    def prefix_sum(x):  # type: ignore[no-untyped-def]
        lane = int32(cuda.threadIdx.x & 31)
        for i in range(5):
            below = ptx.shfl_up_f32(x, 1 << i)
            x = x + (below if lane >= 1 << i else float32(0.0))
        return x

    return prefix_sum


def make_weights(variant: SampleVariant, target: Target) -> Any:
    """weights(values, best, minus_temperature, inverse, threshold, worth_a_look): logits become weights, in place.

    Zero beyond the threshold. Returns their sum.
    """
    ptx, float32, chunk = target.ptx, target.float32, variant.chunk
    distance, weight = make_distance(target), make_weight(target)

    @target.device
    def weights(values, best, minus_temperature, inverse, threshold, worth_a_look):  # type: ignore[no-untyped-def]
        top = values[0]
        for i in range(1, chunk):
            top = ptx.fmax(top, values[i])
        total = float32(0.0)
        if top >= worth_a_look:
            for i in range(chunk):
                bits = distance(values[i], best, minus_temperature, inverse)
                values[i] = weight(bits) if bits <= threshold else float32(0.0)
                total += values[i]
        else:
            for i in range(chunk):
                values[i] = float32(0.0)
        return total

    return weights


def make_draw(variant: SampleVariant, target: Target) -> Any:
    """draw(row, vocab_size, best, temperature, inverse, threshold, uniform, shared): a token id, the same for all.

    uniform: float32 in [0, 1]. shared: float32 [num_warps].
    """
    cuda, int32, float32, ptx = target.cuda, target.int32, target.float32, target.ptx
    load_words, widen, weights = (
        make_load_words(variant, target),
        make_widen(variant, target),
        make_weights(variant, target),
    )
    warp_sum, prefix_sum, pick = make_lane_sum(32, target), make_prefix_sum(target), make_pick(target)
    cutoff, chunk, tile_size, num_warps = make_cutoff(target), variant.chunk, variant.tile, variant.num_warps

    @target.device
    def draw(row, vocab_size, best, temperature, inverse, threshold, uniform, shared):  # type: ignore[no-untyped-def]
        lane, warp = int32(cuda.threadIdx.x & 31), int32(cuda.threadIdx.x >> 5)
        values = cuda.local.array(chunk, float32)
        worth_a_look, minus_temperature = cutoff(threshold, best, temperature), float32(-temperature)
        begin, end = int32(0), int32((vocab_size + tile_size - 1) // tile_size)
        rest, is_first = float32(0.0), True
        while is_first or end - begin > 1:
            part = int32((end - begin + num_warps - 1) // num_warps)
            tile = int32(begin + warp * part)
            part_end = int32(min(end, int32(tile + part)))
            total = float32(0.0)
            w0, w1, w2, w3 = load_words(row, tile, vocab_size)
            while tile < part_end:
                tile = int32(tile + 1)
                n0, n1, n2, n3 = load_words(row, tile, vocab_size)
                widen(values, w0, w1, w2, w3)
                total += weights(values, best, minus_temperature, inverse, threshold, worth_a_look)
                w0, w1, w2, w3 = n0, n1, n2, n3
            total = warp_sum(total)
            if lane == 0:
                shared[warp] = total
            cuda.syncthreads()
            total = shared[lane] if lane < num_warps else float32(0.0)
            prefix = prefix_sum(total)
            if is_first:
                rest = uniform * ptx.shfl_f32(prefix, 31)
                is_first = False
            chosen, before = pick(total, prefix, rest)
            rest -= before
            begin = int32(begin + chosen * part)
            end = int32(min(end, int32(begin + part)))
            cuda.syncthreads()  # the next level writes what was read
        w0, w1, w2, w3 = load_words(row, begin, vocab_size)
        widen(values, w0, w1, w2, w3)
        total = weights(values, best, minus_temperature, inverse, threshold, worth_a_look)
        chosen, before = pick(total, prefix_sum(total), rest)
        rest -= before
        reached, found, last = float32(0.0), int32(-1), int32(0)
        for i in range(chunk):
            reached += values[i]
            if values[i] > float32(0.0):
                last = int32(i)
                if found < 0 and reached > rest:
                    found = int32(i)
        own = int32((begin * 32 + lane) * chunk + (found if found >= 0 else last))
        return ptx.redux_max_i32(own if lane == chosen else int32(-1))

    return draw
