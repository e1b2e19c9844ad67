"""`CudaKernels` over the simulated device: every operation of `Kernels`, against float64 or plain torch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from numba_kernels import CpuKernels, KVLayout, KVScales, kernels_for, reference_ops
from numba_kernels.cuda.empty_kernel import empty_kernel
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.launcher import DeviceProperties
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from numba_kernels.cuda.target import Index3
from tests.kernels_cuda.batches import BLOCK_SIZE, LAYER, SCALE, Step, random_step
from tests.kernels_cuda.decode_batches import relative_error

TOLERANCE = {torch.bfloat16: 4e-3, torch.float16: 5e-4}
E4M3 = torch.float8_e4m3fn
SCALES = KVScales(0.03, 0.02)  # keys and values are then up to some hundred in the cache


@pytest.fixture
def kernels() -> CudaKernels:
    return CudaKernels(SimulatedLauncher())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_decode_matches_float64(kernels: CudaKernels, dtype: torch.dtype) -> None:
    step = random_step([(1, 37), (1, 1), (1, 300)], dtype=dtype)
    assert relative_error(step.attend(kernels), step.exact()) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_cache_of_8_bits_decode_matches_float64(kernels: CudaKernels, dtype: torch.dtype) -> None:
    """To the same bound: against what the cache's numbers stand for."""
    step = random_step([(1, 37), (1, 1), (1, 300)], dtype=dtype, kv_dtype=E4M3, kv_scales=SCALES)
    assert relative_error(step.attend(kernels, window=280), step.exact(window=280)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_over_a_cache_of_8_bits_a_mixed_batch_matches_float64(kernels: CudaKernels, dtype: torch.dtype) -> None:
    step = random_step([(1, 37), (9, 30), (1, 20), (20, 20)], dtype=dtype, kv_dtype=E4M3, kv_scales=SCALES)
    assert relative_error(step.attend(kernels), step.exact()) < TOLERANCE[dtype]


def test_a_window_hides_what_is_before_it(kernels: CudaKernels) -> None:
    step = random_step([(1, 90), (1, 20)])
    assert relative_error(step.attend(kernels, window=33), step.exact(window=33)) < 4e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_prefill_matches_float64(kernels: CudaKernels, dtype: torch.dtype) -> None:
    step = random_step([(20, 20), (5, 40)], dtype=dtype)
    assert relative_error(step.attend(kernels), step.exact()) < TOLERANCE[dtype]


@pytest.mark.parametrize("window", [None, 24])
@pytest.mark.parametrize(
    "sequences",
    [[(1, 37), (1, 20), (9, 30)], [(9, 30), (1, 37), (1, 20)], [(1, 37), (9, 30), (1, 20)], [(9, 30), (0, 0), (1, 1)]],
    ids=["decode first", "decode last", "decode scattered", "one without queries"],
)
def test_a_mixed_batch_matches_float64_in_any_order(
    kernels: CudaKernels, sequences: list[tuple[int, int]], window: int | None
) -> None:
    step = random_step(sequences)
    assert relative_error(step.attend(kernels, window=window), step.exact(window=window)) < 4e-3


@pytest.mark.parametrize("others", [[], [(9, 30)], [(9, 30), (1, 20), (4, 4)]])
def test_a_sequence_gives_the_same_bits_whatever_else_is_in_its_step(
    kernels: CudaKernels, others: list[tuple[int, int]]
) -> None:
    alone, (first, *_) = random_step([(1, 40)]), [(1, 40)]
    mixed = random_step([first, *others])
    blocks = mixed.block_tables[0, :3].long()
    mixed.kv_cache[blocks] = alone.kv_cache[alone.block_tables[0, :3].long()]
    mixed.q[0] = alone.q[0]
    assert torch.equal(mixed.attend(kernels)[0], alone.attend(kernels)[0])


def test_the_result_goes_where_it_is_wanted(kernels: CudaKernels) -> None:
    step = random_step([(1, 20)])
    out = torch.full_like(step.q, float("nan"))
    assert step.attend(kernels, out=out) is out
    assert torch.equal(out, step.attend(kernels))


def test_queries_may_be_part_of_a_wider_projection(kernels: CudaKernels) -> None:
    step = random_step([(1, 20), (1, 33)])
    projected = torch.cat((step.q, torch.full_like(step.q, float("nan"))), dim=1)
    arguments = (step.kv_cache, LAYER, step.metadata(kernels))
    out = kernels.paged_attention(projected[:, :4], *arguments, scale=SCALE, layout=KVLayout.STANDARD)
    assert torch.equal(out, step.attend(kernels))


def test_keys_and_values_are_written_to_their_slots(kernels: CudaKernels) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 2, 64, dtype=torch.bfloat16).unbind()
    cache = torch.zeros(3, 2, 2, 2, BLOCK_SIZE, 64, dtype=torch.bfloat16)
    kernels.write_kv(k, v, cache, LAYER, torch.tensor([17, -1, 47]), layout=KVLayout.STANDARD)
    expected = torch.zeros_like(cache)
    expected[1, LAYER, :, :, 1] = torch.stack((k[0], v[0]))
    expected[2, LAYER, :, :, 15] = torch.stack((k[2], v[2]))
    assert torch.equal(cache, expected)


