"""The rungs of the GPU ladder, from what is there to how fast it is. Each fits into ten minutes."""

import sys
from pathlib import Path

from tests.gpu.ladder import Stage

PYTHON = sys.executable
PYTEST = (PYTHON, "-m", "pytest", "-q", "-W", "default", "-p", "no:cacheprovider", "-m", "gpu")
SANITIZED = (PYTHON, "-m", "tests.gpu.sanitized")
KERNELS_JSON, LAUNCH_JSON, DECODE_JSON = "kernels.json", "launch.json", "decode-step.json"
TRACE_JSON = {"llama-3.1-8b": "trace-8b.json", "llama-3.2-1b": "trace-1b.json"}
DECODE_SHAPE, DECODE_BATCH, DECODE_INPUT, DECODE_OUTPUT = "llama-3.1-8b", 64, 960, 128  # a context of 1024 on average


def all_stages(results: Path, *, quick: bool = False) -> list[Stage]:
    """In order. `quick`: fewer shapes and shorter traces, the whole ladder in about 15 minutes."""
    return [
        Stage("environment", "what this machine is and has", (PYTHON, "-m", "tests.gpu.environment"), 120),
        Stage("kernels", "every kernel is loaded by the driver", (PYTHON, "-m", "tests.gpu.load"), 540),
        Stage("conformance", "instructions against their twins", (*PYTEST, "tests/gpu/test_conformance.py"), 300),
        Stage("operations", "operations against float64", (*PYTEST, "tests/gpu/test_operations.py"), 540),
        *(_sanitizer(tool) for tool in ("memcheck", "racecheck", "synccheck")),
        Stage("graphs", "replays equal eager, to the bit", (*PYTEST, "tests/gpu/test_graphs.py"), 300),
        Stage(
            "engine", "the engine against the CPU's kernels", (*PYTEST, "tests/gpu/test_engine.py"), 300
        ),
        Stage(
            "launch", "what a launch costs", (PYTHON, "-m", "tests.gpu.launch_cost"), 120, json_output=LAUNCH_JSON
        ),
        _kernel_timings(results, quick),
        _decode_step(),
        *(_trace(shape, quick) for shape in TRACE_JSON),
    ]  # fmt: skip


def _sanitizer(tool: str) -> Stage:
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *SANITIZED)
    # torch's own allocator would hide an overrun inside its pool.
    environ = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Stage(tool, f"compute-sanitizer's {tool} over every operation", command, 540, environ)


def _kernel_timings(results: Path, quick: bool) -> Stage:
    how = ("--quick",) if quick else ("--budget-s", "450")
    command = (PYTHON, "-m", "numba_kernels.bench", "--device", "cuda", *how, "--json", str(results / KERNELS_JSON))
    return Stage("timings", "every operation beside torch, Triton and FlashInfer", command, 560, json_file=KERNELS_JSON)


def _bench(shape: str, *options: str) -> tuple[str, ...]:
    where = ("--device", "cuda", "--dtype", "bfloat16", "--max-model-len", "2048", "--json")
    return (PYTHON, "-m", "serve_paged", "bench", "--random-weights", shape, *where, *options)


def _decode_step() -> Stage:
    lengths = ("--input-len", str(DECODE_INPUT), "--output-len", str(DECODE_OUTPUT))
    batch = ("--num-requests", str(DECODE_BATCH), "--max-num-seqs", str(DECODE_BATCH))
    command = _bench(DECODE_SHAPE, *batch, *lengths, "--max-num-batched-tokens", "4096")
    return Stage("decode-step", "64 sequences of an 8B model", command, 300, json_output=DECODE_JSON)


def _trace(shape: str, quick: bool) -> Stage:
    size = ("--num-requests", "128" if quick else "512", "--max-num-seqs", "256", "--max-num-batched-tokens", "4096")
    rivals = ("--vs", "transformers", "--vs-limit-s", "30" if quick else "90", "--static-batch-size", "32")
    command = _bench(shape, "--lengths", "sharegpt", *size, *rivals)
    json_output = TRACE_JSON[shape]
    return Stage(
        json_output.removesuffix(".json"), f"{shape} beside transformers", command, 560, json_output=json_output
    )
