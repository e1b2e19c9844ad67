"""The command line, run in this process over a tiny model."""

import json
from pathlib import Path

from click.testing import CliRunner, Result

from serve_paged.__main__ import main


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, list(args))


def test_generate_answers_and_repeats_itself_with_a_seed(tiny_model_folder: Path) -> None:
    args = ["generate", "hello", "--model", str(tiny_model_folder), "--dtype", "float32", "--max-tokens", "6"]
    first = invoke(*args, "--temperature", "1.5", "--seed", "3")
    second = invoke(*args, "--temperature", "1.5", "--seed", "3")
    assert first.exit_code == 0, first.output
    assert first.output == second.output
    assert invoke(*args, "--temperature", "1.5", "--seed", "4").output != first.output


def test_generate_prints_every_choice(tiny_model_folder: Path) -> None:
    result = invoke("generate", "hello", "--raw", "--model", str(tiny_model_folder), "-n", "2", "--max-tokens", "3")
    assert result.exit_code == 0, result.output
    assert "--- 0\n" in result.output
    assert "--- 1\n" in result.output


def test_bench_reports_what_it_ran(tiny_model_folder: Path) -> None:
    result = invoke(
        "bench", "--model", str(tiny_model_folder), "--dtype", "float32", "--num-requests", "5", "--input-len", "40",
        "--output-len", "7", "--kv-cache-gb", "0.01", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["num_prompt_tokens"], report["num_output_tokens"]) == (200, 35)
    assert report["num_steps"] >= 7
    assert 0 < report["kv_slot_share"] <= 1
    assert report["output_tokens_per_s"] > 0


def test_bench_takes_a_sharegpt_like_mix(tiny_model_folder: Path) -> None:
    result = invoke(
        "bench", "--model", str(tiny_model_folder), "--dtype", "float32", "--num-requests", "8",
        "--lengths", "sharegpt", "--kv-cache-gb", "0.01",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "KV slots in use" in result.output


def test_bad_input_is_named_not_traced() -> None:
    missing = invoke("generate", "hello", "--model", "/no/such/model")
    assert missing.exit_code == 1
    assert "/no/such/model" in missing.output
    assert "Traceback" not in missing.output
    negative = invoke("generate", "hello", "--temperature", "-1")
    assert negative.exit_code == 1
    assert "temperature" in negative.output
    narrow = invoke("bench", "--device", "cpu", "--kv-cache-dtype", "fp8")
    assert narrow.exit_code == 1
    assert "kv_cache_dtype: fp8 is not possible on cpu" in narrow.output


def test_bench_runs_a_shape_with_random_weights_beside_transformers() -> None:
    result = invoke(
        "bench", "--random-weights", "smollm2-135m", "--num-layers", "1", "--dtype", "float32", "--num-requests", "2",
        "--input-len", "5", "--output-len", "3", "--kv-cache-gb", "0.01", "--vs", "generate-static", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    (rival,) = report["vs"]
    assert (rival["name"], rival["num_requests"], rival["num_identical"]) == ("generate-static", 2, 2)
    assert rival["ratio"] > 0