def test_a_cache_of_8_bits_is_written_in_units_of_its_scales(kernels: CudaKernels) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(2, 3, 2, 64, dtype=torch.bfloat16).unbind()
    k[0, 0, 0] = 100.0  # more than 448 units
    cache = torch.zeros(3, 2, 2, 2, BLOCK_SIZE, 64).to(E4M3)
    slots, scales = torch.tensor([17, -1, 47]), KVScales(0.125, 0.0625)
    kernels.write_kv(k, v, cache, LAYER, slots, layout=KVLayout.STANDARD, kv_scales=scales)
    expected = torch.zeros(cache.shape)
    for token, block, offset in ((0, 1, 1), (2, 2, 15)):
        expected[block, LAYER, :, :, offset] = torch.stack((k[token] * 8, v[token] * 16))
    expected[1, LAYER, 0, 0, 1, 0] = 448.0
    assert torch.equal(cache.float(), expected.to(E4M3).float())


def test_rotated_keys_are_stored_in_units_of_their_scale(kernels: CudaKernels, generator: torch.Generator) -> None:
    """What a cache of 16 bits gets, rounded once more."""
    cos, sin = torch.randn(2, 40, 32, generator=generator).unbind()
    positions, slots = torch.tensor([5, 0, 39]), torch.tensor([17, -1, 47])
    projected, caches = heads(generator, 3, 8, 64), []
    for dtype, scales in ((torch.bfloat16, KVScales()), (E4M3, KVScales(0.125, 0.0625))):
        q, k, v = projected.clone().split_with_sizes((4, 2, 2), dim=1)
        caches.append(torch.zeros(3, 2, 2, 2, BLOCK_SIZE, 64).to(dtype))
        to = (caches[-1], LAYER, slots)
        kernels.rope_and_write_kv(q, k, v, cos, sin, positions, *to, layout=KVLayout.STANDARD, kv_scales=scales)
    wide, narrow = caches
    assert torch.equal(narrow.float(), (wide.float() * torch.tensor([8.0, 16.0]).view(2, 1, 1, 1)).to(E4M3).float())
    assert narrow[:, :, 0].float().count_nonzero() == 2 * 2 * 64


def test_blocks_of_8_bits_are_copied_and_swapped(kernels: CudaKernels) -> None:
    cache = torch.randn(4, 1, 2, 1, BLOCK_SIZE, 64).to(E4M3)
    host, before = torch.zeros(1, *cache.shape[1:]).to(E4M3), cache.float()
    kernels.copy_blocks(cache, torch.tensor([[0, 2]]))
    kernels.swap_blocks(cache, host, torch.tensor([[1, 0]]))
    kernels.swap_blocks(host, cache, torch.tensor([[0, 3]]))
    kernels.synchronize()
    assert torch.equal(cache.float(), before[[0, 1, 0, 1]])


