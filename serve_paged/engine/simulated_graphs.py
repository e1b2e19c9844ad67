"""CUDA graphs of a simulated device: what a capture saw is done again, operation by operation, over the same tensors.

As on a GPU, a replay runs none of the captured function's Python: kernels get the addresses, numbers and grids of the
capture, torch's operations its tensors. What a step computes on the host, and forgets to put where the graph reads it,
is therefore wrong here too. And all memory that the graph made itself is NaN when a replay begins.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from numba_kernels.cuda.launcher import Arguments
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher
from numba_kernels.cuda.target import Index3, Kernel
from serve_paged.engine.graphs import Replay

# Operations whose answer the host needs.
_WAITS = {"aten::item", "aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
_POISON = 0x7F  # as every byte: NaN of bfloat16, float16 and float32, and no index


class CapturedWait(RuntimeError):
    """The host waited for the device inside a capture."""


class CapturableLauncher(SimulatedLauncher):
    """A simulated device whose launches can be captured."""

    __slots__ = ("recorder",)

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.recorder: _Recorder | None = None  # None: nothing is being captured

    def launch(
        self, kernel: Kernel, grid: Index3, num_threads: int, args: Arguments, touching: tuple[Tensor, ...]
    ) -> None:
        """As in `SimulatedLauncher`."""

        def step() -> None:
            SimulatedLauncher.launch(self, kernel, grid, num_threads, args, touching)

        with _disable_current_modes():
            step()
        if self.recorder is not None:
            self.recorder.steps.append(step)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """As in `SimulatedLauncher`."""
        with _disable_current_modes():
            memory = super().empty(shape, dtype)
        if self.recorder is not None:
            self.recorder.made.append(memory)
        return memory

    def synchronize(self) -> None:
        """As in `SimulatedLauncher`. Raises `CapturedWait` inside a capture."""
        if self.recorder is not None:
            raise CapturedWait("synchronize")
        super().synchronize()


class SimulatedGraphs:
    """`Graphs` over a `CapturableLauncher`."""

    def __init__(self, launcher: CapturableLauncher) -> None:
        self._launcher = launcher

    def capture(self, run: Callable[[], None]) -> Replay:
        """As in `Graphs`. Raises `CapturedWait` if the host waits for the device."""
        run()
        recorder = _Recorder()
        self._launcher.recorder = recorder
        try:
            with recorder:
                run()
        finally:
            self._launcher.recorder = None

        def replay() -> None:
            for memory in recorder.made:
                _bytes(memory).fill_(_POISON)
            for step in recorder.steps:
                step()

        return replay


class _Recorder(TorchDispatchMode):
    """Notes torch's operations as they run, and the memory that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Callable[[], None]] = []
        self.made: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and looking into it imports the compiler, seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        if name in _WAITS:
            raise CapturedWait(name)
        result = func(*args, **kwargs)
        given = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        results = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        made = [x for x in results if _storage(x) not in given]
        self.made += made
        if func._schema.is_mutable:
            self.steps.append(lambda: func(*args, **kwargs))
        elif made and not name.startswith("aten::empty"):  # else it is a view, or memory that others fill
            self.steps.append(lambda: _put(results, func(*args, **kwargs)))
        return result


def _put(places: list[Tensor], again: Any) -> None:
    """What an operation gives this time, where it was when captured."""
    for place, found in zip(places, tree_leaves(again), strict=True):
        place.copy_(found)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _bytes(tensor: Tensor) -> Tensor:
    """All of the memory that a tensor looks into."""
    return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())
