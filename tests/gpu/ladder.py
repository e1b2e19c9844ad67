"""Runs stages one after another, each in a process of its own with a limit of time, and writes down what became of it.

Knows nothing of GPUs: a stage is a command.
"""

import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

LADDER = "ladder.json"
_LAST_LINES = 20  # of a failed stage's log, shown


@dataclass(frozen=True, slots=True)
class Stage:
    """One rung."""

    name: str
    about: str
    command: tuple[str, ...]
    limit_s: float
    environ: Mapping[str, str] = field(default_factory=dict)  # beside the ladder's own
    json_output: str | None = None  # the file in the results folder that its standard output is written to
    json_file: str | None = None  # or that the command writes itself


@dataclass(frozen=True, slots=True)
class StageResult:
    """What became of a stage."""

    status: str  # "passed", "failed", "timed out", "missing" (its program is not installed)
    seconds: float
    return_code: int | None
    command: tuple[str, ...]
    date: str


def run_ladder(
    stages: list[Stage], results: Path, environment: dict[str, object], say: Callable[[str], None] = print
) -> dict[str, StageResult]:
    """Run every stage, whatever became of those before; what this folder holds of others is kept."""
    results.mkdir(parents=True, exist_ok=True)
    found: dict[str, StageResult] = {}
    for number, stage in enumerate(stages, start=1):
        say(f"[{number}/{len(stages)}] {stage.name}: {stage.about} (at most {stage.limit_s:.0f} s)")
        found[stage.name] = run_stage(stage, results)
        _write_down(results, found, environment)
        result = found[stage.name]
        say(f"      {result.status} after {result.seconds:.0f} s")
        if result.status != "passed":
            say(_last_lines(results / f"{stage.name}.log"))
    return found


def run_stage(stage: Stage, results: Path) -> StageResult:
    """Run one; all that it says goes to NAME.log, or standard output to its JSON file if it passes."""
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    begin = time.monotonic()

    def result(status: str, return_code: int | None) -> StageResult:
        command = tuple("python" if word == sys.executable else word for word in stage.command)
        return StageResult(status, time.monotonic() - begin, return_code, command, date)

    log_file, output = results / f"{stage.name}.log", results / f"{stage.name}.out"
    for name in filter(None, (stage.json_output, stage.json_file)):
        (results / name).unlink(missing_ok=True)  # no target is judged by an earlier run's figures
    if shutil.which(stage.command[0]) is None:
        log_file.write_text(f"{stage.command[0]} is not installed\n")
        return result("missing", None)
    with log_file.open("w") as log, ExitStack() as stack:
        out = stack.enter_context(output.open("w")) if stage.json_output else log
        process = subprocess.Popen(
            stage.command, stdout=out, stderr=log, env=os.environ | dict(stage.environ), start_new_session=True
        )
        try:
            code = process.wait(stage.limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it may have started others
            process.wait()
            return result("timed out", None)
        finally:
            if process.poll() is None:  # interrupted
                os.killpg(process.pid, signal.SIGKILL)
    if stage.json_output and code == 0:
        output.replace(results / stage.json_output)
    return result("passed" if code == 0 else "failed", code)


def read_ladder(results: Path) -> dict[str, StageResult]:
    """The stages that this folder knows of."""
    file = results / LADDER
    stages = json.loads(file.read_text())["stages"] if file.is_file() else {}
    return {name: StageResult(**(found | {"command": tuple(found["command"])})) for name, found in stages.items()}


def _write_down(results: Path, found: dict[str, StageResult], environment: dict[str, object]) -> None:
    stages = {name: asdict(result) for name, result in (read_ladder(results) | found).items()}
    (results / LADDER).write_text(json.dumps({"environment": environment, "stages": stages}, indent=1) + "\n")


def _last_lines(file: Path) -> str:
    lines = file.read_text(errors="replace").splitlines()[-_LAST_LINES:] if file.is_file() else []
    return "\n".join(f"      | {line}" for line in lines)
