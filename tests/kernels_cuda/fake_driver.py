"""A driver library in Python: functions of libcuda's names and signatures that note what they are called with."""

import ctypes
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Launch:
    """What one cuLaunchKernel was given; `slots` are its arguments' first 8 bytes each."""

    function: int
    grid: tuple[int, ...]
    threads: tuple[int, ...]
    shared_bytes: int
    stream: int
    slots: list[bytes]


@dataclass
class FakeDriver:
    """`codes`: what functions answer instead of success, one call after another."""

    num_arguments: int = 0
    version: int = 13000
    codes: dict[str, list[int]] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)
    loaded: list[bytes] = field(default_factory=list)
    attributes: list[tuple[int, int, int]] = field(default_factory=list)
    contexts: list[int] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    copies: list[tuple[int, int, int, int]] = field(default_factory=list)  # destination, source, bytes, stream

    def __post_init__(self) -> None:
        pointer = POINTER(c_void_p)
        text = POINTER(c_char_p)
        self._export("cuCtxGetCurrent", self._give(0xC0), pointer)
        self._export("cuCtxSetCurrent", self.contexts.append, c_void_p)
        self._export("cuDriverGetVersion", self._tell_version, POINTER(c_int))
        self._export("cuFuncSetAttribute", lambda *call: self.attributes.append(call), c_void_p, c_int, c_int)
        self._export("cuFuncLoad", self.finished.append, c_void_p)
        self._export("cuGetErrorName", lambda code, out: self._say(out, b"CUDA_ERROR_%d" % code), c_int, text)
        self._export("cuGetErrorString", lambda code, out: self._say(out, b"went wrong"), c_int, text)
        self._export("cuLaunchKernel", self._launch, c_void_p, *(c_uint,) * 7, c_void_p, pointer, c_void_p)
        self._export("cuMemcpyAsync", lambda *call: self.copies.append(call), c_uint64, c_uint64, c_size_t, c_void_p)
        self._export("cuModuleGetFunction", self._give(0xF0), pointer, c_void_p, c_char_p)
        load = (pointer, c_char_p, c_uint, POINTER(c_int), pointer)
        self._export("cuModuleLoadDataEx", self._load, *load)

    def _export(self, name: str, function: Callable[..., Any], *argument_types: Any) -> None:
        def called(*call: Any) -> int:
            code = self.codes[name].pop(0) if self.codes.get(name) else 0
            if not code or name == "cuModuleLoadDataEx":
                function(*call)
            return code

        setattr(self, name, CFUNCTYPE(c_int, *argument_types)(called))

    def _give(self, handle: int) -> Callable[..., None]:
        def give(out: Any, *_: Any) -> None:
            out[0] = handle

        return give

    def _tell_version(self, out: Any) -> None:
        out[0] = self.version

    def _say(self, out: Any, text: bytes) -> None:
        self.said.append(text)  # who asked has only its address
        out[0] = text

    def _load(self, out: Any, image: bytes, num_options: int, options: Any, values: Any) -> None:
        self.loaded.append(image)
        out[0] = 0xAB
        if options[:num_options] == [5, 6]:
            ctypes.memmove(values[0], b"line 3: unknown opcode\0", 23)

    def _launch(self, function: int, *call: Any) -> None:
        *sizes, shared_bytes, stream, arguments, _extra = call
        slots = [ctypes.string_at(arguments[i], 8) for i in range(self.num_arguments)]
        self.launches.append(Launch(function, tuple(sizes[:3]), tuple(sizes[3:]), shared_bytes, stream or 0, slots))
