"""Kernels as the compiler sees them: needs numba-cuda, but no GPU and no driver."""

import functools
import re

from numba import cuda, types

from numba_kernels.cuda import ptx
from numba_kernels.cuda.target import Kernel, Target

_PTX_VERSION = "8.1"  # of CUDA 12.1: the first with e4m3 conversions for compute capability 8.9


@functools.cache
def compiled_target() -> Target:
    """The names of a kernel that is to be compiled."""
    return Target(
        cuda=cuda,
        ptx=ptx,
        # Inlined as source: a device function of its own is compiled for the current GPU, and none need be there.
        device=cuda.jit(device=True, inline="always"),
        int32=types.int32,
        int64=types.int64,
        uint32=types.uint32,
        float32=types.float32,
    )


def compile_to_ptx(kernel: Kernel) -> str:
    """The kernel's PTX, for the oldest GPU that has its instructions and all later ones. Its symbol is `entry`."""
    signature = types.void(*(getattr(types, name) for name in kernel.argument_types))
    text, _ = cuda.compile_ptx(
        kernel.make(compiled_target()),
        signature,
        cc=kernel.min_compute_capability,
        fastmath=True,
        launch_bounds=(kernel.num_threads, kernel.min_blocks_per_sm),
    )
    return declare_version(name_symbols(text, kernel.entry))


def declare_version(ptx: str) -> str:
    """The same module as PTX of `_PTX_VERSION`: a driver refuses what says it is newer, whatever is in it.

    The compiler declares its own version, so that only drivers of CUDA 13 would take it. ptxas, in the compile gate,
    refuses instructions that the declared version does not have.
    """
    return re.sub(r"^\.version [\d.]+$", f".version {_PTX_VERSION}", ptx, count=1, flags=re.MULTILINE)


def name_symbols(ptx: str, entry: str) -> str:
    """The same module with `entry` in its symbols: Numba's count what was compiled before, or are the same in all."""
    (mangled,) = re.findall(r"\.visible \.entry (\w+)", ptx)
    unused = re.compile(r"^\.common \.global \.align 8 \.u64 _ZN08NumbaEnv\w+;\n", re.MULTILINE)
    return unused.sub("", ptx).replace(mangled, entry).replace("_cudapy_smem", f"{entry}_shared")
