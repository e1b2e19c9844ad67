"""An engine that launches each step before it reads the tokens of the one before says what one that waits says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_paged.core.outputs import TokenLogprobs
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.schedule_output import SchedulerOutput
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.logprobs import NonFiniteLogits
from serve_paged.engine.model_runner import StepLogits
from serve_paged.engine.offline import Completion
from serve_paged.engine.sampler import SampledToken, Samples
from tests.engine.conftest import EngineFactory

Outputs = dict[tuple[str, int], Completion]


@dataclass(frozen=True)
class Mix:
    """Requests, the steps before which they come or are aborted, and the engine that they meet."""

    requests: list[Request]
    arrivals: list[int] = field(default_factory=list)  # of requests[i]; 0 for those not named
    aborts: dict[str, int] = field(default_factory=dict)  # request id -> step
    engine: dict[str, Any] = field(default_factory=dict)


def run(build: EngineFactory, mix: Mix, *, run_ahead: bool) -> tuple[Outputs, Engine]:
    """Everything that came out, and the engine when it was done."""
    engine = build(run_ahead=run_ahead, **mix.engine)
    arrivals = dict(enumerate(mix.arrivals))
    outputs: Outputs = {}
    step = 0
    while engine.has_unfinished() or step <= max([*arrivals.values(), 0]):
        for index, request in enumerate(mix.requests):
            if arrivals.get(index, 0) == step:
                engine.add(request)
                outputs |= {(request.request_id, c): Completion(index, c) for c in range(request.params.n)}
        for request_id in [name for name, at in mix.aborts.items() if at == step]:
            engine.abort(request_id)
        for delta in engine.step():
            outputs[delta.request_id, delta.choice].extend(delta)
        engine.scheduler.check()
        step += 1
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks, "blocks are lost"
    assert stats.num_output_tokens == sum(len(completion.token_ids) for completion in outputs.values())
    return outputs, engine


def assert_same(waiting: Completion, ahead: Completion) -> None:
    assert ahead.token_ids == waiting.token_ids
    assert (ahead.text, ahead.finish_reason, ahead.stop_reason) == (
        waiting.text,
        waiting.finish_reason,
        waiting.stop_reason,
    )
    assert_same_logprobs(waiting.logprobs, ahead.logprobs)
    assert_same_logprobs(waiting.prompt_logprobs, ahead.prompt_logprobs)


def assert_same_logprobs(waiting: list[TokenLogprobs] | list[Any], ahead: list[TokenLogprobs] | list[Any]) -> None:
    assert len(ahead) == len(waiting)
    for one, other in zip(waiting, ahead, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert (other.token_id, len(other.top)) == (one.token_id, len(one.top))
            assert other.logprob == pytest.approx(one.logprob, abs=1e-4)


def compare(mix: Mix, build: EngineFactory) -> tuple[Outputs, Engine]:
    """Run it both ways; what came out running ahead."""
    waiting, _ = run(build, mix, run_ahead=False)
    ahead, engine = run(build, mix, run_ahead=True)
    assert ahead.keys() == waiting.keys()
    for key, completion in waiting.items():
        if key[0] in mix.aborts:  # when exactly it was aborted depends on what had been read by then
            shorter, longer = sorted((completion.token_ids, ahead[key].token_ids), key=len)
            assert longer[: len(shorter)] == shorter
        else:
            assert completion.finish_reason is not None
            assert_same(completion, ahead[key])
    return ahead, engine


def prompt_of(length: int, *, start: int = 0) -> list[int]:
    return [(start + 37 * place) % 250 for place in range(length)]


def requests(count: int, *, lengths: Callable[[int], int] = lambda i: 5 + 11 * i, **settings: Any) -> list[Request]:
    """Requests of different lengths that say 12 tokens each, if nothing ends them."""
    given = {"temperature": 0.0, "max_tokens": 12, "ignore_eos": True, **settings}
    return [Request(f"r{i}", prompt_of(lengths(i), start=i), SamplingParams(**given)) for i in range(count)]


SHARED = [
    Request(f"r{i}", [*prompt_of(64), i], SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True))
    for i in range(5)
]
TIGHT = {"num_blocks": 9, "watermark": 0.0}

MIXES = {
    "alone": Mix(requests(1)),
    "one token each": Mix(requests(4, max_tokens=1)),
    "two tokens each": Mix(requests(4, max_tokens=2)),
    "one joins at every step": Mix(requests(6), arrivals=list(range(6))),
    "chunked prefill": Mix(requests(6), engine={"max_num_batched_tokens": 16, "max_num_seqs": 6}),
    "prefix hits": Mix(SHARED, arrivals=[0, 1, 2, 20, 21]),
    "forks": Mix(requests(4, n=3, temperature=1.0, seed=5)),
    "forks of one token": Mix(requests(3, n=3, temperature=1.0, seed=5, max_tokens=1)),
    "preemption by swap": Mix(requests(5), engine={**TIGHT, "preemption": "swap"}),
    "preemption by recompute": Mix(requests(5), engine={**TIGHT, "num_host_blocks": 0}),
    "preempted forks": Mix(
        requests(3, n=3, temperature=1.0, seed=1, max_tokens=40), engine={**TIGHT, "preemption": "swap"}
    ),
    "seeds": Mix(requests(5, temperature=1.1, top_p=0.9, top_k=40, min_p=0.01, seed=3)),
    "penalties": Mix(
        requests(5, temperature=0.8, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.6, seed=3)
    ),
    "end of sequence": Mix(requests(8, temperature=2.0, seed=2, logit_bias={258: 8.0}, ignore_eos=False)),
    "stop tokens": Mix(requests(8, temperature=2.0, seed=2, stop_token_ids=tuple(range(0, 250, 9)))),
    "min_tokens": Mix(requests(8, temperature=2.0, seed=2, stop_token_ids=tuple(range(0, 250, 3)), min_tokens=5)),
    "stop strings": Mix(
        requests(6, temperature=1.0, seed=4, stop=("e", "tt"), logit_bias=dict.fromkeys(range(64, 90), 30.0))
    ),
    "log probabilities": Mix(
        requests(5, logprobs=3, prompt_logprobs=2), engine={"max_num_batched_tokens": 16, "max_num_seqs": 5}
    ),
    "context length": Mix(requests(3, max_tokens=None), engine={"max_model_len": 48}),
    "priorities": Mix(
        [Request(r.request_id, r.prompt_token_ids, r.params, priority=-i) for i, r in enumerate(requests(5))],
        arrivals=[0, 2, 4, 6, 8],
        engine=TIGHT,
    ),
    "aborts": Mix(requests(6, n=2, temperature=1.0, seed=9), aborts={"r1": 1, "r3": 4, "r4": 7}),
    "no prefix cache": Mix(SHARED, engine={**TIGHT, "num_blocks": 12, "prefix_caching": False}),
}


@pytest.mark.parametrize("name", MIXES)
def test_the_outputs_are_those_of_an_engine_that_waits(name: str, tiny_engine: EngineFactory) -> None:
    ahead, engine = compare(MIXES[name], tiny_engine)
    if name.startswith("preempt"):
        assert engine.stats().num_preemptions > 0
    if "stop" in name or name == "end of sequence":
        assert any(completion.finish_reason == "stop" for completion in ahead.values())


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    """A few requests of every kind on a small engine."""
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.0, "logprobs": 1, "prompt_logprobs": 0},
        {"temperature": 1.2, "top_p": 0.8, "n": 2},
        {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.5},
        {"temperature": 2.0, "stop_token_ids": tuple(range(0, 250, 5)), "min_tokens": 1, "n": 3},
    ]
    wanted = []
    for index in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(kinds))
        params = SamplingParams(max_tokens=draw(st.integers(1, 12)), ignore_eos=True, seed=index, **kind)
        prompt = prompt_of(draw(st.integers(1, 60)), start=draw(st.sampled_from([0, 0, 9])))
        wanted.append(Request(f"r{index}", prompt, params, priority=draw(st.sampled_from([0, 0, -1]))))
    aborted = draw(st.dictionaries(st.sampled_from([r.request_id for r in wanted]), st.integers(0, 12), max_size=2))
    return Mix(
        wanted,
        arrivals=[draw(st.integers(0, 8)) for _ in wanted],
        aborts=aborted,
        engine={
            "num_blocks": draw(st.sampled_from([7, 9, 30])),
            "num_host_blocks": draw(st.sampled_from([0, 6])),
            "max_num_seqs": 4,
            "max_num_batched_tokens": draw(st.sampled_from([8, 64])),
            "preemption": draw(st.sampled_from(["swap", "recompute"])),
            "watermark": 0.0,
        },
    )


@pytest.mark.parametrize("num_examples", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_random_mixes_and_aborts_say_the_same(num_examples: int, tiny_engine: EngineFactory) -> None:
    @settings(max_examples=num_examples, deadline=None, derandomize=True, database=None)
    @given(mixes())
    def check(mix: Mix) -> None:
        compare(mix, tiny_engine)

    check()


class Recorder:
    """Writes down when an engine launches forward passes and when it reads samples; faults can be planted in both."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.events: list[str] = []
        self.fault_at: str | None = None
        self._run = engine._runner.run
        self._read = Samples.read
        monkeypatch.setattr(engine._runner, "run", self.run)
        recorder = self

        def read(samples: Samples) -> list[SampledToken]:
            return recorder.read(samples)

        monkeypatch.setattr(Samples, "read", read)

    def run(self, output: SchedulerOutput, samples: torch.Tensor | None = None) -> StepLogits:
        self._note("launch")
        return self._run(output, samples)

    def read(self, samples: Samples) -> list[SampledToken]:
        self._note("read")
        return self._read(samples)

    def _note(self, kind: str) -> None:
        number = sum(event.startswith(kind) for event in self.events)
        self.events.append(f"{kind} {number}")
        if self.events[-1] == self.fault_at:
            raise RuntimeError(f"no {self.fault_at}")


