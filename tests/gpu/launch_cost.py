"""What a launch costs the host, beside calling the driver in a compiled loop: `python -m tests.gpu.launch_cost`."""

import json
import statistics
import time
from collections.abc import Callable

import torch
from numba import njit

from numba_kernels.cuda import launch_record
from numba_kernels.cuda.driver import Driver, load_driver
from numba_kernels.cuda.gpu_launcher import GpuLauncher
from numba_kernels.cuda.images import default_images
from numba_kernels.cuda.kv_write import NUM_THREADS, write_kv_kernel
from numba_kernels.cuda.launch_record import LaunchRecord
from numba_kernels.cuda.launcher import Arguments
from numba_kernels.cuda.target import Index3, Kernel
from tests.gpu.device import gpu_kernels

NUM_LAUNCHES = 200  # at once: the driver's queue holds about a thousand, so nobody waits for the GPU
NUM_BURSTS = 101
GRID = Index3(1)
_send = launch_record._send  # the compiled call, without anything around it

Burst = Callable[[int], object]  # called with how many launches


@njit
def _send_often(record, times):  # type: ignore[no-untyped-def]
    for _ in range(times):
        _send(record)


def bare_burst(driver: Driver, kernel: Kernel, image: bytes, stream: int, args: Arguments) -> Burst:
    """cuLaunchKernel again and again from compiled code, its arguments packed once."""
    function = driver.load_function(image, kernel.entry, kernel.dynamic_shared_bytes)
    record = LaunchRecord(kernel, function, driver.launch_address)
    driver.check(record.send(GRID, NUM_THREADS, stream, args), "a first launch")
    # What `send` has packed is looked into: without Python around it there is no other way to send it again.
    return lambda times: (record, _send_often(record._address, times))


def launcher_burst(launcher: GpuLauncher, kernel: Kernel, args: Arguments) -> Burst:
    """The launcher, as operations call it."""

    def burst(times: int) -> None:
        for _ in range(times):
            launcher.launch(kernel, GRID, NUM_THREADS, args, ())

    return burst


def seconds_per_launch(burst: Burst, synchronize: Callable[[], object]) -> float:
    """Median over bursts, waiting for the device between them."""
    burst(1)
    samples = []
    for _ in range(NUM_BURSTS):
        synchronize()
        begin = time.perf_counter()
        burst(NUM_LAUNCHES)
        samples.append((time.perf_counter() - begin) / NUM_LAUNCHES)
    return statistics.median(samples)


def measure() -> dict[str, float]:
    """Microseconds of a launch of write_kv with nothing to write, 13 arguments."""
    launcher, kernel = gpu_kernels().launcher, write_kv_kernel(64)
    assert isinstance(launcher, GpuLauncher)
    memory = torch.zeros(1024, dtype=torch.int64, device=launcher.device)
    slots = torch.full((1,), -1, dtype=torch.int64, device=launcher.device)
    args: Arguments = (*[memory.data_ptr()] * 4, slots.data_ptr(), *[128] * 7, 1)
    image = default_images().image(kernel, launcher.properties.compute_capability)
    stream = torch.cuda.current_stream().cuda_stream
    bare = seconds_per_launch(bare_burst(load_driver(), kernel, image, stream, args), launcher.synchronize)
    ours = seconds_per_launch(launcher_burst(launcher, kernel, args), launcher.synchronize)
    return {"bare_us": bare * 1e6, "launcher_us": ours * 1e6, "above_bare_us": (ours - bare) * 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
