"""A kernel that does nothing, to time launches with."""

import functools
from collections.abc import Callable

from numba_kernels.cuda.target import Kernel, Target

# As many as the product's largest kernel has, the rotation that writes the cache.
EMPTY_ARGUMENTS = ("int64",) * 20 + ("int32", "int32", "float32")


def make_empty(_target: Target) -> Callable[..., None]:
    """The kernel: any grid, up to 32 threads."""

    def empty(a, b, c, d, e, f, g, h, i, j, k, m, n, o, p, q, r, s, t, u, v, w, x):  # type: ignore[no-untyped-def]
        return

    return empty


@functools.cache
def empty_kernel() -> Kernel:
    """`make_empty` for the compiler."""
    return Kernel(make_empty, EMPTY_ARGUMENTS, 32, name="empty")
