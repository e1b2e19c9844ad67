"""The engine behind asyncio streams: concurrency, closing, failure."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

import pytest

from serve_paged.core.errors import EngineDead, InvalidRequest
from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.engine.async_engine import AsyncEngine
from serve_paged.engine.engine import Engine, Request
from tests.engine.conftest import EngineFactory

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)
ONE_TOKEN = SamplingParams(temperature=0.0, max_tokens=1)
ENDLESS = SamplingParams(temperature=0.0, ignore_eos=True)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run with a limit, so that a lost wake-up fails instead of hanging."""
    return asyncio.run(asyncio.wait_for(coroutine, timeout=60))


async def collect(engine: AsyncEngine, request: Request) -> list[int]:
    return [token async for deltas in engine.generate(request) for delta in deltas for token in delta.token_ids]


async def assert_idle(engine: AsyncEngine) -> None:
    """Nothing but a last small request runs, and every block is free or cached."""
    await collect(engine, Request("last", [1], ONE_TOKEN))  # served after all that was asked for before
    stats = engine.stats()
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_blocks == stats.num_blocks


@pytest.fixture(params=[False, True], ids=["waiting", "ahead"])
def engine(tiny_engine: EngineFactory, request: pytest.FixtureRequest) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(tiny_engine(run_ahead=request.param))
    yield engine
    engine.close()


def test_concurrent_requests_stream_side_by_side(engine: AsyncEngine) -> None:
    async def main() -> None:
        requests = [Request(f"r{i}", [i + 1, i + 2], PARAMS) for i in range(10)]
        together = await asyncio.gather(*(collect(engine, request) for request in requests))
        alone = [await collect(engine, request) for request in requests]
        assert together == alone
        await assert_idle(engine)

    run(main())


def test_all_choices_come_through_one_stream(engine: AsyncEngine) -> None:
    async def main() -> None:
        params = SamplingParams(temperature=1.0, n=3, seed=1, max_tokens=5, ignore_eos=True)
        ends = []
        async for deltas in engine.generate(Request("r", [1, 2], params)):
            ends += [delta.choice for delta in deltas if delta.finish_reason]
        assert sorted(ends) == [0, 1, 2]

    run(main())


def test_closing_the_stream_aborts_and_frees_the_blocks(engine: AsyncEngine) -> None:
    async def main() -> None:
        stream = engine.generate(Request("r", [1, 2, 3], ENDLESS))
        await anext(stream)
        await stream.aclose()
        await assert_idle(engine)
        assert engine.stats().num_finished["abort"] == 1

    run(main())


def test_cancelling_the_task_aborts(engine: AsyncEngine) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def listen() -> None:
            async for _ in engine.generate(Request("r", [1, 2, 3], ENDLESS)):
                started.set()

        task = asyncio.create_task(listen())
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_idle(engine)
        assert engine.stats().num_finished["abort"] == 1

    run(main())


def test_a_bad_request_fails_alone(engine: AsyncEngine) -> None:
    async def main() -> None:
        good = asyncio.create_task(collect(engine, Request("good", [1, 2], PARAMS)))
        with pytest.raises(InvalidRequest):
            await collect(engine, Request("bad", [], PARAMS))
        assert len(await good) == 8

    run(main())


class FailingEngine(Engine):
    """Raises in its third step."""

    def step(self) -> list[Any]:
        if self.stats().num_steps == 2:
            raise RuntimeError("the memory is on fire")
        return super().step()


def test_a_step_that_raises_ends_every_open_request(tiny_engine: EngineFactory) -> None:
    failing = tiny_engine()
    failing.__class__ = FailingEngine
    engine = AsyncEngine(failing)

    async def main() -> None:
        requests = [Request(f"r{i}", [i + 1], PARAMS) for i in range(3)]
        results = await asyncio.gather(*(collect(engine, r) for r in requests), return_exceptions=True)
        assert all(isinstance(result, EngineDead) and "on fire" in str(result) for result in results)
        with pytest.raises(EngineDead):
            engine.check_health()
        with pytest.raises(EngineDead):
            await collect(engine, Request("late", [1], PARAMS))

    run(main())


class RefusingEngine(Engine):
    """Fails, as it never should, on a certain request."""

    def add(self, request: Request) -> None:
        if request.request_id == "poison":
            raise MemoryError("no room for this one")
        super().add(request)


def test_a_fault_while_adding_is_told_to_everybody_who_waits(tiny_engine: EngineFactory) -> None:
    refusing = tiny_engine()
    refusing.__class__ = RefusingEngine
    engine = AsyncEngine(refusing)

    async def main() -> None:
        names = ["before", "poison", "after", "later"]
        results = await asyncio.gather(
            *(collect(engine, Request(name, [1], ENDLESS)) for name in names), return_exceptions=True
        )
        assert all(isinstance(result, EngineDead) for result in results)

    run(main())


def test_closing_a_stream_of_a_dead_engine_is_quiet(tiny_engine: EngineFactory) -> None:
    engine = AsyncEngine(tiny_engine())

    async def main() -> None:
        stream = engine.generate(Request("r", [1], ENDLESS))
        await anext(stream)
        await asyncio.to_thread(engine.close)
        await stream.aclose()

    run(main())


def test_closing_the_engine_ends_open_streams(tiny_engine: EngineFactory) -> None:
    engine = AsyncEngine(tiny_engine())

    async def main() -> None:
        started = asyncio.Event()

        async def listen() -> None:
            async for _ in engine.generate(Request("r", [1], ENDLESS)):
                started.set()

        task = asyncio.create_task(listen())
        await started.wait()
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineDead):
            await task

    run(main())


def test_a_step_that_hangs_is_found_while_it_hangs_and_not_before(
    tiny_engine: EngineFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, now = tiny_engine(), [0.0]
    entered, leave = threading.Event(), threading.Event()
    step = inner.step

    def hanging_step() -> list[ChoiceDelta]:
        entered.set()
        assert leave.wait(60)
        return step()

    monkeypatch.setattr(inner, "step", hanging_step)
    engine = AsyncEngine(inner, step_timeout_s=5.0, clock=lambda: now[0])

    async def main() -> None:
        request = asyncio.ensure_future(collect(engine, Request("r", [1], ONE_TOKEN)))
        await asyncio.to_thread(entered.wait, 60)
        now[0] = 5.0
        engine.check_health()
        now[0] = 5.1
        with pytest.raises(EngineDead, match="has taken more than"):
            engine.check_health()
        leave.set()
        await request
        engine.check_health()

    run(main())
    engine.close()
