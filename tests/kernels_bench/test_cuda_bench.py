"""The benchmark of a GPU, run over the simulated device: what it checks, times and reports."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from numba_kernels.bench import attention_case
from numba_kernels.bench.ceilings import Ceilings
from numba_kernels.bench.cuda import Bench
from numba_kernels.bench.figures import Figure, line
from numba_kernels.bench.operations import copies, operations
from numba_kernels.bench.shapes import FULL, QUICK, AttentionCase, Extent, ModelShape, attention_cases
from numba_kernels.bench.timing import ClockTimer, Timing
from numba_kernels.cuda.kernels import CudaKernels
from numba_kernels.cuda.simulated_launcher import SimulatedLauncher

TINY = ModelShape("tiny", 1, 128, 64, 4, 2, 64, 104)
CEILINGS = Ceilings(1e9, 1e9, 1e9)


@pytest.fixture
def bench() -> Bench:
    return Bench(CudaKernels(SimulatedLauncher()), ClockTimer(1), torch.bfloat16, min_bytes=1)


def test_decode_is_checked_and_timed_beside_torch(bench: Bench) -> None:
    figure = bench.attention(AttentionCase(TINY, 2, 37, 1), ceiling=1e9)
    assert figure.is_right
    assert 0 < figure.error < 6e-3
    assert figure.ours is not None
    assert figure.speedup("torch gather + SDPA") is not None
    assert isinstance(figure.rivals["triton"], str)  # not installed here, and no GPU
    assert figure.num_bytes == 2 * 37 * 2 * 2 * 64 * 2 + 2 * 2 * 4 * 64 * 2


def test_torch_stands_in_for_every_kind_of_batch() -> None:
    """SDPA over gathered keys is what ours is compared with: here it is compared with the plain reference."""
    from numba_kernels import KVLayout, attention_metadata, reference

    for case in (AttentionCase(TINY, 2, 37, 1), AttentionCase(TINY, 2, 33, 33), AttentionCase(TINY, 2, 40, 7)):
        data = attention_case.make_attention_data(case, torch.device("cpu"), torch.float32, min_bytes=1)
        metadata = attention_metadata(data.block_tables, data.slot_mapping, data.cu_seqlens_q, data.seq_lens)
        exact = reference.paged_attention(
            data.q, data.kv_cache, 1, metadata, scale=data.scale, layout=KVLayout.STANDARD
        )
        assert torch.allclose(data.rows(data.sdpa(*data.gather(1))), exact, atol=1e-5)
        one = attention_case.one_sequence(data, 1)
        k, v = (x[1:] for x in data.gather(1))
        assert torch.allclose(one.rows(one.sdpa(k, v)), data.rows_of(exact, 1), atol=1e-5)


def test_what_is_wrong_is_not_timed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.kernels, "paged_attention", lambda *_args, out, **_rest: out.zero_())
    figure = bench.attention(AttentionCase(TINY, 1, 20, 1), ceiling=1e9)
    assert not figure.is_right
    assert figure.ours is None
    assert "WRONG" in line(figure)


def test_a_result_that_is_not_written_is_wrong(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.kernels, "paged_attention", lambda *_args, **_rest: None)
    assert not bench.attention(AttentionCase(TINY, 1, 20, 1), ceiling=1e9).is_right


def test_copies_are_checked_bit_by_bit(bench: Bench) -> None:
    figures = [bench.operation(copy) for copy in copies(bench.kernels, (TINY,), torch.bfloat16, 1, CEILINGS)]
    assert [figure.operation for figure in figures] == ["copy_blocks", "swap out", "swap in"]
    assert all(figure.is_right and figure.error == 0 for figure in figures)
    assert figures[0].num_bytes == 2 * figures[1].num_bytes  # read and written


def test_operations_between_the_products_are_checked_and_timed_beside_torch(bench: Bench) -> None:
    figures = [
        bench.operation(operation) for operation in operations(bench.kernels, TINY, (3,), torch.bfloat16, 1, CEILINGS)
    ]
    assert [figure.operation for figure in figures] == [
        "rms_norm", "rms_norm residual", "silu_and_mul", "rope_and_write_kv", "sample",
    ]  # fmt: skip
    for figure in figures:
        assert figure.is_right, figure.operation
        assert isinstance(figure.rivals["torch"], Timing), figure.rivals
    norm, _, silu, rope, sample = figures
    assert sample.num_bytes == 3 * 104 * 4  # float32
    assert norm.num_bytes == 2 * 3 * 128 * 2
    assert silu.num_bytes == 3 * 3 * 64 * 2
    assert rope.num_bytes == 3 * 64 * 2 * (2 * 4 + 4 * 2)  # q read and written; k and v read, and written elsewhere


def test_a_run_stops_when_its_time_is_up_and_says_what_is_missing(bench: Bench) -> None:
    extent = Extent((TINY,), (1,), (20,), (), (), 1 << 20)
    shown: list[Figure] = []
    findings = bench.run(extent, budget_s=-1.0, show=shown.append)
    assert shown == findings.figures == []
    assert findings.not_run == ["tiny copy_blocks 4 x 8 KiB", "tiny swap out 4 x 8 KiB", "tiny swap in 4 x 8 KiB",
                                "tiny decode 1 x 20"]  # fmt: skip


def test_figures_are_plain_data_for_json(bench: Bench) -> None:
    extent = Extent((TINY,), (1,), (20,), (), (), 1 << 20)
    findings = bench.run(extent, budget_s=1e9, show=lambda _: None)
    assert findings.all_right
    report: dict[str, Any] = json.loads(json.dumps(findings.as_dict()))
    (decode,) = [figure for figure in report["figures"] if figure["operation"] == "decode"]
    assert decode["ours"]["median_s"] > 0
    assert decode["share_of_ceiling"] == pytest.approx(
        decode["num_bytes"] / decode["ours"]["median_s"] / report["ceilings"]["device_copy"]
    )


def test_a_ratio_above_one_is_in_our_favour() -> None:
    ours, theirs = Timing(2.0, 2.0, 1, "clock"), Timing(3.0, 3.0, 1, "clock")
    figure = Figure("decode", "tiny", "x", 100, 0, 100.0, 0.0, True, ours, {"torch": theirs, "triton": "absent"})
    assert figure.speedup("torch") == 1.5
    assert figure.speedup("triton") is None
    assert figure.share_of_ceiling == 0.5


def test_the_shapes_cover_what_was_promised() -> None:
    cases = attention_cases(FULL)
    assert {case.model.name for case in cases} == {"llama-3.1-8b", "llama-3.2-1b", "qwen3-8b", "smollm2-135m"}
    assert {case.num_seqs for case in cases if case.num_queries == 1} >= {1, 256}
    assert {case.seq_len for case in cases if case.num_queries == 1} >= {128, 32768}
    assert all(case.kv_bytes <= FULL.max_kv_bytes for case in cases)
    assert len(attention_cases(QUICK)) < len(cases) / 3


def test_causal_flops_count_what_queries_see() -> None:
    assert AttentionCase(TINY, 1, 3, 3).num_flops == 4 * (1 + 2 + 3) * 4 * 64
    assert AttentionCase(TINY, 2, 5, 1).num_flops == 4 * 2 * 5 * 4 * 64
    assert replace(TINY, num_layers=2).kv_bytes_per_token == 2 * 2 * 64 * 2
