"""Prints the predictions, the largest gap first: `python -m numba_kernels.cuda.performance --builds FOLDER`."""

import argparse
import dataclasses
import json
from pathlib import Path

from numba_kernels.cuda.build import build_all
from numba_kernels.cuda.catalog import catalog
from numba_kernels.cuda.performance.machine import Machine
from numba_kernels.cuda.performance.predict import Prediction, kernel_model, predict
from numba_kernels.cuda.performance.step import print_step
from numba_kernels.cuda.performance.workloads import (
    BATCHES,
    CONTEXTS,
    PREFILL_CHUNK,
    SHAPES,
    attention,
    between,
    copies,
    fits,
    prefill,
)

_ARCHITECTURE = "sm_90"
_HEAD = (
    "kernel",
    "model",
    "batch",
    "context",
    "MB",
    "limit us",
    "predicted us",
    "of limit",
    "bound",
    "rounds",
    "blocks/SM",
    "in flight KB/SM",
    "gap us/step",
)


def row(prediction: Prediction) -> tuple[str, ...]:
    """The cells of a prediction."""
    work = prediction.workload
    return (
        work.kernel.name,
        work.model,
        str(work.batch),
        str(work.context),
        f"{work.num_bytes / 1e6:.1f}",
        f"{prediction.limit_s * 1e6:.1f}",
        f"{prediction.time_s * 1e6:.1f}",
        f"{prediction.fraction:.0%}",
        prediction.bound,
        str(prediction.num_rounds),
        str(prediction.blocks_per_sm),
        f"{prediction.in_flight_per_sm / 1e3:.0f}",
        f"{prediction.gap_per_step_s * 1e6:.0f}",
    )


def as_json(prediction: Prediction) -> dict[str, object]:
    """All that is known of a prediction; times in seconds."""
    work = prediction.workload
    fields = {f.name: getattr(work, f.name) for f in dataclasses.fields(work)} | {"kernel": work.kernel.name}
    return fields | {
        "blocks_per_sm": prediction.blocks_per_sm,
        "num_rounds": prediction.num_rounds,
        "in_flight_per_sm": prediction.in_flight_per_sm,
        "limit_s": prediction.limit_s,
        "predicted_s": prediction.time_s,
        "bound": prediction.bound,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m numba_kernels.cuda.performance", description=__doc__)
    parser.add_argument("--builds", type=Path, required=True, metavar="FOLDER", help="keeps compiled kernels")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--model", choices=[shape.name for shape in SHAPES], help="only this one's")
    parser.add_argument("--rows", type=int, default=40)
    parser.add_argument("--bandwidth", type=float, default=Machine().bandwidth, help="bytes/s, as measured")
    parser.add_argument("--latency-s", type=float, default=Machine().latency_s)
    options = parser.parse_args()
    machine = Machine(bandwidth=options.bandwidth, latency_s=options.latency_s)
    builds = build_all(catalog, options.builds, (_ARCHITECTURE,))
    models = {name: kernel_model(made[_ARCHITECTURE], machine) for name, made in builds.items()}
    work = [
        w
        for shape in SHAPES
        for batch in BATCHES
        for context in CONTEXTS
        if fits(shape, batch, context, machine)
        for w in attention(shape, batch, context, machine)
    ]
    work += [w for shape in SHAPES for batch in BATCHES for w in between(shape, batch)]
    work += [prefill(shape, context) for shape in SHAPES for context in CONTEXTS if context > PREFILL_CHUNK]
    work += [copies(shape) for shape in SHAPES]
    predictions = [predict(w, models[w.kernel.name], machine) for w in work]
    predictions = [p for p in predictions if options.model in (None, p.workload.model)]
    predictions.sort(key=lambda p: -p.gap_per_step_s)
    print("Predicted, not measured. The largest gap in a step comes first.\n")
    print("| " + " | ".join(_HEAD) + " |\n" + "| --- " * len(_HEAD) + "|")
    for prediction in predictions[: options.rows]:
        print("| " + " | ".join(row(prediction)) + " |")
    print_step(SHAPES[0], 64, 1024, models, machine)
    if options.json:
        options.json.write_text(json.dumps([as_json(p) for p in predictions], indent=1) + "\n")


if __name__ == "__main__":
    main()