def test_blocks_are_copied(kernels: CudaKernels) -> None:
    cache = torch.arange(5 * 64, dtype=torch.int16).view(torch.bfloat16).reshape(5, 1, 1, 1, 1, 64)
    expected = cache.clone()
    expected[[4, 1]] = cache[[0, 3]]
    kernels.copy_blocks(cache, torch.tensor([[0, 4], [3, 1]]))
    assert torch.equal(cache.view(torch.int16), expected.view(torch.int16))


def test_blocks_go_out_to_the_host_and_come_back_elsewhere(kernels: CudaKernels) -> None:
    device, host = torch.randn(4, 2, 8), torch.zeros(3, 2, 8)
    before = device.clone()
    kernels.swap_blocks(device, host, torch.tensor([[1, 2], [3, 0]]))
    kernels.swap_blocks(host, device, torch.tensor([[2, 0], [0, 2]]))  # in order: no need to wait
    kernels.synchronize()
    assert torch.equal(device, before[[1, 1, 3, 3]])
    assert torch.equal(host[[2, 0]], before[[1, 3]])


def test_a_host_that_does_not_wait_for_swapped_blocks_reads_nan(kernels: CudaKernels) -> None:
    device, host = torch.randn(2, 8), torch.zeros(2, 8)
    kernels.swap_blocks(device, host, torch.tensor([[1, 0]]))
    device[1] = 0  # later than the copy, as far as the stream is concerned
    assert host[0].isnan().all()
    assert not host[1].any()
    kernels.synchronize()
    assert host[0].any()


def heads(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator).to(torch.bfloat16)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_queries_and_keys_are_rotated_and_keys_and_values_written(
    kernels: CudaKernels, generator: torch.Generator
) -> None:
    projected = heads(generator, 3, 8, 64)
    q, k, v = projected.split_with_sizes((4, 2, 2), dim=1)
    cos, sin = torch.randn(2, 40, 32, generator=generator).unbind()
    positions, slots = torch.tensor([5, 0, 39]), torch.tensor([17, -1, 47])
    cache = torch.zeros(3, 2, 2, 2, BLOCK_SIZE, 64, dtype=torch.bfloat16)
    exact_q, exact_cache = q.double(), cache.double()
    arguments = (cos.double(), sin.double(), positions, exact_cache, LAYER, slots)
    reference_ops.rope_and_write_kv(exact_q, k.double(), v.double(), *arguments, layout=KVLayout.STANDARD)
    kernels.rope_and_write_kv(q, k, v, cos, sin, positions, cache, LAYER, slots, layout=KVLayout.STANDARD)
    assert relative_error(q, exact_q) < 4e-3
    assert relative_error(cache, exact_cache) < 4e-3
    assert torch.equal(cache[:, :, 1], exact_cache[:, :, 1].to(torch.bfloat16))  # values are only copied


def test_rows_are_normed_and_added_to_the_residual(kernels: CudaKernels, generator: torch.Generator) -> None:
    x, residual, weight = heads(generator, 5, 576), heads(generator, 5, 576), heads(generator, 576)
    summed = residual.clone()
    exact = reference_ops.rms_norm(x, weight.double(), 1e-5, residual=summed).double()
    assert relative_error(kernels.rms_norm(x, weight, 1e-5, residual=residual), exact) < 6e-3
    assert torch.equal(residual, summed)


def test_heads_are_normed_each_for_itself(kernels: CudaKernels, generator: torch.Generator) -> None:
    x, weight = heads(generator, 3, 6, 64)[:, 1:4], heads(generator, 64)
    exact = reference_ops.rms_norm(x.double(), weight.double(), 1e-5)
    assert relative_error(kernels.rms_norm(x, weight, 1e-5), exact) < 6e-3


def test_silu_of_the_gate_multiplies_the_other_half(kernels: CudaKernels, generator: torch.Generator) -> None:
    gate_up = heads(generator, 3, 2 * 1536)
    exact = reference_ops.silu_and_mul(gate_up.double())
    assert relative_error(kernels.silu_and_mul(gate_up), exact) < 4e-3


