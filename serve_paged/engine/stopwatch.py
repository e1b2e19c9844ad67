"""How long a device worked on something, measured without waiting for it."""

import time

import torch


class Stopwatch:
    """Starts when made. On the CPU launching is doing; on a GPU two events on the current stream take the time."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._start = self._mark()
        self._end: float | torch.cuda.Event | None = None

    def stop(self) -> None:
        """What was launched since the start is what is measured."""
        self._end = self._mark()

    def is_over(self) -> bool:
        """Whether the stop is reached. Waits for nothing."""
        return self._end.query() if isinstance(self._end, torch.cuda.Event) else self._end is not None

    def seconds(self) -> float:
        """Between start and stop; on a GPU only once it is known, by whatever came later, that the stop is reached."""
        start, end = self._start, self._end
        if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            return start.elapsed_time(end) / 1000
        assert isinstance(start, float)
        assert isinstance(end, float), "it was not stopped"
        return end - start

    def _mark(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
