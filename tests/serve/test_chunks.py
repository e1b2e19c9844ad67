"""When a replica sends what it holds."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.chunks import ChunkPolicy, chunked, merge_deltas
from tests.serve.fakes import delta

POLICY = ChunkPolicy()
QUIET = {"num_streams": 1, "first": False, "finished": False}
BUSY = {"num_streams": 8, "first": False, "finished": False}


def test_the_first_token_goes_at_once_however_busy_the_replica_is() -> None:
    assert POLICY.wait_s(1, 0.0, num_streams=100, first=True, finished=False) == 0.0


def test_a_quiet_replica_sends_every_token() -> None:
    assert POLICY.wait_s(1, 0.0, **QUIET) == 0.0


def test_a_busy_replica_waits_for_four_tokens() -> None:
    assert [POLICY.wait_s(n, 0.0, **BUSY) > 0 for n in (1, 2, 3, 4)] == [True, True, True, False]


def test_a_busy_replica_waits_no_longer_than_a_tenth_of_a_second() -> None:
    assert POLICY.wait_s(1, 0.04, **BUSY) == pytest.approx(0.06)
    assert POLICY.wait_s(1, 0.11, **BUSY) == 0.0


def test_the_end_of_a_choice_goes_at_once() -> None:
    assert POLICY.wait_s(1, 0.0, num_streams=100, first=False, finished=True) == 0.0


def test_merged_deltas_equal_the_single_ones() -> None:
    merged = merge_deltas(
        [delta("a"), delta("x", choice=1), delta("b"), delta("", FinishReason.STOP, stop_reason="END", token_ids=[7])]
    )
    assert [(found.choice, found.text, found.finish_reason) for found in merged] == [
        (0, "ab", FinishReason.STOP),
        (1, "x", None),
    ]
    assert merged[0].token_ids == [ord("a"), ord("b"), 7]
    assert merged[0].stop_reason == "END"


async def _tokens(text: str) -> AsyncGenerator[list[ChoiceDelta], None]:
    for char in text:
        yield [delta(char)]


async def _read(stream: AsyncGenerator[list[ChoiceDelta], None]) -> list[str]:
    return ["".join(found.text for found in chunk) async for chunk in stream]


def test_a_busy_stream_travels_in_groups_and_loses_nothing() -> None:
    async def run() -> list[str]:
        return await _read(chunked(_tokens("abcdefghijk"), POLICY, lambda: 8, lambda: 0.0))

    assert asyncio.run(run()) == ["a", "bcde", "fghi", "jk"]


def test_a_quiet_stream_travels_token_by_token() -> None:
    async def run() -> list[str]:
        return await _read(chunked(_tokens("abc"), POLICY, lambda: 1, lambda: 0.0))

    assert asyncio.run(run()) == ["a", "b", "c"]


def test_held_tokens_go_out_when_the_engine_stalls() -> None:
    async def steps() -> AsyncGenerator[list[ChoiceDelta], None]:
        for char in "ab":
            yield [delta(char)]
        await asyncio.Event().wait()

    async def run() -> list[str]:
        chunks = chunked(steps(), ChunkPolicy(max_wait_s=0.001), lambda: 8, lambda: 0.0)
        found = ["".join(item.text for item in await anext(chunks)) for _ in range(2)]
        await chunks.aclose()
        return found

    assert asyncio.run(run()) == ["a", "b"]


def test_closing_a_chunked_stream_closes_the_engine_stream_even_while_it_waits() -> None:
    closed: list[bool] = []

    async def steps() -> AsyncGenerator[list[ChoiceDelta], None]:
        try:
            for char in "ab":
                yield [delta(char)]
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def run() -> None:
        chunks = chunked(steps(), ChunkPolicy(max_wait_s=3600.0), lambda: 8, lambda: 0.0)
        await anext(chunks)
        waiting = asyncio.ensure_future(anext(chunks))
        for _ in range(10):  # let it take "b" and begin to wait for company
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    asyncio.run(run())
    assert closed == [True]


@pytest.mark.parametrize("between", range(4))
@pytest.mark.parametrize("before", range(4))
def test_a_second_cancellation_still_closes_the_engine_stream(before: int, between: int) -> None:
    closed: list[bool] = []
    stalled = asyncio.Event()

    async def steps() -> AsyncGenerator[list[ChoiceDelta], None]:
        try:
            for char in "ab":
                yield [delta(char)]
            await stalled.wait()
            yield [delta("c")]
        finally:
            closed.append(True)

    async def turns(num: int) -> None:
        for _ in range(num):
            await asyncio.sleep(0)

    async def run() -> list[bool]:
        chunks = chunked(steps(), ChunkPolicy(max_wait_s=3600.0), lambda: 8, lambda: 0.0)
        await anext(chunks)
        waiting = asyncio.ensure_future(anext(chunks))
        await turns(10)  # let it take "b" and begin to wait for company
        stalled.set()  # "c" comes just when the client leaves
        await turns(before)
        waiting.cancel()
        await turns(between)
        waiting.cancel()
        await asyncio.wait({waiting})
        await chunks.aclose()  # as the replica does; here the token may have won the race
        await turns(10)
        return list(closed)

    assert asyncio.run(run()) == [True]


def test_an_error_of_the_engine_reaches_the_reader() -> None:
    async def steps() -> AsyncGenerator[list[ChoiceDelta], None]:
        yield [delta("a")]
        raise RuntimeError("step failed")

    async def run() -> None:
        await _read(chunked(steps(), POLICY, lambda: 8, lambda: 0.0))

    with pytest.raises(RuntimeError, match="step failed"):
        asyncio.run(run())
