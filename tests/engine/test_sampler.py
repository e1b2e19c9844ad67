import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from numba_kernels import CpuKernels
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import Sequence
from serve_paged.engine.logprobs import NonFiniteLogits
from serve_paged.engine.philox import seed_words, uniforms
from serve_paged.engine.sampler import Sampler
from tests.engine.sampling_reference import adjusted_logits, distribution, invert

EOS = (1, 3)


def make_sequence(
    params: SamplingParams, *, prompt: list[int] | None = None, output: list[int] | None = None, **fields: Any
) -> Sequence:
    return Sequence(
        fields.pop("request_id", "request"),
        prompt if prompt is not None else [0],
        params,
        arrival_time=0.0,
        seed=fields.pop("seed", 0),
        max_num_tokens=1000,
        output_token_ids=list(output or []),
        **fields,
    )


def sample(logits: torch.Tensor, seqs: list[Sequence], sampler: Sampler | None = None) -> list[int]:
    sampler = sampler or Sampler(logits.shape[1], EOS, CpuKernels())
    return [token.token_id for token in sampler.sample(logits.clone(), seqs)]


@st.composite
def parameters(draw: st.DrawFn, vocab_size: int) -> SamplingParams:
    """Any mixture of sampling parameters; each is off about half of the time."""
    ids = st.integers(0, vocab_size - 1)

    def maybe(off: Any, on: st.SearchStrategy[Any]) -> Any:
        return draw(st.one_of(st.just(off), on))

    return SamplingParams(
        temperature=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0, 1.5, 5.0])),
        top_k=maybe(0, st.integers(-1, vocab_size + 5)),
        top_p=maybe(1.0, st.floats(0.01, 1.0)),
        min_p=maybe(0.0, st.floats(0.0, 1.0)),
        repetition_penalty=maybe(1.0, st.floats(0.5, 2.0)),
        presence_penalty=maybe(0.0, st.floats(-2.0, 2.0)),
        frequency_penalty=maybe(0.0, st.floats(-2.0, 2.0)),
        logit_bias=maybe({}, st.dictionaries(ids, st.floats(-20.0, 20.0), max_size=4)),
        min_tokens=maybe(0, st.integers(0, 10)),
        stop_token_ids=maybe((), st.tuples(ids)),
        ignore_eos=draw(st.booleans()),
    )


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[Sequence]]:
    """Logits with many equal values, flat and peaked, over small and large vocabularies, and their sequences."""
    vocab_size = draw(st.sampled_from([6, 70, 300, 1500]))
    num_rows = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    spread = rng.choice([0.2, 2.0, 8.0], size=(num_rows, 1))
    logits = np.round(rng.normal(0.0, spread, size=(num_rows, vocab_size)) * 8.0) / 8.0
    seqs = []
    for row in range(num_rows):
        lengths = rng.integers(1, 12), rng.integers(0, 12)
        prompt, output = (rng.integers(0, vocab_size, size=length).tolist() for length in lengths)
        params = draw(parameters(vocab_size))
        seqs.append(make_sequence(params, prompt=prompt, output=output, seed=int(rng.integers(2**63)), choice=row))
    return torch.from_numpy(logits.astype(np.float32)), seqs


@settings(max_examples=150, deadline=None, derandomize=True)
@given(batches())
def test_every_row_equals_the_slow_reference(batch: tuple[torch.Tensor, list[Sequence]]) -> None:
    logits, seqs = batch
    tokens = sample(logits, seqs)
    for row, (seq, token) in enumerate(zip(seqs, tokens, strict=True)):
        adjusted = adjusted_logits(logits[row].numpy(), seq, EOS)
        if seq.params.greedy:
            assert token == adjusted.index(max(adjusted))
            continue
        low, expected, high = (distribution(adjusted, seq, slack=slack) for slack in (-1e-5, 0.0, 1e-5))
        assume([p > 0 for p in low] == [p > 0 for p in high])  # else rounding may decide what is kept
        [uniform] = uniforms(seed_words([seq.seed]), [seq.choice], [seq.num_output_tokens])
        reference, distance = invert(expected, uniform)
        assert expected[token] > 0.0
        assert token == reference or distance < 1e-5


