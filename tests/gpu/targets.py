"""What was promised of an H100, and what the results in a folder say of it: met, missed or not run."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.gpu.ladder import read_ladder
from tests.gpu.stages import (
    DECODE_BATCH,
    DECODE_INPUT,
    DECODE_JSON,
    DECODE_OUTPUT,
    DECODE_SHAPE,
    KERNELS_JSON,
    LAUNCH_JSON,
    TRACE_JSON,
)

LARGE_KV_BYTES = 64e6
_CORRECTNESS = ("kernels", "conformance", "operations", "memcheck", "racecheck", "synccheck", "graphs", "engine")


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target."""

    name: str
    status: str  # "met", "missed", "not run"
    measured: str

    def line(self) -> str:
        return f"{self.status:8} {self.name}: {self.measured}"


def verdicts(results: Path) -> list[Verdict]:
    """All targets, whatever of them was run."""
    stages = read_ladder(results)
    found = []
    for name in _CORRECTNESS:
        stage = stages.get(name)
        status = "not run" if stage is None or stage.status == "missing" else "missed"
        status = "met" if stage is not None and stage.status == "passed" else status
        found.append(Verdict(f"{name} passes", status, "-" if stage is None else stage.status))
    kernels, launch, step = (_read(results / name) for name in (KERNELS_JSON, LAUNCH_JSON, DECODE_JSON))
    found += [
        _at_least("decode, share of the copy bandwidth at 64 MB of KV and more", 0.85, _shares(kernels, _large_decode)),
        _at_least("decode, FlashInfer's time over ours", 0.95, _speedups(kernels, "flashinfer", _large_decode)),
        _at_least("prefill, FlashInfer's time over ours", 0.60, _speedups(kernels, "flashinfer", _is("prefill"))),
        _at_least("copy_blocks, share of the copy bandwidth", 0.90, _shares(kernels, _is("copy_blocks"))),
        _at_least("swap, share of the memcpy rate", 0.90, _shares(kernels, _is("swap out", "swap in"))),
        _at_most("a launch above a bare one, us", 2.0, [] if launch is None else [launch["above_bare_us"]]),
        _at_least("decode step of an 8B model, share of the byte limit", 0.75, _step_shares(step, kernels)),
    ]
    for shape, file in TRACE_JSON.items():
        trace = _read(results / file)
        found.append(_at_least(f"{shape}, times generate one by one", 24.0, _ratios(trace, "generate-one")))
        found.append(_at_least(f"{shape}, times static batches", 4.0, _ratios(trace, "generate-static")))
    return found


def write_summary(results: Path) -> str:
    """The verdicts as text; as JSON in the folder, too."""
    found = verdicts(results)
    (results / "targets.json").write_text(json.dumps([asdict(verdict) for verdict in found], indent=1) + "\n")
    counts = {status: sum(v.status == status for v in found) for status in ("met", "missed", "not run")}
    lines = [verdict.line() for verdict in found]
    return "\n".join((*lines, ", ".join(f"{count} {status}" for status, count in counts.items()) + f"; {results}"))


def _read(file: Path) -> Any:
    return json.loads(file.read_text()) if file.is_file() else None


def _at_least(name: str, bound: float, values: list[float]) -> Verdict:
    return _verdict(f"{name} >= {bound:g}", values, bool(values) and min(values) >= bound)


def _at_most(name: str, bound: float, values: list[float]) -> Verdict:
    return _verdict(f"{name} <= {bound:g}", values, bool(values) and max(values) <= bound)


def _verdict(name: str, values: list[float], is_met: bool) -> Verdict:
    if not values:
        return Verdict(name, "not run", "-")
    figures = f"{statistics.median(values):.3g}"
    if len(values) > 1:
        figures += f" (median of {len(values)}; {min(values):.3g} to {max(values):.3g})"
    return Verdict(name, "met" if is_met else "missed", figures)


Chosen = Callable[[Any], bool]


def _is(*operations: str) -> Chosen:
    return lambda figure: figure["operation"] in operations


def _large_decode(figure: Any) -> bool:
    return figure["operation"] == "decode" and figure["num_bytes"] >= LARGE_KV_BYTES


def _shares(kernels: Any, chosen: Chosen) -> list[float]:
    figures = [] if kernels is None else [figure for figure in kernels["figures"] if chosen(figure)]
    return [figure["share_of_ceiling"] or 0.0 for figure in figures]  # what is wrong has no time


def _speedups(kernels: Any, rival: str, chosen: Chosen) -> list[float]:
    figures = [] if kernels is None else [figure for figure in kernels["figures"] if chosen(figure)]
    found = [figure["speedups"].get(rival) for figure in figures]
    return [ratio for ratio in found if ratio is not None]


def _ratios(trace: Any, rival: str) -> list[float]:
    rivals = [] if trace is None else trace.get("vs", [])
    return [entry["ratio"] for entry in rivals if entry["name"] == rival and entry["ratio"] is not None]


def _step_shares(step: Any, kernels: Any) -> list[float]:
    """Bytes of weights and KV over the copy bandwidth of the same ladder, over the median time between tokens."""
    if step is None or kernels is None:
        return []
    seconds = step["itl_ms"]["p50"] / 1e3
    return [decode_step_bytes() / kernels["ceilings"]["device_copy"] / seconds]


def decode_step_bytes() -> float:
    """That a decode step of the measured shape must read: every weight but the embedding's rows, and the KV cache."""
    from serve_paged.model.named_shapes import named_config
    from serve_paged.model.weights import weight_shapes

    config = named_config(DECODE_SHAPE)
    shapes = weight_shapes(config)
    if not config.tie_word_embeddings:
        del shapes["model.embed_tokens.weight"]
    weights = sum(math.prod(shape) for shape in shapes.values())
    context = DECODE_INPUT + DECODE_OUTPUT / 2
    cached = DECODE_BATCH * context * config.num_layers * 2 * config.num_kv_heads * config.head_dim
    return 2.0 * (weights + cached)
