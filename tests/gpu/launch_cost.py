"""What a launch costs the host, beside calling the driver in a compiled loop: `python -m tests.gpu.launch_cost`."""

import json
import statistics
import time
from collections.abc import Callable

import torch
from numba import njit

from numba_kernels.cuda import launch_record
from numba_kernels.cuda.driver import load_driver
from numba_kernels.cuda.images import default_images
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.kv_write import NUM_THREADS, write_kv_kernel
from numba_kernels.cuda.launch_record import LaunchRecord
from numba_kernels.cuda.launcher import Arguments
from numba_kernels.cuda.target import Index3
from tests.gpu.device import gpu_kernels

NUM_LAUNCHES = 200  # at once: the driver's queue holds about a thousand, so nobody waits for the GPU
NUM_BURSTS = 101
_send = launch_record._send  # the compiled call, without anything around it


@njit
def _send_often(record, times):  # type: ignore[no-untyped-def]
    for _ in range(times):
        _send(record)


def seconds_per_launch(burst: Callable[[], object], synchronize: Callable[[], object]) -> float:
    """Median over bursts, waiting for the device between them."""
    samples = []
    for _ in range(NUM_BURSTS):
        synchronize()
        begin = time.perf_counter()
        burst()
        samples.append((time.perf_counter() - begin) / NUM_LAUNCHES)
    return statistics.median(samples)


def measure(kernels: CudaKernels) -> dict[str, float]:
    """Microseconds of a launch of write_kv with nothing to write, 13 arguments."""
    launcher, kernel = kernels.launcher, write_kv_kernel(64)
    memory = torch.zeros(1024, dtype=torch.int64, device=kernels.device)
    slots = torch.full((1,), -1, dtype=torch.int64, device=kernels.device)
    address = memory.data_ptr()
    args: Arguments = (*[address] * 4, slots.data_ptr(), *[128] * 7, 1)
    grid = Index3(1)

    def through_launcher() -> None:
        for _ in range(NUM_LAUNCHES):
            launcher.launch(kernel, grid, NUM_THREADS, args, (memory, slots))

    driver = load_driver()
    image = default_images().image(kernel, launcher.properties.compute_capability)
    record = LaunchRecord(kernel, driver.load_function(image, kernel.entry, 0), driver.launch_address)
    driver.check(record.send(grid, NUM_THREADS, torch.cuda.current_stream().cuda_stream, args), "a first launch")
    through_launcher()
    _send_often(record._address, 1)
    bare = seconds_per_launch(lambda: _send_often(record._address, NUM_LAUNCHES), kernels.synchronize)
    ours = seconds_per_launch(through_launcher, kernels.synchronize)
    return {"bare_us": bare * 1e6, "launcher_us": ours * 1e6, "above_bare_us": (ours - bare) * 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(gpu_kernels()), indent=1))
