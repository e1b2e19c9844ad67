"""What a launch costs the host without a GPU: `python -m numba_kernels.cuda.bench_launch`.

The driver's functions do nothing, so what is measured is ours alone. `make gpu` measures it over a real driver.
"""

import argparse
import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from numba import cfunc, types

from numba_kernels.cuda.driver import SIGNATURES, Driver
from numba_kernels.cuda.empty_kernel import empty_kernel
from numba_kernels.cuda.gpu_launcher import GpuLauncher
from numba_kernels.cuda.launcher import DeviceProperties
from numba_kernels.cuda.target import Index3, Kernel

_BATCH = 500
_ARGUMENTS = (*range(20), 32, 8, 1e-5)


@dataclass(frozen=True, slots=True)
class NoImages:
    """`KernelImages` for a driver that does not read them."""

    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        return b"\0"


class NoDriver:
    """A library whose functions succeed at once; cuLaunchKernel is compiled code, as the real one."""

    def __init__(self) -> None:
        for name, argument_types in SIGNATURES.items():
            setattr(self, name, ctypes.CFUNCTYPE(ctypes.c_int, *argument_types)(lambda *_: 0))
        self.cuCtxGetCurrent = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_void_p))(_give_a_context)
        signature = types.int32(types.int64, *[types.uint32] * 7, *[types.int64] * 3)
        self._launch = cfunc(signature)(lambda f, x, y, z, tx, ty, tz, shared, stream, arguments, extra: 0)
        launch_type = ctypes.CFUNCTYPE(ctypes.c_int, *SIGNATURES["cuLaunchKernel"])
        self.cuLaunchKernel = launch_type(self._launch.address)


def _give_a_context(out: Any) -> int:
    out[0] = 1
    return 0


def launcher_without_gpu() -> GpuLauncher:
    """A `GpuLauncher` that launches nothing."""
    return GpuLauncher(
        torch.device("cuda:0"),
        DeviceProperties(132, (9, 0)),
        Driver(NoDriver()),
        NoImages(),
        current_stream=int,
        is_capturing=bool,
    )


def microseconds(launches: Callable[[int], object], rounds: int) -> float:
    """The best of `rounds` times, per launch; `launches(n)` asks for n."""
    times = []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        launches(_BATCH)
        times.append(time.perf_counter() - began)
    return min(times[1:]) / _BATCH * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m numba_kernels.cuda.bench_launch", description=__doc__)
    parser.add_argument("--rounds", type=int, default=101)
    options = parser.parse_args()
    gpu, kernel, grid = launcher_without_gpu(), empty_kernel(), Index3(1)

    def ours(count: int) -> None:
        for _ in range(count):
            gpu.launch(kernel, grid, 32, _ARGUMENTS, ())

    ours(1)
    bare = microseconds(gpu.bare_loop(kernel), options.rounds)
    whole = microseconds(ours, options.rounds)
    print(
        f"a driver that does nothing; {len(_ARGUMENTS)} arguments; best of {options.rounds} rounds of {_BATCH} launches"
    )
    print(f"compiled loop over cuLaunchKernel: {bare:6.2f} us a launch")
    print(f"GpuLauncher.launch:                {whole:6.2f} us a launch, {whole - bare:.2f} us above it")


if __name__ == "__main__":
    main()
