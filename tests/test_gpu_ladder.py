"""`make gpu`'s orchestration with stages that need no GPU: order, limits of time, failures, JSON, the summary."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu import __main__ as command
from tests.gpu import targets
from tests.gpu.ladder import Stage, read_ladder, run_ladder
from tests.gpu.stages import all_stages


def python(name: str, program: str, limit_s: float = 60, **rest: Any) -> Stage:
    return Stage(name, f"runs {name}", (sys.executable, "-c", program), limit_s, **rest)


def climb(stages: list[Stage], results: Path) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    found = run_ladder(stages, results, {"gpu": "none"}, said.append)
    return {name: result.status for name, result in found.items()}, said


def test_stages_run_in_order_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'order')!r}, 'a').write"
    stages = [
        python("first", f"{note}('1')"),
        python("second", f"{note}('2'); print('what went wrong'); raise SystemExit(3)"),
        python("third", f"{note}('3')"),
    ]
    statuses, said = climb(stages, tmp_path)
    assert (tmp_path / "order").read_text() == "123"
    assert statuses == {"first": "passed", "second": "failed", "third": "passed"}
    assert read_ladder(tmp_path)["second"].return_code == 3
    assert any("what went wrong" in line for line in said)


def test_a_stage_is_stopped_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import time; time.sleep(1); open({str(tmp_path / 'alive')!r}, 'w')"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    statuses, _ = climb(
        [python("slow", program, limit_s=0.3), python("next", "import time; time.sleep(1.2)")], tmp_path
    )
    assert statuses == {"slow": "timed out", "next": "passed"}
    assert not (tmp_path / "alive").exists()


def test_a_program_that_is_not_there_is_missing(tmp_path: Path) -> None:
    statuses, said = climb([Stage("memcheck", "", ("no-such-sanitizer", "x"), 1)], tmp_path)
    assert statuses == {"memcheck": "missing"}
    assert any("no-such-sanitizer is not installed" in line for line in said)


def test_standard_output_becomes_a_json_file_only_if_the_stage_passes(tmp_path: Path) -> None:
    climb(
        [python("good", "import sys; print('{}'); print('noise', file=sys.stderr)", json_output="good.json")], tmp_path
    )
    assert json.loads((tmp_path / "good.json").read_text()) == {}
    assert (tmp_path / "good.log").read_text() == "noise\n"
    climb([python("bad", "print('{'); raise SystemExit(1)", json_output="bad.json")], tmp_path)
    assert not (tmp_path / "bad.json").exists()


@pytest.mark.parametrize("kind", ["json_output", "json_file"])
def test_figures_of_an_earlier_run_do_not_outlive_a_stage_that_fails(tmp_path: Path, kind: str) -> None:
    (tmp_path / "figures.json").write_text("{}")
    climb([python("launch", "raise SystemExit(1)", **{kind: "figures.json"})], tmp_path)
    assert not (tmp_path / "figures.json").exists()


def test_a_python_without_torch_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "has no torch" in str(command.why_no_gpu())


def test_stages_run_one_by_one_end_up_in_one_file(tmp_path: Path) -> None:
    climb([python("first", "")], tmp_path)
    climb([python("second", "raise SystemExit(1)")], tmp_path)
    written = json.loads((tmp_path / "ladder.json").read_text())
    assert {name: stage["status"] for name, stage in written["stages"].items()} == {
        "first": "passed",
        "second": "failed",
    }
    assert written["environment"] == {"gpu": "none"}
    assert written["stages"]["first"]["command"] == ["python", "-c", ""]


def test_every_stage_fits_into_ten_minutes_and_has_its_files(tmp_path: Path) -> None:
    root = Path(command.__file__).parents[2]
    for quick in (False, True):
        stages = all_stages(tmp_path, quick=quick)
        assert len({stage.name for stage in stages}) == len(stages)
        for stage in stages:
            assert stage.limit_s <= 570
            files = [word for word in stage.command if word.endswith(".py")]
            modules = [stage.command[i + 1] for i, word in enumerate(stage.command) if word == "-m"]
            named = [*files, *(m.replace(".", "/") for m in modules if "." in m)]
            assert all((root / f).exists() or (root / f"{f}.py").exists() for f in named), stage.command


def test_the_command_lists_stages_and_refuses_unknown_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--list"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [stage.name for stage in all_stages(Path())]
    assert listed.index("conformance") < listed.index("operations") < listed.index("memcheck") < listed.index("timings")
    with pytest.raises(SystemExit):
        command.main(["--stage", "conformity"])


def test_without_a_gpu_it_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert command.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "needs a GPU" in line


def write(folder: Path, name: str, content: object) -> None:
    (folder / name).write_text(json.dumps(content))


def figure(operation: str, share: float, num_bytes: float = 1e9, **speedups: float) -> dict[str, object]:
    return {"operation": operation, "share_of_ceiling": share, "num_bytes": num_bytes, "speedups": speedups}


def test_targets_are_met_missed_or_not_run(tmp_path: Path) -> None:
    climb([python("conformance", ""), python("graphs", "raise SystemExit(1)")], tmp_path)
    figures = [
        figure("decode", 0.9, flashinfer=1.1),
        figure("decode", 0.86),
        figure("decode", 0.2, num_bytes=1e6),  # small: no promise
        figure("prefill", 0.1, flashinfer=0.5),
        figure("copy_blocks", 0.95),
        figure("swap in", 0.8),
    ]
    write(tmp_path, "kernels.json", {"ceilings": {"device_copy": 3e12}, "figures": figures})
    write(tmp_path, "trace-8b.json", {"vs": [{"name": "generate-one", "ratio": 30.0}]})
    seconds = targets.decode_step_bytes() / 3e12 / 0.8
    write(tmp_path, "decode-step.json", {"itl_ms": {"p50": seconds * 1e3}})
    found = {verdict.name.split(" >=")[0].split(" <=")[0]: verdict.status for verdict in targets.verdicts(tmp_path)}
    assert found["conformance passes"] == "met"
    assert found["graphs passes"] == "missed"
    assert found["memcheck passes"] == "not run"
    assert found["decode, share of the copy bandwidth at 64 MB of KV and more"] == "met"
    assert found["decode, FlashInfer's time over ours"] == "met"
    assert found["prefill, FlashInfer's time over ours"] == "missed"
    assert found["copy_blocks, share of the copy bandwidth"] == "met"
    assert found["swap, share of the memcpy rate"] == "missed"
    assert found["a launch above a bare one, us"] == "not run"
    assert found["decode step of an 8B model, share of the byte limit"] == "met"
    assert found["llama-3.1-8b, times generate one by one"] == "met"
    assert found["llama-3.1-8b, times static batches"] == "not run"


def test_a_decode_that_is_wrong_misses_its_target(tmp_path: Path) -> None:
    figures = [figure("decode", 0.9), {**figure("decode", 0.0), "share_of_ceiling": None}]
    write(tmp_path, "kernels.json", {"ceilings": {"device_copy": 3e12}, "figures": figures})
    found = {verdict.name: verdict for verdict in targets.verdicts(tmp_path)}
    assert found["decode, share of the copy bandwidth at 64 MB of KV and more >= 0.85"].status == "missed"


def test_the_summary_ends_with_how_many_are_met(tmp_path: Path) -> None:
    text = targets.write_summary(tmp_path)
    assert text.splitlines()[-1].startswith("0 met, 0 missed, ")
    assert {verdict["status"] for verdict in json.loads((tmp_path / "targets.json").read_text())} == {"not run"}


def test_a_decode_step_of_an_8b_model_reads_its_weights_and_its_keys() -> None:
    weights = 2 * (8_030_261_248 - 128256 * 4096)
    assert targets.decode_step_bytes() == weights + 64 * 1024 * 32 * 2 * 8 * 128 * 2
