"""A device that is not there: kernels run in the simulator, over tensors in the CPU's memory."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from numba_kernels.cuda.launcher import Arguments, DeviceProperties
from numba_kernels.cuda.simulator import LaunchFault, Simulator
from numba_kernels.cuda.target import Index3, Kernel

_NAN = 0x7FFF  # of bfloat16 and float16; two of them are a float32's, and either byte is an e4m3's
_ARGUMENT: dict[str, Any] = {
    "int32": index,
    "uint32": index,
    "int64": index,
    "float32": np.float32,
}  # no float becomes an int


@dataclass(frozen=True, slots=True, eq=False)
class _LateCopy:
    """Rows on their way: what they were when the copy was asked for, and where they go."""

    rows: Tensor  # int16 [num_pairs, row_bytes / 2]
    places: Tensor  # int16 [num_destination_rows, row_bytes / 2]
    at: list[int]  # [num_pairs]
    storage: int  # the destination's


@dataclass(slots=True, eq=False)
class _Upload:
    """A copy to the device that may still be reading the host's memory."""

    host: "weakref.ref[Tensor]"  # memory that was let go of is no longer written
    sent: Tensor
    is_done: bool = False

    def finish(self) -> None:
        """Raises LaunchFault if the source has changed meanwhile."""
        host = self.host()
        if not self.is_done and host is not None and not torch.equal(host, self.sent):
            raise LaunchFault("the host has written memory that the device was still copying from")
        self.is_done = True


@dataclass(slots=True, eq=False)
class SimulatedLauncher:
    """`Launcher` over CPU tensors. Kernels run at once; copies of rows arrive as late as a stream allows.

    Until a later launch or copy touches it, or `synchronize`, what a copy is to write is NaN: a host that reads it too
    early does not find it. `seed` chooses the order in which a kernel's lanes run.
    """

    seed: int = 0
    properties: DeviceProperties = field(default_factory=lambda: DeviceProperties(2, (9, 0)))  # as an H100's
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _late: list[_LateCopy] = field(default_factory=list)
    _uploads: list[_Upload] = field(default_factory=list)  # that nobody has waited for

    def launch(
        self, kernel: Kernel, grid: Index3, num_threads: int, args: Arguments, touching: tuple[Tensor, ...]
    ) -> None:
        """Raises `MemoryFault` and `LaunchFault`, and TypeError for arguments of another number or type."""
        if len(args) != len(kernel.argument_types):
            raise TypeError(f"{kernel.name} takes {len(kernel.argument_types)} arguments, not {len(args)}")
        storages = {_storage(tensor): tensor for tensor in touching if tensor.numel()}
        self._arrive(set(storages))
        arrays = [_bytes(tensor).numpy() for tensor in storages.values()]
        values: list[Any] = [_ARGUMENT[name](arg) for name, arg in zip(kernel.argument_types, args, strict=True)]
        shared = kernel.dynamic_shared_bytes
        Simulator(arrays, self.seed).launch(kernel.make, grid, num_threads, *values, dynamic_shared_bytes=shared)

    def upload(self, host: Tensor, memory: Tensor) -> None:
        """Arrives at once, for torch's operations see no stream here. But the host's memory must stay as it is until an
        event after this has been waited for: LaunchFault, when that event comes or when it is sent again.
        """
        self._uploads = [upload for upload in self._uploads if not upload.is_done and upload.host() is not None]
        for upload in self._uploads:
            if upload.host() is host:
                upload.finish()
        memory.copy_(host)
        self._uploads.append(_Upload(weakref.ref(host), host.clone()))

    def download(self, memory: Tensor) -> "SimulatedDownload":
        """NaN until it is waited for."""
        return SimulatedDownload(memory.clone(), self.empty(tuple(memory.shape), memory.dtype))

    def event(self) -> "SimulatedEvent":
        return SimulatedEvent(lambda: list(self._uploads))

    def copy_rows(self, source: Tensor, destination: Tensor, pairs: list[tuple[int, int]]) -> None:
        """As in `Launcher`; which of the two is the host's makes no difference here."""
        self._arrive({_storage(source), _storage(destination)})
        rows, places, to = _halves(source), _halves(destination), [j for _, j in pairs]
        self._late.append(_LateCopy(rows[[i for i, _ in pairs]], places, to, _storage(destination)))
        places[to] = _NAN

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Filled with what is NaN in every element type, and no valid index."""
        memory = torch.empty(shape, dtype=dtype)
        if memory.numel():
            _bytes(memory).fill_(_NAN >> 8)
            even = memory.nbytes // 2 * 2
            _bytes(memory)[:even].view(torch.int16).fill_(_NAN)
        return memory

    def staging(self, num_bytes: int) -> Tensor:
        """Ordinary memory: nothing copies from it behind our back."""
        return torch.zeros(num_bytes, dtype=torch.uint8)

    def prepare(self, kernels: Iterable[Kernel]) -> None:
        """There is nothing to load."""

    def synchronize(self) -> None:
        """Let everything arrive."""
        self._arrive({copy.storage for copy in self._late})
        for upload in self._uploads:
            upload.finish()

    def _arrive(self, storages: set[int]) -> None:
        """Finish the copies into these storages, in their order."""
        for copy in self._late:
            if copy.storage in storages:
                copy.places[copy.at] = copy.rows
        self._late = [copy for copy in self._late if copy.storage not in storages]


@dataclass(slots=True, eq=False)
class SimulatedEvent:
    """`Event`: the uploads before it are done when it is waited for, and not earlier."""

    under_way: Callable[[], list[_Upload]]
    uploads: list[_Upload] = field(default_factory=list)

    def record(self) -> None:
        """Behind the uploads so far."""
        self.uploads = self.under_way()

    def synchronize(self) -> None:
        """Raises LaunchFault if an upload's source is no longer what it was."""
        for upload in self.uploads:
            upload.finish()
        self.uploads = []


@dataclass(slots=True, eq=False)
class SimulatedDownload:
    """`Download`: the host's memory is filled when it is waited for."""

    sent: Tensor
    host: Tensor

    def wait(self) -> Tensor:
        """What the device's memory held when it was asked for."""
        return self.host.copy_(self.sent)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> Tensor:
    """All of the memory that a view looks into, as uint8."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


def _halves(tensor: Tensor) -> Tensor:
    """A contiguous tensor's rows as int16 [num_rows, row_bytes / 2], the same memory."""
    return tensor.view(torch.uint8).view(tensor.shape[0], -1).view(torch.int16)