@settings(max_examples=50, deadline=None, derandomize=True)
@given(batches(), st.randoms(use_true_random=False))
def test_a_sequence_gets_the_same_token_in_any_batch(
    batch: tuple[torch.Tensor, list[Sequence]], shuffler: random.Random
) -> None:
    logits, seqs = batch
    together = sample(logits, seqs)
    order = list(range(len(seqs)))
    shuffler.shuffle(order)
    shuffled = sample(logits[order], [seqs[row] for row in order])
    assert [together[row] for row in order] == shuffled
    assert together == [sample(logits[row : row + 1], [seq])[0] for row, seq in enumerate(seqs)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(batches())
def test_greedy_alone_equals_greedy_beside_others_and_the_top_of_one(
    batch: tuple[torch.Tensor, list[Sequence]],
) -> None:
    logits, others = batch
    logits += torch.arange(logits.shape[1]) * -1e-4  # no equals
    greedy = [make_sequence(SamplingParams(temperature=0.0)) for _ in others]
    expected = logits.argmax(dim=-1).tolist()
    assert sample(logits, greedy) == expected
    assert sample(torch.cat((logits, logits)), [*greedy, *others])[: len(others)] == expected
    assert sample(logits, [make_sequence(SamplingParams(top_k=1), seed=row) for row in range(len(others))]) == expected
    assert sample(logits, [make_sequence(SamplingParams(temperature=1e-50)) for _ in others]) == expected


def test_greedy_takes_the_lowest_id_among_equals() -> None:
    logits = torch.zeros(2, 50_000)
    logits[0, [70, 40_000, 49_999]] = 3.0
    logits[1, [49_999, 300]] = 1.0
    seqs = [make_sequence(SamplingParams(temperature=0.0)) for _ in range(2)]
    assert sample(logits, seqs) == [70, 300]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_a_fault_that_names_the_request(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, 100)
    logits[1, 42] = bad
    params = SamplingParams(temperature=temperature)
    seqs = [make_sequence(params, request_id=name) for name in ("good", "bad")]
    with pytest.raises(NonFiniteLogits, match=r"request bad$"):
        sample(logits, seqs)


def test_a_row_without_any_token_left_is_a_fault() -> None:
    with pytest.raises(NonFiniteLogits, match="request"):
        sample(torch.full((1, 10), -torch.inf), [make_sequence(SamplingParams())])


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_no_end_token_is_chosen_before_min_tokens(ignore_eos: bool) -> None:
    params = SamplingParams(temperature=0.0, min_tokens=2, stop_token_ids=(5,), ignore_eos=ignore_eos)
    logits = torch.tensor([[0.0, 9.0, 1.0, 8.0, 2.0, 7.0]])
    sampler = Sampler(6, EOS, CpuKernels())
    seq = make_sequence(params)
    for _ in range(3):
        seq.output_token_ids += sample(logits, [seq], sampler)
    assert seq.output_token_ids == [4, 4, 1]


PENALISED = SamplingParams(repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.7, temperature=0.9)


def test_penalties_kept_over_steps_equal_penalties_counted_anew() -> None:
    rng = torch.Generator().manual_seed(5)
    seqs = [make_sequence(PENALISED, prompt=[2, 9, 2], seed=row) for row in range(3)]
    sampler = Sampler(40, EOS, CpuKernels())
    for step in range(60):
        running = seqs if step % 7 else seqs[1:]  # the first one is preempted now and then
        logits = torch.randn(len(running), 40, generator=rng) * 3
        kept = sample(logits, running, sampler)
        assert kept == sample(logits, running)
        for seq, token in zip(running, kept, strict=True):
            seq.output_token_ids.append(token)


def test_a_resumed_sequence_continues_as_if_it_had_never_stopped() -> None:
    rng = torch.Generator().manual_seed(6)
    steps = torch.randn(30, 1, 500, generator=rng) * 2
    whole = make_sequence(PENALISED, seed=77, choice=2)
    sampler = Sampler(500, EOS, CpuKernels())
    for logits in steps:
        whole.output_token_ids += sample(logits, [whole], sampler)
    resumed = make_sequence(PENALISED, seed=77, choice=2, output=whole.output_token_ids[:11])
    for logits in steps[11:]:
        resumed.output_token_ids += sample(logits, [resumed])
    assert resumed.output_token_ids == whole.output_token_ids


def test_choices_of_one_request_differ() -> None:
    seqs = [make_sequence(SamplingParams(n=8), choice=choice) for choice in range(8)]
    assert len(set(sample(torch.zeros(8, 10_000), seqs))) == 8


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.8),
        SamplingParams(temperature=1.5, top_k=6, min_p=0.02),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    logits = torch.linspace(2.0, -2.0, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(1))]
    num_draws = 20_000
    seqs = [make_sequence(params, seed=11, choice=choice) for choice in range(num_draws)]
    counts = np.bincount(sample(logits.expand(num_draws, -1), seqs), minlength=16)
    expected = np.array(distribution(logits.tolist(), seqs[0])) * num_draws
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert chi_square < 44.3  # 15 degrees of freedom at p = 0.0001; the seed is fixed


def test_log_probabilities_are_the_model_s_own_whatever_the_processors() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    plain = make_sequence(SamplingParams(temperature=0.0))
    biased = make_sequence(SamplingParams(temperature=0.0, logprobs=2, logit_bias={2: 50.0}, repetition_penalty=1.5))
    tokens = Sampler(4, (), CpuKernels()).sample(logits.repeat(2, 1), [plain, biased])
    assert tokens[0].logprobs is None
    found = tokens[1].logprobs
    assert found is not None
    exact = torch.log_softmax(logits[0], dim=-1).tolist()
    assert (found.token_id, found.rank) == (2, 3)
    assert found.logprob == pytest.approx(exact[2], abs=1e-6)
    assert [token_id for token_id, _ in found.top] == [0, 1]
