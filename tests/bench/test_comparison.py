"""Our engine against transformers over one trace: same weights, same prompts, same answers in float32."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve_paged.bench import rivals
from serve_paged.bench.command import BenchOptions, run
from serve_paged.bench.report import table
from serve_paged.bench.rivals import Limits, run_rival
from serve_paged.bench.trace import TraceRequest
from serve_paged.model.named_shapes import NAMED_SHAPES

TRACE = [TraceRequest([5, 6, 7], 4), TraceRequest([8], 2), TraceRequest([9, 10], 6), TraceRequest([11] * 9, 1)]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def options(**changes: Any) -> BenchOptions:
    settings: dict[str, Any] = {
        "model": "", "random_weights": None, "num_layers": None, "dtype": "float32", "device": "cpu", "threads": 1,
        "num_requests": 5, "input_len": 12, "output_len": 6, "lengths": "fixed", "max_model_len": None,
        "seed": 0, "max_num_seqs": 8,
        "max_num_batched_tokens": 64, "kv_cache_dtype": "auto", "kv_cache_gb": 0.05, "vs": (), "static_batch_size": 2,
        "vs_limit_s": float("inf"),
    }  # fmt: skip
    return BenchOptions(**(settings | changes))


SMALL = {
    "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 2,
}  # fmt: skip


@pytest.mark.parametrize("shape", list(NAMED_SHAPES))
def test_random_weights_answer_as_transformers_does_with_the_same_weights(
    shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shape, smaller: its norms, its scaling of positions, its head, tied or not."""
    monkeypatch.setitem(NAMED_SHAPES, "small", {**NAMED_SHAPES[shape], **SMALL})  # type: ignore[misc]
    found = run(options(random_weights="small", input_len=60, vs=("generate-one",)), show_progress=False)
    (rival,) = found.rivals
    assert rival.error is None
    assert found.num_identical(rival) == len(rival.outputs) == 5
    assert len({token for tokens in found.ours.outputs for token in tokens}) > 5  # not one token for ever


def test_a_stored_model_is_compared_in_all_three_ways(tiny_model_folder: Path) -> None:
    found = run(options(model=str(tiny_model_folder), vs=("transformers",), lengths="sharegpt"), show_progress=False)
    assert [rival.name for rival in found.rivals] == ["generate-one", "generate-static", "continuous-batching"]
    for rival in found.rivals:
        assert rival.error is None
        assert found.num_identical(rival) == 5
        ratio = found.ratio(rival)
        assert ratio is not None
        assert ratio == pytest.approx(found.ours.result.output_tokens_per_s / rival.output_tokens_per_s)
    assert table(found).count("5 of 5 answers identical") == 3


class FakeModel:
    """Answers a batch with the row's last prompt token again and again; remembers what was asked."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.config = SimpleNamespace(_attn_implementation="fake")
        self.asked: list[tuple[tuple[int, ...], int]] = []

    def generate(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int) -> torch.Tensor:
        assert torch.equal(attention_mask, (input_ids > 0).long())
        self.asked.append((tuple(input_ids.shape), max_new_tokens))
        return torch.cat((input_ids, input_ids[:, -1:].repeat(1, max_new_tokens)), dim=1)


def test_a_static_batch_is_padded_to_its_longest_prompt_and_waits_for_its_longest_answer() -> None:
    model = FakeModel()
    found = run_rival("generate-static", model, TRACE, Limits(static_batch_size=2))
    assert model.asked[1:] == [((2, 3), 4), ((2, 9), 6)]  # behind the warm-up
    assert found.outputs == {0: [7] * 4, 1: [8] * 2, 2: [10] * 6, 3: [11]}
    assert found.num_output_tokens == 13  # what was asked for, not what was computed
    assert found.settings == {"attention": "fake", "batch_size": 2}


def test_one_by_one_is_never_padded() -> None:
    model = FakeModel()
    run_rival("generate-one", model, TRACE, Limits())
    assert model.asked[1:] == [((1, 3), 4), ((1, 1), 2), ((1, 2), 6), ((1, 9), 1)]


def test_a_rival_whose_time_is_up_is_measured_by_what_it_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(1000))
    monkeypatch.setattr(rivals.time, "perf_counter", lambda: next(ticks))
    found = run_rival("generate-one", FakeModel(), TRACE, Limits(limit_s=3))
    assert 0 < len(found.outputs) < len(TRACE)
    assert found.error is None
    assert found.num_output_tokens == sum(TRACE[i].num_output for i in found.outputs)


def test_a_rival_that_fails_says_why_and_stops_nothing() -> None:
    found = run_rival("continuous-batching", FakeModel(), TRACE, Limits())
    assert found.output_tokens_per_s is None
    assert "continuous_batching_context_manager" in (found.error or "")


def test_layers_are_chosen_for_random_weights_only(tiny_model_folder: Path) -> None:
    with pytest.raises(ValueError, match="random-weights"):
        run(options(model=str(tiny_model_folder), num_layers=1), show_progress=False)
