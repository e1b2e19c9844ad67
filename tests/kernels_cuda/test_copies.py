"""write_kv and copy_blocks, the kernels' own source in the simulator."""

import numpy as np
import pytest
import torch

from numba_kernels.cuda import block_copy, kv_write
from numba_kernels.cuda.device_memory import MemoryFault
from numba_kernels.cuda.simulator import Index3, Simulator
from tests.kernels_cuda.decode_batches import DTYPES, address, bits, storage_of


def run_write(
    k: torch.Tensor,
    v: torch.Tensor,
    cache: torch.Tensor,
    slots: torch.Tensor,
    quantised_from: str = "",
    scales: tuple[float, float] = (1.0, 1.0),
) -> None:
    """Into the second of the layers of cache [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim]."""
    num_tokens, num_kv_heads, head_dim = k.shape
    variant = kv_write.KvWriteVariant(head_dim, cache.shape[4], quantised_from)
    strides = [2 * s for t in (k, v) for s in t.stride()[:2]]
    cache_strides = [cache.element_size() * cache.stride(d) for d in (0, 4, 3)]
    inverse_scales = [np.float32(1 / scale) for scale in scales]
    sources = [storage_of(k), slots.numpy()]
    sources += [storage_of(v)] if v.untyped_storage().data_ptr() != k.untyped_storage().data_ptr() else []
    for array in sources:
        array.flags.writeable = False
    Simulator([*sources, bits(cache)]).launch(
        lambda target: kv_write.make_write_kv(variant, target), Index3(num_tokens), kv_write.NUM_THREADS,
        k.data_ptr(), v.data_ptr(), address(bits(cache[0, 1, 0])), address(bits(cache[0, 1, 1])),
        address(slots.numpy()), *strides, *cache_strides, num_kv_heads, *inverse_scales,
    )  # fmt: skip


@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_keys_and_values_go_to_their_slots_and_nowhere_else(head_dim: int) -> None:
    torch.manual_seed(0)
    k, v = torch.randn(4, 5, head_dim).half(), torch.randn(4, 5, head_dim).half()
    cache = torch.full((6, 3, 2, 5, 16, head_dim), float("nan")).half()
    expected = cache.clone()
    slots = torch.tensor([17, 95, -1, 40])
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot // 16, 1, :, :, slot % 16] = torch.stack((k[token], v[token]))
    run_write(k, v, cache, slots)
    np.testing.assert_array_equal(bits(cache), bits(expected))  # NaN included


def test_keys_and_values_may_be_views_of_one_projection() -> None:
    torch.manual_seed(0)
    projected = torch.randn(3, 8, 64).half()
    cache = torch.zeros(2, 2, 2, 2, 16, 64).half()
    run_write(projected[:, 4:6], projected[:, 6:8], cache, torch.tensor([16, 17, 31]))
    assert torch.equal(cache[1, 1, 0, :, 15], projected[2, 4:6])
    assert torch.equal(cache[1, 1, 1, :, 0], projected[0, 6:8])


@pytest.mark.parametrize("element", ["bf16", "f16"])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_a_cache_of_8_bit_numbers_gets_what_torch_would_round_to(head_dim: int, element: str) -> None:
    torch.manual_seed(0)
    k, v = (torch.randn(3, 2, head_dim).to(DTYPES[element]) for _ in range(2))
    k[0, 0, :4] = torch.tensor([1e4, -1e4, float("nan"), 1e-6])
    cache = torch.full((3, 2, 2, 2, 16, head_dim), float("nan")).to(torch.float8_e4m3fn)
    expected, scales = cache.clone(), (0.25, 0.0625)
    for token, slot in enumerate([17, 40, -1]):
        for i, x in enumerate((k, v)):
            if slot >= 0:
                rounded = (x[token].float() / scales[i]).clamp(-448, 448).to(torch.float8_e4m3fn)
                expected[slot // 16, 1, i, :, slot % 16] = rounded
    run_write(k, v, cache, torch.tensor([17, 40, -1]), element, scales)
    np.testing.assert_array_equal(cache.float(), expected.float())  # NaN included, of either sign


def test_a_scale_that_is_no_power_of_two_is_divided_by() -> None:
    torch.manual_seed(0)
    k = torch.randn(1, 1, 64).half()
    cache = torch.zeros(1, 2, 2, 1, 16, 64).to(torch.float8_e4m3fn)
    run_write(k, k.clone(), cache, torch.tensor([5]), "f16", (0.01, 1.0))
    dequantised = cache[0, 1, 0, 0, 5].float() * 0.01
    torch.testing.assert_close(dequantised, k[0, 0].float(), rtol=2**-4, atol=0.01 * 2**-10)


def test_heads_that_16_bytes_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="heads of 72"):
        kv_write.KvWriteVariant(72)


def run_copy(source: np.ndarray, destination: np.ndarray, pairs: np.ndarray) -> None:
    row_bytes = source[0].nbytes
    Simulator([destination, pairs, *([] if source is destination else [source])], seed=1).launch(
        block_copy.make_copy_blocks, Index3(block_copy.num_chunks(row_bytes), len(pairs)), block_copy.NUM_THREADS,
        address(source), address(destination), address(pairs), row_bytes,
    )  # fmt: skip


@pytest.mark.parametrize("row_bytes", [16, 4096, 16384, 16400, 40000])
def test_rows_of_any_size_are_copied_and_the_others_kept(row_bytes: int) -> None:
    cache = np.random.default_rng(0).integers(0, 2**15, (5, row_bytes // 2), np.int16)
    expected = cache.copy()
    expected[[4, 1]] = cache[[0, 3]]
    run_copy(cache, cache, np.array([[0, 4], [3, 1]]))
    np.testing.assert_array_equal(cache, expected)


def test_rows_go_from_one_cache_to_another() -> None:
    source = np.random.default_rng(0).integers(0, 2**15, (3, 64), np.int16)
    source.flags.writeable = False
    destination = np.zeros((2, 64), np.int16)
    run_copy(source, destination, np.array([[2, 1]]))
    np.testing.assert_array_equal(destination, np.stack((np.zeros(64, np.int16), source[2])))


def test_a_row_outside_the_cache_is_a_fault() -> None:
    cache = np.zeros((2, 64), np.int16)
    with pytest.raises(MemoryFault, match="outside every array"):
        run_copy(cache, cache, np.array([[0, 2]]))
