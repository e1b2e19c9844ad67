"""Rows of logits and their sampling parameters: through the simulated kernel, the CPU's sampler, and float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from numba_kernels.cuda.sample import make_sample
from numba_kernels.cuda.sample_row import SampleVariant
from numba_kernels.cuda.target import Index3
from serve_paged.engine.truncation import Truncation, draw, draw_truncated

ELEMENTS = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass(frozen=True, slots=True)
class Choice:
    """What came out: one entry for each row."""

    token_ids: list[int]
    largest: torch.Tensor
    is_finite: list[bool]


@dataclass(frozen=True, slots=True)
class Rows:
    """Logits [S, vocab], and per row what the kernel takes; by default everything is kept."""

    logits: torch.Tensor
    temperature: Any
    top_k: Any = 0
    top_p: Any = 1.0
    min_p: Any = 0.0
    uniform: Any = 0.5
    num_threads: int = 64

    def column(self, name: str, dtype: Any) -> Any:
        """A parameter as [S]."""
        return np.array(np.broadcast_to(np.asarray(getattr(self, name), dtype), len(self.logits)))

    @property
    def log_min_p(self) -> Any:
        with np.errstate(divide="ignore"):
            return np.log(self.column("min_p", np.float64)).astype(np.float32)

    def run(self, *, make: Any = make_sample, seed: int = 0) -> Choice:
        """The kernel. Rows lie apart, with NaN between them; results are poisoned at first."""
        num_rows, vocab_size = self.logits.shape
        element = {dtype: name for name, dtype in ELEMENTS.items()}[self.logits.dtype]
        variant = SampleVariant(element, self.num_threads)
        apart = torch.full((num_rows, -(-vocab_size // 8) * 8 + 8), float("nan"), dtype=self.logits.dtype)
        apart[:, :vocab_size] = self.logits
        row_bytes = apart.element_size() * apart.shape[1]
        inputs = [
            apart.view(torch.uint8).numpy(), self.column("temperature", np.float32), self.column("top_k", np.int32),
            self.column("top_p", np.float32), self.log_min_p, self.column("uniform", np.float32),
        ]  # fmt: skip
        for array in inputs:
            array.flags.writeable = False
        ids, largest = np.full(num_rows, -7, np.int64), np.full(num_rows, np.nan, np.float32)
        finite = np.full(num_rows, 7, np.int32)
        # Here: a machine with a real GPU, where the rest is used too, may not have what the simulator needs.
        from numba_kernels.cuda.simulator import Simulator

        arrays = [*inputs, ids, largest, finite]
        Simulator(arrays, seed).launch(
            lambda target: make(variant, target), Index3(num_rows), variant.num_threads,
            *(int(array.ctypes.data) for array in arrays), row_bytes, vocab_size,
        )  # fmt: skip
        assert set(finite.tolist()) <= {0, 1}
        return Choice(ids.tolist(), torch.from_numpy(largest), [bool(x) for x in finite])

    def on_cpu(self) -> list[int]:
        """The tokens of `serve_paged.engine.truncation`, every row drawn, with the kernel's own parameters."""
        logits, vocab_size = self.logits.float(), self.logits.shape[1]
        best = logits.max(dim=-1).values
        temperature = torch.from_numpy(self.column("temperature", np.float32))
        top_k, top_p = self.column("top_k", np.int64), self.column("top_p", np.float32).astype(np.float64)
        uniform = torch.from_numpy(self.column("uniform", np.float32).astype(np.float64))
        if not ((top_k > 0) & (top_k < vocab_size)).any() and (top_p == 1).all() and np.isinf(self.log_min_p).all():
            return [int(x) for x in draw(logits.clone(), best, temperature, uniform)]
        top_k = np.where((top_k > 0) & (top_k < vocab_size), top_k, vocab_size)
        params = Truncation(
            temperature, torch.from_numpy(top_k), torch.from_numpy(top_p), torch.from_numpy(self.log_min_p)
        )
        return [int(x) for x in draw_truncated(logits, best, params, uniform)]

    def exact(self) -> list[list[int]]:
        """Of each row the tokens that may come out: by float64, within 2e-6 of the total around the uniform number."""
        return [self.exact_row(row) for row in range(len(self.logits))]

    def kept(self, row: int) -> Any:
        """Which tokens are left, by definition: sorts, and keeps equals together."""
        logits = self.logits[row].double().numpy()
        scaled = (logits - logits.max()) / np.float64(self.column("temperature", np.float32)[row])
        keep = np.ones(len(scaled), bool)
        top_k = int(self.column("top_k", np.int32)[row])
        if 0 < top_k < len(scaled):
            keep &= scaled >= np.sort(scaled)[-top_k]
        weights = np.exp(scaled)
        top_p = float(self.column("top_p", np.float32)[row])
        if top_p < 1:
            mass = weights[keep].sum()
            before = np.array([weights[scaled > s].sum() for s in scaled])
            keep &= before < max(top_p, 1e-300) * mass
        return keep & (scaled >= np.float64(self.log_min_p[row]))

    def exact_row(self, row: int) -> list[int]:
        """`exact` of one row."""
        logits = self.logits[row].double().numpy()
        weights = np.exp((logits - logits.max()) / np.float64(self.column("temperature", np.float32)[row]))
        weights[~self.kept(row)] = 0
        sums = np.cumsum(weights) / weights.sum()
        uniform = np.float64(self.column("uniform", np.float32)[row])
        first, last = (int(np.searchsorted(sums, u, side="right")) for u in (uniform - 2e-6, uniform + 2e-6))
        possible = np.arange(first, min(last, len(sums) - 1) + 1)
        return [int(i) for i in possible if weights[i] > 0] or [int(np.flatnonzero(weights)[-1])]
