"""CUDA's driver API by ctypes: only what launching kernels and copying rows needs.

Nothing here is called before torch has made the device's context: torch and the kernels share it.
"""

import ctypes
from ctypes import POINTER, byref, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any

_SHARED_BYTES_WITHOUT_ASKING = 48 * 1024
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
_ERROR_LOG_BUFFER, _ERROR_LOG_BUFFER_SIZE_BYTES = 5, 6  # CU_JIT_...
_LOG_BYTES = 8192
INVALID_CONTEXT = 201
_UNSUPPORTED_PTX_VERSION = 222

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuCtxGetCurrent": (POINTER(c_void_p),),
    "cuCtxSetCurrent": (c_void_p,),
    "cuDriverGetVersion": (POINTER(c_int),),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
    "cuGetErrorString": (c_int, POINTER(c_char_p)),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, c_void_p, c_void_p),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuModuleGetFunction": (POINTER(c_void_p), c_void_p, c_char_p),
    "cuModuleLoadDataEx": (POINTER(c_void_p), c_char_p, c_uint, POINTER(c_int), POINTER(c_void_p)),
}


class CudaError(RuntimeError):
    """The driver refused something; says what, with the driver's own name and words for it."""


@dataclass(frozen=True, slots=True)
class Copy:
    """So many bytes from one address to another."""

    source: int
    destination: int
    num_bytes: int


def load_driver() -> "Driver":
    """The machine's own. Raises CudaError where there is none."""
    try:
        return Driver(ctypes.CDLL("libcuda.so.1"))
    except OSError as error:
        raise CudaError(f"no CUDA driver on this machine: {error}") from None


class Driver:
    """The driver API of `library`: libcuda, or anything with functions of the same names and signatures."""

    def __init__(self, library: Any) -> None:
        self._library = library
        for name, argument_types in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes, function.restype = argument_types, c_int
        self.launch_address = int(ctypes.cast(library.cuLaunchKernel, c_void_p).value or 0)

    def version(self) -> tuple[int, int]:
        """The newest CUDA that the driver knows, such as (13, 0)."""
        version = c_int()
        self.check(self._library.cuDriverGetVersion(byref(version)), "asking for the driver's version")
        return version.value // 1000, version.value % 1000 // 10

    def current_context(self) -> int:
        """This thread's. Raises CudaError if it has none."""
        context = c_void_p()
        self.check(self._library.cuCtxGetCurrent(byref(context)), "asking for the context")
        if not context.value:
            raise CudaError("this thread has no CUDA context: torch has to make it first")
        return context.value

    def set_current_context(self, context: int) -> None:
        """For this thread."""
        self.check(self._library.cuCtxSetCurrent(context), "setting the context")

    def load_function(self, image: bytes, entry: str, dynamic_shared_bytes: int) -> int:
        """Load PTX (0-terminated) or machine code into the current context; the handle of its kernel `entry`.

        The module stays until the process ends. Raises CudaError with the compiler's own words where it has any.
        """
        module, function = c_void_p(), c_void_p()
        log = (c_char * _LOG_BYTES)()
        options = (c_int * 2)(_ERROR_LOG_BUFFER, _ERROR_LOG_BUFFER_SIZE_BYTES)
        values = (c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
        code = self._library.cuModuleLoadDataEx(byref(module), image, 2, options, values)
        if code:
            said = log.value.decode(errors="replace").strip()
            raise CudaError(f"{self.describe(code, f'loading {entry}')}{self._advice(code)}\n{said}".rstrip())
        code = self._library.cuModuleGetFunction(byref(function), module, entry.encode())
        self.check(code, f"looking for {entry} in its module")
        if dynamic_shared_bytes > _SHARED_BYTES_WITHOUT_ASKING:
            code = self._library.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic_shared_bytes)
            self.check(code, f"asking for {dynamic_shared_bytes} bytes of shared memory for {entry}")
        if hasattr(self._library, "cuFuncLoad"):  # CUDA 12.4: modules load lazily, and a first launch may be captured
            self.check(self._library.cuFuncLoad(function), f"finishing to load {entry}")
        return int(function.value or 0)

    def copy(self, copies: list[Copy], stream: int) -> None:
        """Ask for copies on a stream, one after the other."""
        for copy in copies:
            code = self._library.cuMemcpyAsync(copy.destination, copy.source, copy.num_bytes, stream)
            self.check(code, f"copying {copy.num_bytes} bytes")

    def check(self, code: int, doing: str) -> None:
        """Raises CudaError unless `code` is success."""
        if code:
            raise CudaError(self.describe(code, doing))

    def describe(self, code: int, doing: str) -> str:
        """An error in the driver's words."""
        name, meaning = c_char_p(), c_char_p()
        self._library.cuGetErrorName(code, byref(name))
        self._library.cuGetErrorString(code, byref(meaning))
        words = [(text.value or b"?").decode() for text in (name, meaning)]
        return f"{doing}: {words[0]} ({code}), {words[1]}"

    def _advice(self, code: int) -> str:
        if code != _UNSUPPORTED_PTX_VERSION:
            return ""
        version = ".".join(map(str, self.version()))
        return (
            f". The driver knows CUDA {version} and the kernels were compiled by a newer one: update the driver, or "
            "load machine code (python -m numba_kernels.cuda.prebuild --arch, for this GPU's architecture)"
        )
