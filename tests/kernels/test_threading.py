"""The kernels' threads: which pool, how many, and that their number changes no result."""

import importlib.metadata
import threading
from collections.abc import Iterator

import numba
import pytest
import torch

from numba_kernels import KVLayout, rms_norm, set_num_threads, write_kv
from numba_kernels.cpu.threading import threading_layer


@pytest.fixture(autouse=True)
def _all_threads_afterwards() -> Iterator[None]:
    yield
    set_num_threads(numba.config.NUMBA_NUM_THREADS)


def test_tbb_runs_the_kernels_where_its_wheel_is_installed() -> None:
    try:
        importlib.metadata.distribution("tbb")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the tbb wheel is not installed")
    assert threading_layer() == "tbb"


def test_the_number_of_threads_changes_no_bit() -> None:
    x = torch.randn(200, 576, generator=torch.Generator().manual_seed(0)).bfloat16()
    kv = x[:, :384].view(200, 2, 3, 64)
    results = []
    for num_threads in (1, numba.config.NUMBA_NUM_THREADS):
        set_num_threads(num_threads)
        cache = torch.zeros(13, 1, 2, 3, 16, 64, dtype=torch.bfloat16)
        write_kv(kv[:, 0], kv[:, 1], cache, 0, torch.arange(200), layout=KVLayout.AMX_PACKED)
        results.append((rms_norm(x, x[0], 1e-5), cache))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("num_threads", [0, 100_000])
def test_an_impossible_number_of_threads_is_refused(num_threads: int) -> None:
    with pytest.raises(ValueError, match="number of threads"):
        set_num_threads(num_threads)


def test_the_number_holds_for_the_thread_that_set_it() -> None:
    seen: list[int] = []
    set_num_threads(1)
    other = threading.Thread(target=lambda: seen.append(numba.get_num_threads()))
    other.start()
    other.join()
    assert numba.get_num_threads() == 1
    assert seen == [numba.config.NUMBA_NUM_THREADS]
