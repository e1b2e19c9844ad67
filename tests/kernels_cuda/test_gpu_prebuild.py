"""What is compiled for a GPU elsewhere is all that the ladder launches there: its stages run, and nothing computed."""

import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.target import Kernel
from serve_paged.engine.simulated_graphs import CapturableLauncher, SimulatedGraphs
from tests.gpu import checks, sanitized, test_engine, test_operations
from tests.gpu.device import all_kernels


class NotingLauncher(CapturableLauncher):
    """Notes the names of kernels. Memory is all ones: valid tokens of finite logits."""

    __slots__ = ("launched",)

    def __init__(self) -> None:
        super().__init__()
        self.launched: set[str] = set()

    def launch(self, kernel: Kernel, *_: Any) -> None:
        self.launched.add(kernel.name)

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.ones(shape).to(dtype)


@pytest.fixture
def launcher(monkeypatch: pytest.MonkeyPatch) -> NotingLauncher:
    """The checks find everything wrong and go on; batches are as short as they can be."""
    launcher = NotingLauncher()
    for name, check in list(vars(checks).items()):
        if name.startswith("check_"):
            monkeypatch.setattr(checks, name, without_its_verdict(check))
    monkeypatch.setattr(checks, "assert_close", lambda *_: None)
    monkeypatch.setattr(checks, "random", lambda _, dtype, *shape: torch.zeros(shape, dtype=dtype))
    monkeypatch.setattr(test_engine, "CudaGraphs", lambda _: SimulatedGraphs(launcher))
    monkeypatch.setattr(test_engine, "cpu_engine", no_engine)
    return launcher


def without_its_verdict(check: Callable[..., None]) -> Callable[..., None]:
    def run(kernels: CudaKernels, *args: Any) -> None:
        with suppress(AssertionError):
            check(kernels, *(shortest(arg) if isinstance(arg, checks.AttentionCheck) else arg for arg in args))

    return run


def shortest(check: checks.AttentionCheck) -> checks.AttentionCheck:
    """Of each kind of sequence one."""
    return replace(check, sequences=tuple(sorted({(min(queries, 2), 2) for queries, _ in check.sequences})))


def no_engine(*_: Any, **__: Any) -> None:
    raise AssertionError("what a GPU says is compared with this")


def run_all(module: ModuleType, kernels: CudaKernels) -> int:
    """Its tests, with all of their parameters. Returns how many."""
    tests = [(test, given) for name, test in vars(module).items() if name[:5] == "test_" for given in parameters(test)]
    for test, given in tests:
        device = {name: kernels for name in inspect.signature(test).parameters if name.endswith("kernels")}
        with suppress(AssertionError):
            test(**device, **given)
    return len(tests)


def parameters(test: Any) -> Iterator[dict[str, Any]]:
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name == "parametrize"]
    for values in itertools.product(*(mark.args[1] for mark in marks)):
        yield {mark.args[0]: value for mark, value in zip(marks, values, strict=True)}


def test_of_the_sanitizer(launcher: NotingLauncher) -> None:
    sanitized.run(CudaKernels(launcher))
    assert {"rms-norm-f16-576-residual", "rope-kv-write-f16-e4m3-64-b16"} <= launcher.launched
    assert launcher.launched - set(all_kernels()) == set()


def test_of_the_operations(launcher: NotingLauncher) -> None:
    assert run_all(test_operations, CudaKernels(launcher)) > 90
    assert {"sample-f16-t32", "prefill-f16-e4m3-256-b16", "write-kv-96-b16"} <= launcher.launched
    assert launcher.launched - set(all_kernels()) == set()


def test_of_the_engine(launcher: NotingLauncher) -> None:
    assert run_all(test_engine, CudaKernels(launcher)) > 5
    assert {"rms-norm-bf16-128-residual", "sample-f32-t32", "decode-bf16-e4m3-64-b16"} <= launcher.launched
    assert launcher.launched - set(all_kernels()) == set()