def take_steps(engine: Engine, count: int) -> None:
    for _ in range(count):
        engine.step()


GREEDY = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)


def test_each_step_is_launched_before_the_tokens_of_the_one_before_are_read(
    tiny_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(run_ahead=True)
    recorder = Recorder(engine, monkeypatch)
    engine.add(Request("r", [1, 2, 3], GREEDY))
    deltas = [engine.step() for _ in range(5)]
    assert not engine.has_unfinished()
    assert recorder.events == [
        *("launch 0", "launch 1", "read 0", "launch 2", "read 1", "launch 3", "read 2"),
        "read 3",  # nothing to launch: the last token was on its way
    ]
    assert [len(new) for new in deltas] == [0, 1, 1, 1, 1]


def test_an_engine_that_waits_reads_each_step_s_tokens_in_it(
    tiny_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine()
    recorder = Recorder(engine, monkeypatch)
    engine.add(Request("r", [1, 2, 3], GREEDY))
    assert [len(engine.step()) for _ in range(4)] == [1, 1, 1, 1]
    assert recorder.events == [f"{kind} {number}" for number in range(4) for kind in ("launch", "read")]


def test_input_ids_of_pending_tokens_come_from_the_device(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(run_ahead=True)
    engine.add(Request("r", [1, 2, 3], GREEDY))
    engine.step()
    assert engine._in_flight is not None
    samples = engine._in_flight.samples
    samples.token_ids = (samples.token_ids + 1) % 250  # another token than the one that the host will read
    [changed] = samples.token_ids.tolist()
    tokens = [token for _ in range(4) for delta in engine.step() for token in delta.token_ids]
    other = tiny_engine()
    other.add(Request("r", [1, 2, 3, changed], SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)))
    assert tokens[1:] == [token for _ in range(3) for delta in other.step() for token in delta.token_ids]


@pytest.mark.parametrize("fault_at", ["launch 0", "launch 2", "read 0", "read 2"])
def test_after_a_step_that_raised_everything_can_be_aborted(
    fault_at: str, tiny_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(run_ahead=True)
    recorder = Recorder(engine, monkeypatch)
    for index in range(3):
        engine.add(Request(f"r{index}", prompt_of(20 + index), GREEDY))
    recorder.fault_at = fault_at
    with pytest.raises(RuntimeError, match=fault_at):
        take_steps(engine, 5)
    for index in range(3):
        engine.abort(f"r{index}")
    while engine.has_unfinished():
        assert engine.step() == []
    engine.scheduler.check()
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, stats.num_blocks)


def test_logits_that_are_not_finite_are_a_fault_here_too(
    tiny_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny_engine(run_ahead=True)
    run_as_before = engine._runner.run

    def poisoned(output: SchedulerOutput, samples: torch.Tensor | None = None) -> StepLogits:
        found = run_as_before(output, samples)
        return StepLogits(torch.full_like(found.logits, torch.nan), found.sample_rows, found.prompt_rows)

    monkeypatch.setattr(engine._runner, "run", poisoned)
    engine.add(Request("r", [1, 2, 3], GREEDY))
    with pytest.raises(NonFiniteLogits, match="request r"):
        take_steps(engine, 2)


def test_aborting_everything_between_launch_and_read_drops_the_tokens(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(run_ahead=True)
    engine.add(Request("r", [1, 2, 3], GREEDY))
    engine.step()
    engine.step()
    engine.abort("r")
    assert not engine.is_open("r")
    assert engine.has_unfinished(), "a step is in flight"
    assert engine.step() == []
    assert not engine.has_unfinished()
    assert engine.stats().num_output_tokens == 1


def test_log_probabilities_of_an_aborted_prompt_are_dropped(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(run_ahead=True)
    engine.add(Request("r", [1, 2, 3], SamplingParams(temperature=0.0, max_tokens=4, logprobs=1, prompt_logprobs=1)))
    engine.step()
    engine.abort("r")
    assert engine.step() == []
    assert not engine.has_unfinished()


def test_a_request_with_the_id_of_an_aborted_one_gets_none_of_its_tokens(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(run_ahead=True)
    [alone] = requests(1)
    expected, _ = run(tiny_engine, Mix([alone]), run_ahead=False)
    engine.add(Request("r0", [9, 9, 9], GREEDY))
    engine.step()
    engine.step()
    engine.abort("r0")
    engine.add(alone)
    tokens: list[int] = []
    while engine.has_unfinished():
        tokens += [token for delta in engine.step() for token in delta.token_ids]
    assert tokens == expected["r0", 0].token_ids
