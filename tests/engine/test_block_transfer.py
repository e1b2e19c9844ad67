"""A request moves to another engine, and its blocks with it."""

import dataclasses

import pytest

from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.block_transfer import BlockBundle, IncompatibleBlocks
from serve_paged.engine.engine import Engine, Request
from serve_paged.engine.offline import generate
from tests.engine.conftest import EngineFactory

PROMPT = [(7 * i) % 97 + 3 for i in range(100)]
PARAMS = SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True)


def run(engine: Engine, num_tokens: int) -> list[int]:
    """Step until the only request has so many new tokens."""
    tokens: list[int] = []
    while len(tokens) < num_tokens:
        tokens += [token for delta in engine.step() for token in delta.token_ids]
        engine.scheduler.check()
    return tokens


def exported(engine: Engine) -> BlockBundle:
    """The blocks of the only request, as an engine gives them that computes slowly."""
    engine._costs.token_s = 1.0
    bundle = engine.export_request("r")
    assert bundle is not None
    return bundle


def test_a_request_goes_on_elsewhere_without_computing_its_blocks_again(tiny_engine: EngineFactory) -> None:
    whole = generate(tiny_engine(), [PROMPT], PARAMS)[0].token_ids
    source, target = tiny_engine(), tiny_engine()
    source.add(Request("r", PROMPT, PARAMS))
    tokens = run(source, 20)
    bundle = exported(source)
    assert len(bundle.hashes) == (100 + 20 - 1) // 16
    assert target.import_blocks(bundle) == len(bundle.hashes)
    target.add(Request("r", PROMPT, PARAMS, output_token_ids={0: tokens}))
    tokens += run(target, 20)
    assert tokens == whole
    assert target.stats().num_swapped_in_blocks == len(bundle.hashes)


def test_blocks_that_are_there_already_are_not_taken_in_again(tiny_engine: EngineFactory) -> None:
    source, target = tiny_engine(), tiny_engine()
    for engine in (source, target):
        engine.add(Request("r", PROMPT, PARAMS))
        run(engine, 8)
    bundle = exported(source)
    assert target.import_blocks(bundle) == 0


def test_no_more_is_taken_in_than_there_is_room_for(tiny_engine: EngineFactory) -> None:
    source, target = tiny_engine(), tiny_engine(num_host_blocks=2)
    source.add(Request("r", PROMPT, PARAMS))
    run(source, 8)
    bundle = exported(source)
    assert target.import_blocks(bundle) == 2
    target.scheduler.check()


def test_blocks_of_another_kind_of_cache_are_refused(tiny_engine: EngineFactory) -> None:
    source, target = tiny_engine(), tiny_engine(block_size=32)
    source.add(Request("r", PROMPT, PARAMS))
    run(source, 8)
    bundle = exported(source)
    with pytest.raises(IncompatibleBlocks, match="32"):
        target.import_blocks(bundle)


def test_blocks_that_are_computed_faster_than_moved_stay(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    engine.add(Request("r", PROMPT, PARAMS))
    run(engine, 8)
    engine._costs.token_s = 1e-9
    assert engine.export_request("r") is None


def test_a_request_that_is_not_running_has_nothing_to_export(tiny_engine: EngineFactory) -> None:
    assert tiny_engine().export_request("unknown") is None


def test_a_chain_hashed_by_the_caller_is_used_if_its_root_is_ours(tiny_engine: EngineFactory) -> None:
    engine = tiny_engine()
    engine.add(Request("r", PROMPT, PARAMS))
    (seq,) = engine._choices
    again = Request("again", PROMPT, PARAMS, cache_root=seq.cache_root, block_hashes=tuple(seq.block_hashes))
    of_another_model = dataclasses.replace(again, request_id="other", cache_root=b"x", block_hashes=(b"wrong",) * 6)
    for request in (again, of_another_model):
        engine.add(request)
        assert list(engine._choices)[-1].block_hashes == seq.block_hashes
