"""How much of a GPU's memory is left for KV blocks once weights and the largest step have theirs."""

from collections.abc import Callable
from typing import Protocol

import torch

from serve_paged.engine.kv_cache import GIB


class MemoryGauge(Protocol):
    """A GPU's memory in bytes."""

    def total(self) -> int:
        """All of it."""

    def used_by_others(self) -> int:
        """What is taken, but not by torch: the driver's context, loaded kernels, other processes."""

    def peak_of(self, run: Callable[[], None]) -> int:
        """The most that torch's tensors take together, those that are there already included, while `run` runs."""


class TorchGauge:
    """`MemoryGauge` of the GPU that torch calls `device`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def total(self) -> int:
        """As in `MemoryGauge`."""
        return int(torch.cuda.mem_get_info(self._device)[1])

    def used_by_others(self) -> int:
        """As in `MemoryGauge`."""
        free, total = torch.cuda.mem_get_info(self._device)
        return int(total - free - torch.cuda.memory_reserved(self._device))

    def peak_of(self, run: Callable[[], None]) -> int:
        """As in `MemoryGauge`. What torch had reserved for it goes back to the GPU."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        run()
        torch.cuda.synchronize(self._device)
        peak = int(torch.cuda.max_memory_allocated(self._device))
        torch.cuda.empty_cache()
        return peak


def bytes_for_blocks(
    gauge: MemoryGauge,
    utilization: float,
    *,
    largest_step: Callable[[], None],
    largest_graph: Callable[[], None],
) -> int:
    """What KV blocks may take of the share `utilization` of the GPU. Raises `ValueError` if that is nothing.

    Graphs keep their memory apart from that of other steps, and all of them share what the largest needs.
    """
    weights = gauge.peak_of(lambda: None)
    step = gauge.peak_of(largest_step) - weights
    graph = gauge.peak_of(largest_graph) - weights
    others = gauge.used_by_others()
    room = int(gauge.total() * utilization) - others - weights - step - graph
    if room <= 0:
        parts = {"weights": weights, "the largest step": step, "graphs": graph, "others": others}
        taken = ", ".join(f"{name} {num_bytes / GIB:.1f}" for name, num_bytes in parts.items())
        raise ValueError(
            f"no room for KV blocks in {utilization:.0%} of {gauge.total() / GIB:.1f} GiB: {taken}; lower "
            "max_num_batched_tokens or max_num_seqs, or raise gpu_memory_utilization"
        )
    return room
