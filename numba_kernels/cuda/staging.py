"""Small arrays on their way to the device: packed into one piece of host memory, sent in one copy."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from numba_kernels.cuda.launcher import Launcher

_ALIGNMENT = 16  # kernels load 16 bytes at once
_NUMPY = {torch.int32: np.int32, torch.int64: np.int64}


@dataclass(frozen=True, slots=True)
class Field:
    """One array's element type (int32 or int64) and shape."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Packing:
    """Where each of several arrays lies in one piece of memory."""

    def __init__(self, fields: dict[str, Field]) -> None:
        self._places: dict[str, tuple[int, Field]] = {}
        self.num_bytes = 0
        for name, field in fields.items():
            self._places[name] = (self.num_bytes, field)
            self.num_bytes += -(-field.num_bytes // _ALIGNMENT) * _ALIGNMENT

    def tensors(self, memory: Tensor) -> dict[str, Tensor]:
        """The arrays as views of `memory`, uint8 [num_bytes]."""
        return {
            name: memory[at : at + field.num_bytes].view(field.dtype).view(field.shape)
            for name, (at, field) in self._places.items()
        }

    def arrays(self, memory: Tensor) -> dict[str, NDArray[np.int32] | NDArray[np.int64]]:
        """The same views of memory on the host, as numpy."""
        raw = memory.numpy()
        return {
            name: raw[at : at + field.num_bytes].view(_NUMPY[field.dtype]).reshape(field.shape)
            for name, (at, field) in self._places.items()
        }


def send(launcher: Launcher, arrays: dict[str, NDArray[np.int32] | NDArray[np.int64]]) -> dict[str, Tensor]:
    """Copies of these arrays on the device, in one transfer that nobody waits for."""
    packing = Packing({name: Field(_TORCH[array.dtype.type], array.shape) for name, array in arrays.items()})
    staged = launcher.staging(packing.num_bytes)
    for name, place in packing.arrays(staged).items():
        place[...] = arrays[name]
    memory = launcher.empty((packing.num_bytes,), torch.uint8)
    launcher.upload(staged, memory)
    return packing.tensors(memory)


_TORCH = {numpy: dtype for dtype, numpy in _NUMPY.items()}
