"""Our engine and its rivals over one trace, one after another in one process: figures, ratios, equal answers."""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serve_paged.bench.ours import EngineRun, run_bench
from serve_paged.bench.rivals import Limits, RivalRun, run_rival
from serve_paged.bench.trace import TraceRequest
from serve_paged.engine.engine import Engine


@dataclass(frozen=True, slots=True)
class Comparison:
    """The engine's run and the rivals', in the order they ran."""

    ours: EngineRun
    rivals: list[RivalRun]

    def as_dict(self) -> dict[str, object]:
        """The engine's figures, and under "vs" each rival's: plain data, for JSON."""
        figures = self.ours.result.as_dict()
        return figures | {"vs": [self._describe(rival) for rival in self.rivals]} if self.rivals else figures

    def ratio(self, rival: RivalRun) -> float | None:
        """Our output tokens per second over the rival's; None if it answered nothing."""
        rate = rival.output_tokens_per_s
        return None if rate is None else self.ours.result.output_tokens_per_s / rate

    def num_identical(self, rival: RivalRun) -> int:
        """Requests that both answered with the same tokens."""
        return sum(self.ours.outputs[index] == tokens for index, tokens in rival.outputs.items())

    def _describe(self, rival: RivalRun) -> dict[str, object]:
        return {
            "name": rival.name,
            "settings": rival.settings,
            "num_requests": len(rival.outputs),
            "num_output_tokens": rival.num_output_tokens,
            "elapsed_s": rival.elapsed_s,
            "output_tokens_per_s": rival.output_tokens_per_s,
            "ratio": self.ratio(rival),
            "num_identical": self.num_identical(rival),
            "error": rival.error,
        }


def compare(
    make_engine: Callable[[], Engine],
    make_trace: Callable[[Engine], list[TraceRequest]],
    make_rival: Callable[[], Any],
    rivals: list[str],
    limits: Limits,
    *,
    show_progress: bool = False,
) -> Comparison:
    """Run a trace through our engine, then through each rival, with one model in memory at a time.

    Raises `InvalidRequest` if the engine cannot take the trace. A rival that fails is noted, not raised.
    """
    engine = make_engine()
    trace = make_trace(engine)
    ours = run_bench(engine, trace, show_progress=show_progress)
    del engine
    _free_memory()
    found: list[RivalRun] = []
    for name in rivals:
        model = make_rival()
        found.append(run_rival(name, model, trace, limits, show_progress=show_progress))
        del model
        _free_memory()
    return Comparison(ours, found)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
