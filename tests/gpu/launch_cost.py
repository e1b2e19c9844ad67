"""What a launch costs the host, beside calling the driver in a compiled loop: `python -m tests.gpu.launch_cost`."""

import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from numba_kernels.cuda.gpu_launcher import GpuLauncher
from numba_kernels.cuda.kv_write import NUM_THREADS, KvWriteVariant, write_kv_kernel
from numba_kernels.cuda.launcher import Arguments
from numba_kernels.cuda.target import Index3
from tests.gpu.device import gpu_kernels

NUM_LAUNCHES = 200  # at once: the driver's queue holds about a thousand, so nobody waits for the GPU
NUM_BURSTS = 101
KERNEL = write_kv_kernel(KvWriteVariant(64))  # a prebuilt one with many arguments

Burst = Callable[[int], object]  # called with how many launches


def nothing_to_write(memory: Tensor) -> Arguments:
    """Of `KERNEL`: one token, whose slot, the first number of `memory`, is -1. Nothing else is reached."""
    return (*[memory.data_ptr()] * 5, *[128] * 7, 1, 1.0, 1.0)


def launcher_burst(launcher: GpuLauncher, args: Arguments) -> Burst:
    """The launcher, as operations call it."""

    def burst(times: int) -> None:
        for _ in range(times):
            launcher.launch(KERNEL, Index3(1), NUM_THREADS, args, ())

    return burst


def bare_burst(launcher: GpuLauncher, args: Arguments) -> Burst:
    """cuLaunchKernel again and again from compiled code, its arguments packed once."""
    launcher_burst(launcher, args)(1)
    return launcher.bare_loop(KERNEL)


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
    """Microseconds of a launch of write_kv with nothing to write, 15 arguments."""
    launcher = gpu_kernels().launcher
    assert isinstance(launcher, GpuLauncher)
    memory = torch.full((1024,), -1, dtype=torch.int64, device=launcher.device)
    args = nothing_to_write(memory)
    bare = seconds_per_launch(bare_burst(launcher, args), launcher.synchronize)
    ours = seconds_per_launch(launcher_burst(launcher, args), launcher.synchronize)
    return {"bare_us": bare * 1e6, "launcher_us": ours * 1e6, "above_bare_us": (ours - bare) * 1e6}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