def parameters(*rows: tuple[float, int, float, float, float]) -> dict[str, Tensor]:
    """Of (temperature, top_k, top_p, min_p, uniform)."""
    temperature, top_k, top_p, min_p, uniform = torch.tensor(rows).T.contiguous()
    truncation = {"top_k": top_k.int(), "top_p": top_p, "log_min_p": min_p.log()}
    return {"temperature": temperature, "uniform": uniform, **truncation}


def test_tokens_are_chosen_row_by_row(kernels: CudaKernels, generator: torch.Generator) -> None:
    logits = torch.randn(4, 264, generator=generator)
    logits[3, 7] = float("nan")
    order = logits[1:3].argsort(dim=-1, descending=True, stable=True)
    always = 1.0, 0, 1.0, 0.0, 0.5
    rows = [(0.0, 0, 1.0, 0.0, 0.5), (0.7, 1, 1.0, 0.0, 0.9), (1.0, 3, 1.0, 0.0, 0.5), always]
    sampled = kernels.sample(logits, **parameters(*rows))
    assert sampled.is_finite.tolist() == [1, 1, 1, 0]
    assert torch.equal(sampled.largest[:3], logits[:3].amax(-1))
    assert sampled.token_ids[0] == logits[0].argmax()
    assert sampled.token_ids[1] == order[0, 0]
    kept = order[1, :3].sort().values
    below = logits[2, kept].double().softmax(-1).cumsum(-1)
    assert sampled.token_ids[2] == kept[int((below <= 0.5).sum())]


def test_wrong_parameters_of_sampling_are_named(kernels: CudaKernels) -> None:
    arguments = parameters((1.0, 0, 1.0, 0.0, 0.5))
    with pytest.raises(ValueError, match=r"top_k must be torch.int32 \(1,\)"):
        kernels.sample(torch.zeros(1, 64), **arguments | {"top_k": torch.zeros(1)})
    with pytest.raises(ValueError, match="multiples of 16 bytes"):
        kernels.sample(torch.zeros(3, 65)[:2], **parameters(*[(1.0, 0, 1.0, 0.0, 0.5)] * 2))


def test_what_is_downloaded_is_what_was_there_when_it_was_asked_for(kernels: CudaKernels) -> None:
    x = torch.tensor([1, 2, 3])
    download = kernels.download(x)
    x.zero_()
    assert download.wait().tolist() == [1, 2, 3]


def step_with(**changes: object) -> tuple[Step, dict[str, Any]]:
    """A step's arguments of paged_attention, some of them wrong."""
    step = random_step([(1, 20), (1, 9)])
    arguments: dict[str, Any] = {"q": step.q, "kv_cache": step.kv_cache, "layer": LAYER, "scale": SCALE}
    return step, arguments | {"layout": KVLayout.STANDARD} | changes


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"layer": 2}, r"layer must be in \[0, 2\), not 2"),
        ({"layout": KVLayout.AMX_PACKED}, "layout must be standard, not amx-packed"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"sliding_window": 0}, "sliding_window must be at least 1"),
        ({"q": torch.zeros(2, 3, 64, dtype=torch.bfloat16)}, "q's 3 heads must be 1 to 16 times the cache's 2"),
        ({"q": torch.zeros(1, 4, 64, dtype=torch.bfloat16)}, r"q must be torch.bfloat16 \(2, 4, 64\)"),
        ({"q": torch.zeros(2, 4, 64)}, "q must be torch.bfloat16"),
        ({"q": torch.zeros(2, 4, 70, dtype=torch.bfloat16)[..., 3:67]}, "multiples of 16 bytes"),
        ({"kv_cache": torch.zeros(2, 2, 2, 2, 16, 64)}, "kv_cache must be bfloat16, .*, not torch.float32"),
        ({"kv_scales": KVScales(0.5, 1.0)}, "kv_scales must be 1 for a cache of torch.bfloat16, not 0.5 and 1.0"),
        (
            {"kv_cache": torch.zeros(4, 2, 2, 2, 16, 64).to(E4M3), "q": torch.zeros(2, 4, 64)},
            "q must be bfloat16 or float16, not torch.float32",
        ),
        ({"kv_cache": torch.zeros(4, 2, 2, 2, 24, 64).bfloat16()}, "block_size must be a multiple of 16, not 24"),
        ({"kv_cache": torch.zeros(2, 2, 2, 2, 16, 64).bfloat16()}, "block_tables names a block outside the cache"),
        ({"out": torch.zeros(2, 4, 128, dtype=torch.bfloat16)[..., :64]}, "out must be like q and contiguous"),
    ],
)
def test_a_wrong_argument_is_named(kernels: CudaKernels, changes: dict[str, Any], match: str) -> None:
    step, arguments = step_with(**changes)
    with pytest.raises(ValueError, match=match):
        kernels.paged_attention(metadata=step.metadata(kernels), **arguments)


