"""Kernels as the compiler sees them: needs numba-cuda, but no GPU and no driver."""

import functools
import re

from numba import cuda, types

from numba_kernels.cuda import ptx
from numba_kernels.cuda.target import Kernel, Target


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
    (mangled,) = re.findall(r"\.visible \.entry (\w+)", text)  # it counts what was compiled before: not the same twice
    return str(text).replace(mangled, kernel.entry)
