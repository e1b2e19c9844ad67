"""What a caller of the engine meets: ends, limits, aborts, seeds, resumption, log probabilities."""

import pytest

from serve_paged.core.errors import InvalidRequest, RequestTooLong
from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.offline import Completion, generate
from tests.engine.conftest import EngineFactory

PROMPT = [10, 20, 30, 40, 50]


def steps(engine: Engine) -> list[ChoiceDelta]:
    """Step until nothing is left to do."""
    deltas = []
    while engine.has_unfinished():
        deltas += engine.step()
        engine.scheduler.check()
    return deltas


def assert_idle(engine: Engine) -> None:
    """Nothing runs, and every block is free or cached."""
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


def greedy(**settings: object) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "ignore_eos": True, "max_tokens": 8, **settings})  # type: ignore[arg-type]


def test_max_tokens_ends_a_request_with_length(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    [completion] = generate(engine, [PROMPT], greedy(max_tokens=5))
    assert (len(completion.token_ids), completion.finish_reason) == (5, "length")
    assert_idle(engine)


def test_without_max_tokens_the_context_length_ends_it(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(max_model_len=40)
    [completion] = generate(engine, [PROMPT], greedy(max_tokens=None))
    assert (len(completion.token_ids), completion.finish_reason) == (35, "length")


def test_a_stop_token_ends_it_and_is_named(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    [free] = generate(engine, [PROMPT], greedy())
    stop = free.token_ids[3]
    [completion] = generate(engine, [PROMPT], greedy(stop_token_ids=(stop,)))
    assert completion.token_ids == free.token_ids[: free.token_ids.index(stop) + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_a_stop_string_is_cut_from_the_text(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    prompt = engine.text_model.tokenizer.encode("a stop string").ids
    letters = dict.fromkeys(range(64, 90), 30.0)
    [free] = generate(engine, [prompt], greedy(max_tokens=20, logit_bias=letters))
    stop = free.text[4:7]
    [cut] = generate(engine, [prompt], greedy(max_tokens=20, logit_bias=letters, stop=(stop,)))
    assert cut.text == free.text[: free.text.index(stop)]
    assert (cut.finish_reason, cut.stop_reason) == ("stop", stop)
    assert_idle(engine)


def test_every_choice_of_every_request_ends_exactly_once(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine(num_blocks=12, max_num_seqs=6, watermark=0.0)  # far too few blocks: preemption all the way
    for i in range(12):
        engine.add(Request(f"r{i}", PROMPT * (i % 5 + 1), greedy(n=i % 3 + 1, max_tokens=10 + i)))
    deltas = steps(engine)
    ends = [(delta.request_id, delta.choice) for delta in deltas if delta.finish_reason]
    assert sorted(ends) == sorted((f"r{i}", choice) for i in range(12) for choice in range(i % 3 + 1))
    assert engine.stats().num_preemptions > 0
    assert_idle(engine)


def test_abort_frees_the_blocks_within_a_step(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    engine.add(Request("stays", PROMPT, greedy(max_tokens=4)))
    engine.add(Request("goes", PROMPT * 10, greedy(n=3, max_tokens=100)))
    for _ in range(3):
        engine.step()
    engine.abort("goes")
    assert not engine.is_open("goes")
    assert {delta.request_id for delta in steps(engine)} == {"stays"}
    assert engine.stats().num_finished["abort"] == 3
    assert_idle(engine)


def test_the_same_seed_gives_the_same_text_whatever_the_batch(tiny_engine: EngineFactory) -> None:
    params = SamplingParams(temperature=0.9, top_p=0.9, seed=7, max_tokens=12, ignore_eos=True)
    [alone] = generate(tiny_engine(), [PROMPT], params)
    others = [SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, seed=i) for i in range(4)]
    crowd = generate(tiny_engine(), [[3], PROMPT, [4, 5], [9] * 40, PROMPT * 8], [others[0], params, *others[1:]])
    assert crowd[1].token_ids == alone.token_ids


def test_choices_of_one_request_differ(tiny_engine: EngineFactory) -> None:
    params = SamplingParams(temperature=1.5, seed=3, n=4, max_tokens=12, ignore_eos=True)
    completions = generate(tiny_engine(), [PROMPT], params)
    assert len({tuple(completion.token_ids) for completion in completions}) == 4


def test_a_request_resumes_where_it_was(tiny_engine: EngineFactory) -> None:
    params = SamplingParams(
        temperature=1.0, seed=11, n=2, max_tokens=20, ignore_eos=True, presence_penalty=0.5, repetition_penalty=1.2
    )
    whole = generate(tiny_engine(), [PROMPT], params)
    engine = tiny_engine()
    engine.add(
        Request("again", PROMPT, params, output_token_ids={0: whole[0].token_ids[:9], 1: whole[1].token_ids[:4]})
    )
    resumed = {0: Completion(0, 0), 1: Completion(0, 1)}
    for delta in steps(engine):
        resumed[delta.choice].extend(delta)
    assert resumed[0].token_ids == whole[0].token_ids[9:]
    assert resumed[1].token_ids == whole[1].token_ids[4:]
    assert_idle(engine)


def test_prompt_logprobs_do_not_depend_on_chunks_or_cache(tiny_engine: EngineFactory) -> None:
    prompt = [(7 * i) % 250 for i in range(60)]
    params = greedy(prompt_logprobs=2, logprobs=1, max_tokens=2)
    engine = tiny_engine(max_num_batched_tokens=16, max_num_seqs=4)
    [chunked], [again], [whole] = (generate(e, [prompt], params) for e in (engine, engine, tiny_engine()))
    assert len(whole.prompt_logprobs) == 60
    assert whole.prompt_logprobs[0] is None
    for a, b, c in zip(whole.prompt_logprobs[1:], chunked.prompt_logprobs[1:], again.prompt_logprobs[1:], strict=True):
        assert a is not None
        assert b is not None
        assert c is not None
        assert (a.token_id, len(a.top)) == (b.token_id, 2)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
        assert a.logprob == pytest.approx(c.logprob, abs=1e-4)
    assert [logprobs.token_id for logprobs in whole.logprobs] == whole.token_ids


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (Request("r", [], greedy()), "prompt"),
        (Request("r", [1, 99_999], greedy()), "prompt"),
        (Request("r", [1] * 64, greedy()), "prompt"),
        (Request("r", [1] * 60, greedy(max_tokens=8)), "max_tokens"),
        (Request("r", PROMPT, greedy(n=9)), "n"),
        (Request("r", PROMPT, greedy(logit_bias={5000: 1.0})), "logit_bias"),
        (Request("r", PROMPT, greedy(stop_token_ids=(5000,))), "stop_token_ids"),
        (Request("r", PROMPT, greedy(), output_token_ids={2: [1]}), "output_token_ids"),
        (Request("r", PROMPT, greedy(), output_token_ids={0: [5000]}), "output_token_ids"),
        (Request("r", PROMPT, greedy(max_tokens=None, n=2), output_token_ids={0: [1], 1: [5] * 59}), "prompt"),
    ],
)
def test_what_can_never_be_served_is_refused_by_name(tiny_engine: EngineFactory, request_: Request, param: str) -> None:
    engine = tiny_engine(max_model_len=64, max_num_seqs=8)
    with pytest.raises(InvalidRequest) as refused:
        engine.add(request_)
    assert refused.value.param == param
    assert_idle(engine)
    assert not engine.is_open("r")


def test_a_request_larger_than_the_whole_cache_is_refused(tiny_engine: EngineFactory) -> None:
    with pytest.raises(ValueError, match="kv_cache_gb"):
        tiny_engine(num_blocks=4, max_model_len=512)
    with pytest.raises(RequestTooLong):
        tiny_engine(num_blocks=4).add(Request("r", [1] * 49, greedy(max_tokens=1)))
