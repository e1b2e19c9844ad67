"""The sampling kernel's own source in the simulator, against the CPU's sampler and, in hard cases, float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from numba_kernels.cuda import reduction, sample, sample_draw, sample_row, sample_threshold
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.sample_draw import make_pick
from numba_kernels.cuda.sample_row import SampleVariant, make_distance, variant_for
from numba_kernels.cuda.simulator import LaunchFault, Simulator
from numba_kernels.cuda.target import Index3, Target
from tests.kernels_cuda.decode_batches import address
from tests.kernels_cuda.planted import planted
from tests.kernels_cuda.sampling_rows import ELEMENTS, Rows

INF = float("inf")


def random_logits(num_rows: int, vocab_size: int, *, spread: float = 4.0, element: str = "f32") -> torch.Tensor:
    generator = torch.Generator().manual_seed(vocab_size * 31 + num_rows)
    return (torch.randn(num_rows, vocab_size, generator=generator) * spread).to(ELEMENTS[element])


@pytest.mark.parametrize("element", ["f32", "bf16", "f16"])
@pytest.mark.parametrize("vocab_size", [1, 7, 256, 1001])
def test_without_a_temperature_the_largest_logit_is_taken(vocab_size: int, element: str) -> None:
    logits = random_logits(3, vocab_size, element=element)
    choice = Rows(logits, temperature=0.0).run()
    best = logits.float().max(dim=-1)
    assert choice.token_ids == [int(row.argmax()) for row in logits.float()]
    assert torch.equal(choice.largest, best.values)
    assert all(choice.is_finite)


@pytest.mark.parametrize("places", [(3, 4), (130, 600), (31, 32), (255, 1000)])
def test_of_equal_logits_the_lowest_id_is_taken(places: tuple[int, int]) -> None:
    logits = -random_logits(2, 1001).abs() - 1
    logits[0, list(places)] = 5.0
    logits[1, places[0]], logits[1, places[1]] = -0.0, 0.0  # equal, whatever their bits
    assert Rows(logits, temperature=0.0).run().token_ids == [places[0], places[0]]


@pytest.mark.parametrize("element", ["f32", "bf16", "f16"])
def test_a_row_that_is_not_finite_is_reported_and_the_others_are_not(element: str) -> None:
    logits = random_logits(7, 300, element=element)
    logits[0, 299], logits[1, 0], logits[2, 150] = float("nan"), -float("nan"), INF
    logits[3], logits[4, :299], logits[5, 7] = -INF, -INF, -INF
    choice = Rows(logits, temperature=[0, 1, 0, 1, 1, 0, 1], top_p=0.9).run()
    assert choice.is_finite == [False, False, False, False, True, True, True]
    assert choice.largest[:2].isnan().all()
    assert choice.largest[2:4].tolist() == [INF, -INF]
    assert choice.token_ids[4] == 299
    assert all(0 <= token_id < 300 for token_id in choice.token_ids)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    element=st.sampled_from(["f32", "f32", "bf16", "f16"]),
    vocab_size=st.integers(1, 900),
    spread=st.sampled_from([0.01, 1.0, 5.0]),
    temperature=st.floats(0.25, 2.5, width=32),
    top_k=st.sampled_from([0, 1, 7, 50, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.05]),
    uniforms=st.lists(st.floats(0, 1, exclude_max=True, width=32), min_size=2, max_size=2),
    seed=st.integers(0, 1000),
)
def test_a_draw_is_the_cpu_samplers(
    element: str, vocab_size: int, spread: float, temperature: float, top_k: int, top_p: float, min_p: float,
    uniforms: list[float], seed: int,
) -> None:  # fmt: skip
    logits = random_logits(2, vocab_size, spread=spread, element=element)
    rows = Rows(logits, temperature, top_k, top_p, min_p, uniforms)
    choice = rows.run(seed=seed)
    assert choice.token_ids == rows.on_cpu()
    assert all(choice.is_finite)


def test_each_token_has_its_share_of_the_uniform_numbers_in_the_order_of_ids() -> None:
    share = torch.tensor([0.1, 0.0, 0.3, 0.2, 0.4])
    logits = torch.full((8, 700), -INF)
    logits[:, [2, 3, 130, 131, 699]] = share.log()
    uniform = [0.0, 0.099, 0.101, 0.399, 0.401, 0.599, 0.601, 0.999]
    assert Rows(logits, 1.0, uniform=uniform).run().token_ids == [2, 2, 130, 130, 131, 131, 699, 699]


# Two logits are the best but for equals further down, where each of the parameters cuts.
TIES = [3.0, 2.0, 2.0, 2.0, 1.0, 1.0, -1.0, -50.0, -INF, -INF]
HARD = {
    "equals at the k-th place are kept": {"top_k": 2},
    "equals where the nucleus ends are kept": {"top_p": 0.75},
    "a nucleus of the best alone": {"top_p": 0.01},
    "a top_p that float32 has as zero": {"top_p": 1e-46},
    "top_p of what top_k left": {"top_k": 5, "top_p": 0.6},
    "min_p at a token's own share": {"min_p": float(np.exp(np.float32(-2.0)))},
    "min_p 1": {"min_p": 1.0},
    "top_k into the masked ones": {"top_k": 9},
    "top_k of the vocabulary": {"top_k": 40, "top_p": 0.999},
    "hot": {"temperature": 100.0, "top_k": 7},
    "cold": {"temperature": 1e-38},
    "colder than any distance has weight": {"temperature": 0.01, "top_k": 4},
}


@pytest.mark.parametrize("element", ["f32", "bf16"])
@pytest.mark.parametrize("parameters", HARD.values(), ids=HARD.keys())
def test_hard_cases_are_exact(parameters: dict[str, Any], element: str) -> None:
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    logits = torch.tensor(TIES * 4)[order].repeat(4, 1).to(ELEMENTS[element])
    rows = Rows(logits, **({"temperature": 1.0} | parameters), uniform=[0.0, 0.3, 0.77, 1 - 2**-24])
    for token_id, possible in zip(rows.run().token_ids, rows.exact(), strict=True):
        assert token_id in possible


@pytest.mark.parametrize("vocab_size", [1, 8, 600])
@pytest.mark.parametrize("parameters", [{}, {"top_p": 0.5}, {"top_k": 3}], ids=str)
def test_when_all_logits_are_equal_none_is_cut(vocab_size: int, parameters: dict[str, Any]) -> None:
    logits = torch.full((3, vocab_size), 7.5)
    rows = Rows(logits, 0.7, **parameters, uniform=[0.0, 0.501, 1 - 2**-24])
    assert rows.run().token_ids == [0, int(vocab_size * 0.501), vocab_size - 1]


def test_logits_one_bit_apart_are_told_apart() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 100:200] = torch.nextafter(torch.tensor(0.0), torch.tensor(1.0)) + 2.0
    logits[0, 150] = torch.nextafter(torch.tensor(2.0), torch.tensor(3.0))
    assert Rows(logits, 1.0, top_k=1, uniform=0.0).run().token_ids == [150]
    assert Rows(logits, 1.0, top_k=2, uniform=1 - 2**-24).run().token_ids == [199]


def test_a_row_gives_the_same_token_alone_in_any_batch_and_in_any_order_of_lanes() -> None:
    logits, uniform = random_logits(4, 500), [0.2, 0.5, 0.7, 0.9]
    rows = Rows(logits, 1.0, 60, 0.9, uniform=uniform)
    together = rows.run().token_ids
    assert rows.run(seed=1).token_ids == together
    assert Rows(logits[2:3], 1.0, 60, 0.9, uniform=0.7).run().token_ids == together[2:3]


def test_a_block_of_1024_threads_agrees_with_the_cpu() -> None:
    rows = Rows(random_logits(1, 5000), 1.2, 30, 0.8, uniform=0.6, num_threads=1024)
    assert rows.run().token_ids == rows.on_cpu()


def test_distances_are_correctly_rounded_quotients() -> None:
    def make(target: Target) -> Any:
        distance, ptx, float32 = make_distance(target), target.ptx, target.float32

        def kernel(values: int, temperatures: int, out: int) -> None:
            at = 4 * target.cuda.threadIdx.x
            temperature = ptx.ldg_f32(temperatures + at)
            inverse = ptx.rcp_rn(temperature)
            bits = distance(ptx.ldg_f32(values + at), float32(20.0), float32(-temperature), inverse)
            ptx.stg_f32(out + at, ptx.bits_f32(bits))

        return kernel

    random = np.random.default_rng(0)
    values = (20 - random.exponential(8, 1024)).astype(np.float32)
    temperatures = random.uniform(0.01, 3, 1024).astype(np.float32)
    values[:4], temperatures[3] = [-np.inf, 20, -3e38, -100], 1e-38
    temperatures[2] = 0.5
    out = np.full(1024, np.nan, np.float32)
    arrays = [values, temperatures, out]
    Simulator(arrays).launch(make, Index3(1), 1024, *map(address, arrays))
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(out, (np.float32(20) - values) / temperatures)


def test_a_lane_without_weight_is_never_picked() -> None:
    def make(target: Target) -> Any:
        pick, ptx = make_pick(target), target.ptx

        def kernel(weights: int, prefixes: int, rests: int, out: int) -> None:
            at, index = 4 * target.cuda.threadIdx.x, target.cuda.blockIdx.x
            lane, before = pick(ptx.ldg_f32(weights + at), ptx.ldg_f32(prefixes + at), ptx.ldg_f32(rests + 4 * index))
            ptx.stg_f32(out + 8 * index, target.float32(lane))
            ptx.stg_f32(out + 8 * index + 4, before)

        return kernel

    weights, prefixes = np.zeros(32, np.float32), np.full(32, 3, np.float32)
    weights[[1, 5]] = 1, 2
    prefixes[:6] = 0, 1, 1.0000002, 1, 1, 3  # as rounding may leave them
    rests = np.array([0, 0.5, 1, 1.0000001, 2.9, 3], np.float32)
    out = np.full((6, 2), np.nan, np.float32)
    arrays = [weights, prefixes, rests, out]
    Simulator(arrays).launch(make, Index3(6), 32, *map(address, arrays))
    assert out.tolist() == [[1, 0], [1, 0], [5, 1], [5, 1], [5, 1], [5, 1]]


@pytest.mark.parametrize("top_k", [0, 3, 77])
@pytest.mark.parametrize("top_p", [1.0, 0.95, 0.3])
@pytest.mark.parametrize("min_p", [0.0, 0.1])
def test_the_farthest_token_kept_is_the_one_by_definition(top_k: int, top_p: float, min_p: float) -> None:
    rows = Rows(random_logits(1, 400, spread=2.0).sort().values, 1.25, top_k, top_p, min_p, uniform=0.0)
    assert rows.run().token_ids == [int(np.flatnonzero(rows.kept(0))[0])]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("if first + i < vocab_size", "if first + i <= vocab_size", id="a logit behind the row"),
        pytest.param("return ptx.ldg128(row", "return ptx.ldg128(row + 16", id="the next chunk"),
        pytest.param("bits <= int32(high - (PIVOTS - 1 - j)", "bits <= int32(high - (PIVOTS - j)", id="next threshold"),
        pytest.param("max(low, int32(high - step))", "max(low, int32(high - step // 2))", id="bracket too short"),
        pytest.param("nearest >= farthest", "nearest >= farthest - 2**22", id="ends too early"),
        pytest.param("goal * totals[PIVOTS - 1]", "goal", id="top_p of 1, not of the mass"),
        pytest.param("        rest -= before\n        reached", "        reached", id="another lane's logits"),
        pytest.param("if bits <= threshold else", "if bits <= threshold + 2**23 else", id="draws what was cut"),
        pytest.param("uniform * ptx.shfl_f32(prefix, 31)", "uniform", id="not times the total"),
        pytest.param("cuda.syncthreads()  # the next", "pass  # the next", id="a part's sum overwritten"),
        pytest.param("reach - float32(1e-5)", "reach + float32(0.5)", id="a candidate skipped"),
        pytest.param("key > best:", "key >= best:", id="the highest of equals"),
    ],
)
def test_a_planted_bug_is_caught(old: str, new: str) -> None:
    make = planted(old, new, reduction, sample_row, sample_threshold, sample_draw, sample)["make_sample"]
    assert not all_right(make)


def test_the_kernel_in_which_the_bugs_are_planted_is_right() -> None:
    modules = (reduction, sample_row, sample_threshold, sample_draw, sample)
    assert all_right(planted("key > best:", "key > best:", *modules)["make_sample"])


def all_right(make: Any) -> bool:
    """Whether a kernel chooses what the CPU does. With ascending logits and 0 that is the farthest token kept."""
    ascending = random_logits(1, 701).sort().values[0]
    tied = random_logits(1, 701)[0]
    tied[3:600:2] = -INF
    tied[[40, 41, 601]] = 16.0
    far = -ascending.abs().flip(0) - 1
    far[[699, 700]] = torch.tensor([14 - 1.5 * 5.5, 14.0])  # one of the first thresholds, to the bit
    logits = torch.stack((ascending, ascending, ascending, tied, torch.zeros(701), far))
    top_k, top_p, uniform = [60, 0, 100, 0, 0, 2], [1, 0.6, 0.7, 0.9, 1, 1], [0.0, 0.0, 0.0, 0.7, 0.3, 0.0]
    drawn = Rows(logits, 1.5, top_k, top_p, uniform=uniform)
    expected = [*drawn.on_cpu(), 40, 0]
    rows = Rows(
        torch.cat((logits, logits[3:5])), [1.5] * 6 + [0, 0], [*top_k, 0, 0], [*top_p, 1, 1], 0.0, [*uniform, 0, 0]
    )
    try:
        return all(rows.run(make=make, seed=seed).token_ids == expected for seed in range(2))
    except (MemoryFault, LaunchFault):
        return False


def test_a_row_has_as_many_threads_as_it_can_use() -> None:
    assert variant_for("f32", 100).num_threads == 32
    assert variant_for("bf16", 4096).num_threads == 512
    assert variant_for("f32", 128256) == SampleVariant("f32")


def test_a_variant_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="no sampling from f64"):
        SampleVariant("f64")
    with pytest.raises(ValueError, match="by 48 threads"):
        SampleVariant(num_threads=48)
