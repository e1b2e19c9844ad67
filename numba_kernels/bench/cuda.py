"""Every operation of a CUDA device: first whether it is right, then how fast, beside whoever else can do it."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from numba_kernels.bench import attention_case
from numba_kernels.bench.ceilings import measure_ceilings
from numba_kernels.bench.figures import Figure, Findings
from numba_kernels.bench.operations import Operation, copies, operations
from numba_kernels.bench.shapes import AttentionCase, Extent, attention_cases
from numba_kernels.bench.timing import Step, Timer, Timing
from numba_kernels.cuda.kernels import CudaKernels

# Relative error, Euclidean, against float32: 16-bit results are off by 2^-9 (bfloat16) or 2^-12 at most, and the
# weights of keys are rounded to 16 bits before they are multiplied with V.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 8e-4}


@dataclass(frozen=True, slots=True)
class Bench:
    """What is needed to measure."""

    kernels: CudaKernels
    timer: Timer
    dtype: torch.dtype
    min_bytes: int  # of buffers that calls go round: several times the L2 cache

    def run(self, extent: Extent, budget_s: float, show: Callable[[Figure], None]) -> Findings:
        """Measure until all is done or the time is up; each figure is shown as it comes."""
        begin = time.monotonic()
        findings = Findings(measure_ceilings(self.kernels.device, self.timer, max(self.min_bytes, 1 << 20)))
        for name, measure in self._jobs(extent, findings):
            if time.monotonic() - begin > budget_s:
                findings.not_run.append(name)
                continue
            figure = measure()
            findings.figures.append(figure)
            show(figure)
        return findings

    def _jobs(self, extent: Extent, findings: Findings) -> Iterator[tuple[str, Callable[[], Figure]]]:
        ceilings = findings.ceilings
        cases = attention_cases(extent)
        for copy in copies(self.kernels, extent.models, self.dtype, self.min_bytes, ceilings):
            yield copy.name, lambda copy=copy: self.operation(copy)  # type: ignore[misc]
        for model in extent.models:
            for operation in operations(self.kernels, model, extent.rows, self.dtype, self.min_bytes, ceilings):
                yield operation.name, lambda operation=operation: self.operation(operation)  # type: ignore[misc]
        for case in cases:
            name = f"{case.model.name} {case.name}"
            yield name, lambda case=case: self.attention(case, ceilings.device_copy)  # type: ignore[misc]

    def attention(self, case: AttentionCase, ceiling: float) -> Figure:
        """Compare with SDPA in float32, then time."""
        device = self.kernels.device
        data = attention_case.make_attention_data(case, device, self.dtype, min_bytes=self.min_bytes)
        step, out = attention_case.ours(data, self.kernels)
        step(data.num_layers - 1)
        self.kernels.synchronize()
        error = _relative_error(data, data.num_layers - 1, out)
        is_right = error < TOLERANCE[self.dtype]
        rivals: dict[str, Timing | str] = {}
        if is_right:
            for name, make in attention_case.RIVALS.items():
                rivals[name] = self._attempt(
                    lambda make=make: self.timer(make(data, self.kernels), data.num_layers)  # type: ignore[misc]
                )
        return Figure(
            operation="prefill" if case.num_queries > 1 else "decode",
            model=case.model.name,
            case=case.name,
            num_bytes=case.num_bytes,
            num_flops=case.num_flops,
            ceiling=ceiling,
            error=error,
            is_right=is_right,
            ours=self.timer(step, data.num_layers) if is_right else None,
            rivals=rivals,
        )

    def operation(self, operation: Operation) -> Figure:
        """The same of an operation that is no attention."""
        error = operation.error()
        is_right = error <= operation.tolerance
        return Figure(
            operation=operation.kind,
            model=operation.model,
            case=operation.case,
            num_bytes=operation.num_bytes,
            num_flops=0,
            ceiling=operation.ceiling,
            error=error,
            is_right=is_right,
            ours=self._time(operation.ours, operation) if is_right else None,
            rivals={
                name: self._attempt(lambda theirs=theirs: self._time(theirs, operation))  # type: ignore[misc]
                for name, theirs in operation.rivals.items()
                if is_right
            },
        )

    def _time(self, step: Step, operation: Operation) -> Timing:
        return self.timer(step, operation.num_buffers, can_be_captured=operation.can_be_captured)

    def _attempt(self, measure: Callable[[], Timing]) -> Timing | str:
        """A rival that does not run here is part of the result."""
        try:
            return measure()
        except Exception as failure:  # noqa: BLE001  (their code may raise anything)
            return f"{type(failure).__name__}: {failure}"


def _relative_error(data: attention_case.AttentionData, layer: int, out: Tensor) -> float:
    """Of all sequences, one after another: there need not be room for all keys in float32. NaN if anything is NaN."""
    k, v = data.gather(layer)
    difference = size = 0.0
    for s in range(data.case.num_seqs):
        one = attention_case.one_sequence(data, s)
        wide = (x[s : s + 1].float().repeat_interleave(data.case.model.group_size, dim=1) for x in (k, v))
        exact = one.rows(one.sdpa(*wide))
        difference += float((data.rows_of(out, s).float() - exact).square().sum())
        size += float(exact.square().sum())
    return math.sqrt(difference / size) if size else math.nan
