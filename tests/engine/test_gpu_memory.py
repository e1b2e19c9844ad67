"""KV blocks get what weights, the largest step and graphs leave of the GPU's memory."""

from collections.abc import Callable

import pytest

from serve_paged.engine.gpu_memory import bytes_for_blocks
from serve_paged.engine.kv_cache import GIB


class FakeGauge:
    """A GPU of 80 GiB: 16 of weights, and others that take 1."""

    def __init__(self) -> None:
        self.weights = 16 * GIB
        self.allocated = self.weights

    def total(self) -> int:
        return 80 * GIB

    def used_by_others(self) -> int:
        return GIB

    def peak_of(self, run: Callable[[], None]) -> int:
        self.allocated = self.weights
        run()
        return self.allocated

    def allocating(self, num_bytes: int) -> Callable[[], None]:
        def run() -> None:
            self.allocated += num_bytes

        return run


def test_what_is_left_is_for_blocks() -> None:
    gauge = FakeGauge()
    room = bytes_for_blocks(gauge, 0.5, largest_step=gauge.allocating(3 * GIB), largest_graph=gauge.allocating(2 * GIB))
    assert room == (40 - 1 - 16 - 3 - 2) * GIB


def test_a_gpu_without_room_is_refused_with_what_takes_it() -> None:
    gauge = FakeGauge()
    with pytest.raises(
        ValueError, match=r"20% of 80\.0 GiB: weights 16\.0, the largest step 3\.0, .* others 1\.0; lower"
    ):
        bytes_for_blocks(gauge, 0.2, largest_step=gauge.allocating(3 * GIB), largest_graph=gauge.allocating(0))
