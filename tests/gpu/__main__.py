"""The whole GPU ladder, or some of its stages: `python -m tests.gpu [--stage NAME ...]` (`make gpu`)."""

import argparse
import datetime
import os
import re
import sys
from pathlib import Path

from tests.gpu.ladder import run_ladder
from tests.gpu.stages import all_stages

ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Runs from the repository's root. Returns 1 if a stage did not pass, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--stage", action="append", metavar="NAME", help="only this one; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the stages and end")
    parser.add_argument("--quick", action="store_true", help="fewer shapes, shorter traces")
    parser.add_argument("--results", type=Path, help="default: numba_kernels/results/GPU-DATE")
    options = parser.parse_args(arguments)
    names = [stage.name for stage in all_stages(Path())]
    if options.list:
        print("\n".join(f"{stage.name:12} {stage.about}" for stage in all_stages(Path())))
        return 0
    unknown = set(options.stage or ()) - set(names)
    if unknown:
        parser.error(f"no stage is called {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    missing = why_no_gpu()
    if missing is not None:
        print(f"the GPU ladder needs a GPU: {missing}", file=sys.stderr)
        return 2
    return climb(options.results or default_results(), options.stage or names, quick=options.quick)


def why_no_gpu() -> str | None:
    """One line, or None where there is a GPU."""
    try:
        import torch  # here, so that --list needs nothing
    except ModuleNotFoundError:
        return f"{sys.executable} has no torch (GPU_PYTHON names another python)"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else f"torch {torch.__version__} sees none on this machine"


def climb(results: Path, wanted: list[str], *, quick: bool) -> int:
    """Run the stages that are wanted, in the ladder's order; the summary comes last."""
    from numba_kernels.bench.environment import environment
    from tests.gpu.targets import write_summary

    results = Path(os.path.relpath(results))  # it is written down, as part of commands
    stages = [stage for stage in all_stages(results, quick=quick) if stage.name in wanted]
    found = run_ladder(stages, results, environment(), lambda line: print(line, flush=True))
    print(write_summary(results))
    return 0 if all(result.status == "passed" for result in found.values()) else 1


def default_results() -> Path:
    """One folder for a GPU and a day: stages run one by one end up together."""
    import torch

    gpu = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(0).lower()).strip("-")
    return ROOT / "numba_kernels" / "results" / f"{gpu}-{datetime.datetime.now(datetime.UTC).date()}"


if __name__ == "__main__":
    sys.exit(main())
