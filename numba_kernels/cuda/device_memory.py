"""The simulator's memory: only what was handed over can be touched, and whatever nobody wrote is NaN."""

import bisect
import struct
from typing import Any

import numpy as np

# As uint32 this is a pair of NaN in bfloat16 and in float16, and NaN as float32.
POISON = 0x7FFF7FFF


class MemoryFault(Exception):
    """A kernel touched what it must not: outside its arrays, misaligned, or read-only memory."""


class AddressSpace:
    """Ranges of bytes by address. Every access lies in one range and is aligned to its own size."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ranges: list[tuple[int, memoryview]] = []

    def add(self, start: int, view: memoryview) -> None:
        """Make `view` (bytes) reachable at `start`."""
        at = bisect.bisect(self._starts, start)
        self._starts.insert(at, start)
        self._ranges.insert(at, (start, view))

    def read(self, address: int, layout: str) -> tuple[Any, ...]:
        """What lies at `address`, as `struct` unpacks it."""
        size = struct.calcsize(layout)
        view, offset = self._locate(address, size)
        return struct.unpack_from(layout, view, offset)

    def write(self, address: int, layout: str, *values: Any) -> None:
        """Store values at `address`, as `struct` packs them."""
        view, offset = self._locate(address, struct.calcsize(layout))
        if view.readonly:
            raise MemoryFault(f"a write to read-only memory at {address:#x}")
        struct.pack_into(layout, view, offset, *values)

    def _locate(self, address: int, size: int) -> tuple[memoryview, int]:
        if address % size:
            raise MemoryFault(f"{size} bytes at {address:#x} are not aligned")
        at = bisect.bisect(self._starts, address) - 1
        if at >= 0:
            start, view = self._ranges[at]
            if address + size <= start + len(view):
                return view, address - start
        raise MemoryFault(f"{size} bytes at {address:#x} lie outside every array")


class Registers:
    """A thread's own array of one type: poisoned, and an index outside is an error (Python's would wrap)."""

    __slots__ = ("_as_type", "_values")

    def __init__(self, length: int, as_type: Any, poison: Any) -> None:
        """`as_type` makes an element of a number; `poison` is what nobody has written yet."""
        self._as_type, self._values = as_type, [poison] * length

    def __getitem__(self, index: int) -> Any:
        if index < 0:
            raise self._fault(index)
        try:
            return self._values[index]
        except IndexError:
            raise self._fault(index) from None

    def __setitem__(self, index: int, value: Any) -> None:
        if index < 0:
            raise self._fault(index)
        try:
            self._values[index] = value if type(value) is self._as_type else self._as_type(value)
        except IndexError:
            raise self._fault(index) from None

    def _fault(self, index: int) -> MemoryFault:
        return MemoryFault(f"index {index} of an array of {len(self._values)}")


class CheckedArray:
    """Shared memory of one type: poisoned, and an index outside is an error (Python's would wrap)."""

    def __init__(self, length: int, dtype: Any, address: int = 0) -> None:
        self.address = address
        bits = np.full(length, POISON, dtype=np.uint32)
        self._values = bits.view(dtype)

    @property
    def view(self) -> memoryview:
        return memoryview(self._values).cast("B")

    def __getitem__(self, index: int) -> Any:
        self._check(index)
        value = self._values[index]
        return value if self._values.dtype == np.float32 else int(value)

    def __setitem__(self, index: int, value: Any) -> None:
        self._check(index)
        self._values[index] = value

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self._values):
            raise MemoryFault(f"index {index} of an array of {len(self._values)}")