def test_metadata_of_another_device_is_refused(kernels: CudaKernels) -> None:
    step, arguments = step_with()
    with pytest.raises(ValueError, match="not made by this device"):
        kernels.paged_attention(metadata=step.metadata(CpuKernels()), **arguments)


@pytest.mark.parametrize(
    ("pairs", "error", "match"),
    [
        ([[0, 5]], IndexError, "outside 5 source or 5 destination"),
        ([[-1, 0]], IndexError, "outside"),
        ([0, 1], ValueError, r"pairs must be int64 \[num_pairs, 2\]"),
    ],
)
def test_blocks_that_are_not_there_are_refused(
    kernels: CudaKernels, pairs: list[Any], error: type[Exception], match: str
) -> None:
    cache = torch.zeros(5, 64, dtype=torch.bfloat16)
    with pytest.raises(error, match=match):
        kernels.copy_blocks(cache, torch.tensor(pairs))


def test_a_norm_of_heads_over_more_tokens_than_a_grid_has_is_refused(kernels: CudaKernels) -> None:
    x = torch.zeros(1, 1, 64, dtype=torch.bfloat16).expand(65536, 1, 64)
    with pytest.raises(ValueError, match="at most 65535 tokens"):
        kernels.rms_norm(x, torch.ones(64, dtype=torch.bfloat16), 1e-6)


def test_a_gpu_that_does_not_convert_8_bits_takes_no_such_cache() -> None:
    ampere, ada = (CudaKernels(SimulatedLauncher(properties=DeviceProperties(80, (8, minor)))) for minor in (6, 9))
    step = random_step([(1, 20)], kv_dtype=E4M3)
    assert (ampere.quantised_dtypes, ada.quantised_dtypes) == ((), (E4M3,))
    assert step.attend(ada).isfinite().all()
    with pytest.raises(ValueError, match=r"float8_e4m3fn takes a GPU of compute capability 8\.9, not 8\.6"):
        step.attend(ampere)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_scales_are_positive_numbers(scale: float) -> None:
    with pytest.raises(ValueError, match="must be finite and above 0"):
        KVScales(v=scale)


def test_a_gpu_that_is_too_old_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"7\.5, and 8\.0 is needed"):
        CudaKernels(SimulatedLauncher(properties=DeviceProperties(40, (7, 5))))


def test_a_device_has_its_kernels() -> None:
    assert isinstance(kernels_for("cpu"), CpuKernels)
    with pytest.raises(ValueError, match="no kernels for device meta"):
        kernels_for("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_torch_does_not_see_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"without CUDA|no GPU"):
        kernels_for("cuda")


@pytest.mark.parametrize("args", [(0, 0, 0, 0), (0.0, *range(20), 1, 1, 0.5)])
def test_the_simulated_device_takes_no_other_arguments_than_a_gpu(args: tuple[int | float, ...]) -> None:
    with pytest.raises(TypeError):
        SimulatedLauncher().launch(empty_kernel(), Index3(1), 32, args, ())
