"""Whole blocks between the device and pinned host memory: which bytes go where.

A row is one KV block of all layers, 0.4 MB (SmolLM2-135M) to 4 MB (a 32B model): ten to a hundred microseconds over the
bus, where the call that asks for it takes a few. So each run of rows is one cuMemcpyAsync, and copies in batches gain
nothing.
"""

from torch import Tensor

from numba_kernels.cuda.driver import Copy


def row_copies(source: Tensor, destination: Tensor, pairs: list[tuple[int, int]]) -> list[Copy]:
    """The copies of rows source[i] -> destination[j] for (i, j) in `pairs`; rows that are neighbours on both sides,
    one after the other, go together.

    Both contiguous, rows of equal size. Raises ValueError for memory of the host that is not pinned: the driver would
    copy it in pieces through a buffer of its own, and wait.
    """
    for name, tensor in (("source", source), ("destination", destination)):
        if tensor.device.type == "cpu" and not tensor.is_pinned():
            raise ValueError(
                f"the {name} is in memory of the host that is not pinned: allocate it with pin_memory=True"
            )
    row_bytes = source.stride(0) * source.element_size()
    return [
        Copy(source.data_ptr() + i * row_bytes, destination.data_ptr() + j * row_bytes, count * row_bytes)
        for i, j, count in runs(pairs)
    ]


def runs(pairs: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(i, j, count): pairs (i, j), (i + 1, j + 1), ... in a row."""
    found: list[tuple[int, int, int]] = []
    for i, j in pairs:
        if found:
            first_i, first_j, count = found[-1]
            if (i, j) == (first_i + count, first_j + count):
                found[-1] = first_i, first_j, count + 1
                continue
        found.append((i, j, 1))
    return found
