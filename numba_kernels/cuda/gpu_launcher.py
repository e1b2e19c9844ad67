"""A GPU: kernels launched through the driver on torch's current stream, in torch's memory and context."""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from numba_kernels.cuda.driver import INVALID_CONTEXT, Driver, load_driver
from numba_kernels.cuda.launch_record import LaunchRecord
from numba_kernels.cuda.launcher import Arguments, DeviceProperties, Event
from numba_kernels.cuda.swap import row_copies
from numba_kernels.cuda.target import Index3, Kernel


class KernelImages(Protocol):
    """Where compiled kernels come from."""

    def image(self, kernel: Kernel, compute_capability: tuple[int, int]) -> bytes:
        """What the driver loads for this GPU: machine code, or PTX with a 0 at its end. Its symbol: `kernel.entry`."""


class GpuLauncher:
    """`Launcher` on one GPU. A launch waits for nothing and allocates nothing, so a graph can capture it.

    Kernels have to be loaded before, by `prepare` or by a launch that is not captured: the driver may wait for the
    device while it loads.
    """

    def __init__(
        self,
        device: torch.device,
        properties: DeviceProperties,
        driver: Driver,
        images: KernelImages,
        *,
        current_stream: Callable[[], int],
        is_capturing: Callable[[], bool],
    ) -> None:
        """`current_stream`: the driver's handle of torch's current stream, asked at each launch: inside a capture it
        is the captured one. The calling thread must have the device's context. `open_gpu` fills all this in.
        """
        self.device, self.properties = device, properties
        self._driver, self._images = driver, images
        self._current_stream, self._is_capturing = current_stream, is_capturing
        self._context = driver.current_context()
        self._records: dict[Kernel, LaunchRecord] = {}

    def launch(
        self, kernel: Kernel, grid: Index3, num_threads: int, args: Arguments, touching: tuple[Tensor, ...]
    ) -> None:
        """Raises CudaError if the driver refuses, TypeError for arguments of another number or type."""
        record = self._records.get(kernel) or self._load(kernel)
        if 0 in grid:
            return
        code = record.send(grid, num_threads, self._current_stream(), args)
        if code == INVALID_CONTEXT:  # the first thing that this thread asks of the GPU
            self._driver.set_current_context(self._context)
            code = record.send(grid, num_threads, self._current_stream(), args)
        if code:
            self._driver.check(code, f"launching {kernel.name} over {tuple(grid)} blocks of {num_threads} threads")

    def upload(self, host: Tensor, memory: Tensor) -> None:
        """By torch, which notes that the stream uses `host`."""
        memory.copy_(host, non_blocking=True)

    def download(self, memory: Tensor) -> "GpuDownload":
        """Into pinned memory, with an event behind it."""
        host = torch.empty(memory.shape, dtype=memory.dtype, pin_memory=True)
        host.copy_(memory, non_blocking=True)
        event = self.event()
        event.record()
        return GpuDownload(host, event)

    def event(self) -> Event:
        """torch's, which it records on its current stream."""
        return torch.cuda.Event()

    def copy_rows(self, source: Tensor, destination: Tensor, pairs: list[tuple[int, int]]) -> None:
        """Raises ValueError if the host's side is not pinned, CudaError if the driver refuses."""
        copies = row_copies(source, destination, pairs)
        self._driver.set_current_context(self._context)
        self._driver.copy(copies, self._current_stream())

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """torch's own allocator knows which stream uses it, and a capture's pool."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def staging(self, num_bytes: int) -> Tensor:
        """Pinned. torch gives it out again only when the copies that began from it are done."""
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """Raises CudaError for what the driver cannot load, RuntimeError inside a capture."""
        for kernel in kernels:
            if kernel not in self._records:
                self._load(kernel)

    def synchronize(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def bare_loop(self, kernel: Kernel) -> Callable[[int], int]:
        """Launches the kernel so many times as it was launched last, by a compiled loop: benchmarks compare with it."""
        return self._records[kernel].send_again

    def _load(self, kernel: Kernel) -> LaunchRecord:
        if self._is_capturing():
            raise RuntimeError(
                f"{kernel.name} is launched for the first time inside a graph's capture: prepare it before"
            )
        self._driver.set_current_context(self._context)
        image = self._images.image(kernel, self.properties.compute_capability)
        function = self._driver.load_function(image, kernel.entry, kernel.dynamic_shared_bytes)
        record = LaunchRecord(kernel, function, self._driver.launch_address)
        self._records[kernel] = record
        return record


@dataclass(frozen=True, slots=True)
class GpuDownload:
    """`Download`: pinned memory, and the event behind the copy."""

    host: Tensor
    event: Event

    def wait(self) -> Tensor:
        """Other threads run meanwhile: torch lets go of the interpreter's lock."""
        self.event.synchronize()
        return self.host


def open_gpu(device: torch.device, images: KernelImages) -> GpuLauncher:
    """The GPU that torch calls `device`. Raises RuntimeError where torch sees none, CudaError without a driver."""
    if torch.version.cuda is None:
        raise RuntimeError(f"torch {torch.__version__} is built without CUDA")
    if not torch.cuda.is_available():
        raise RuntimeError("torch sees no GPU")
    index = torch.cuda.current_device() if device.index is None else device.index
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    torch.zeros(1, device=device)  # makes the context, and this thread's current one
    found = torch.cuda.get_device_properties(device)
    shared_bytes = found.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it
    return GpuLauncher(
        device,
        DeviceProperties(found.multi_processor_count, (found.major, found.minor), shared_bytes),
        load_driver(),
        images,
        current_stream=functools.partial(torch._C._cuda_getCurrentRawStream, index),
        is_capturing=torch.cuda.is_current_stream_capturing,
    )
