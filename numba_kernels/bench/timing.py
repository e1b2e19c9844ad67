"""How long a step takes on a device: repeated over buffers that no cache can hold all of, medians."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

Step = Callable[[int], object]  # called with the number of the buffer to use
MAX_CALLS = 512  # in one graph
EAGER_CALLS = 8  # between two events


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds of one call."""

    median_s: float
    min_s: float
    num_samples: int
    how: str  # "graph": replays of a captured graph of many calls; "eager": calls from Python; "clock": on the CPU


class Timer(Protocol):
    """Times a step whose calls go round `num_buffers` buffers."""

    def __call__(self, step: Step, num_buffers: int, *, can_be_captured: bool = True) -> Timing:
        """Raises whatever the step raises."""


class ClockTimer:
    """By the CPU's clock: for a simulated device."""

    def __init__(self, num_samples: int = 3) -> None:
        self._num_samples = num_samples

    def __call__(self, step: Step, num_buffers: int, *, can_be_captured: bool = True) -> Timing:
        samples = []
        for i in range(self._num_samples):
            begin = time.perf_counter()
            step(i % num_buffers)
            samples.append(time.perf_counter() - begin)
        return Timing(statistics.median(samples), min(samples), len(samples), "clock")


class CudaTimer:
    """By CUDA events around replays of a graph of calls, one behind the other, each with the buffer used longest ago.

    In a graph the calls follow each other as they do in a captured decode step, and Python's time does not count. What
    cannot be captured is timed as several calls at once, so that Python runs ahead of the device if it can.
    """

    def __init__(self, budget_s: float = 0.1, min_samples: int = 11) -> None:
        self._budget_s, self._min_samples = budget_s, min_samples

    def __call__(self, step: Step, num_buffers: int, *, can_be_captured: bool = True) -> Timing:
        step(0)  # loads, compiles and allocates
        torch.cuda.synchronize()
        if can_be_captured:
            try:
                graph, num_calls = self._capture(step, num_buffers)
            except Exception:  # noqa: BLE001  (whatever forbids a capture: synchronising, launching elsewhere)
                torch.cuda.synchronize()
            else:
                return self._sample(lambda _: graph.replay(), num_calls, "graph")

        def several(sample: int) -> None:
            for i in range(EAGER_CALLS):
                step((sample * EAGER_CALLS + i) % num_buffers)

        return self._sample(several, EAGER_CALLS, "eager")

    def _capture(self, step: Step, num_buffers: int) -> tuple[torch.cuda.CUDAGraph, int]:
        num_calls = min(max(num_buffers, 4), MAX_CALLS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for i in range(num_calls):
                step(i % num_buffers)
        return graph, num_calls

    def _sample(self, run: Step, num_calls: int, how: str) -> Timing:
        run(0)
        torch.cuda.synchronize()
        samples: list[float] = []
        begin = time.perf_counter()
        while len(samples) < self._min_samples or time.perf_counter() - begin < self._budget_s:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            run(len(samples))
            last.record()
            last.synchronize()
            samples.append(first.elapsed_time(last) / 1e3 / num_calls)
        return Timing(statistics.median(samples), min(samples), len(samples), how)
