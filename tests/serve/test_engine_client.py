"""The ingress's calls to a replica: left early, they are cancelled."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from serve_paged.core.errors import EngineDead
from serve_paged.core.outputs import ChoiceDelta
from serve_paged.core.routing_table import RoutingConfig
from serve_paged.core.sampling_params import SamplingParams
from serve_paged.core.sequence import FinishReason
from serve_paged.serve.engine_client import EngineClient
from serve_paged.serve.engine_request import EngineRequest, with_seed
from serve_paged.serve.routing_desk import RoutingDesk
from tests.serve.fakes import delta

REQUEST = EngineRequest("r", [1], SamplingParams())


@dataclass
class FakeResponse:
    """What a streaming handle call returns."""

    chunks: list[list[ChoiceDelta]]
    cancelled: bool = False

    async def __aiter__(self) -> AsyncIterator[list[ChoiceDelta]]:
        for chunk in self.chunks:
            yield chunk

    def cancel(self) -> None:
        self.cancelled = True


def client_of(response: FakeResponse) -> EngineClient:
    method = SimpleNamespace(remote=lambda request: response)
    handle = SimpleNamespace(options=lambda stream: SimpleNamespace(generate=method))
    return EngineClient(handle, RoutingDesk(RoutingConfig()), drain_grace_s=0.0)


async def read(client: EngineClient, num_chunks: int) -> list[str]:
    """Read at most so many chunks, then close the stream."""
    stream = client.stream(REQUEST)
    found: list[str] = []
    async for chunk in stream:
        found += [item.text for item in chunk]
        if len(found) == num_chunks:
            break
    await stream.aclose()
    return found


def test_a_stream_left_early_is_cancelled() -> None:
    response = FakeResponse([[delta("a")], [delta("b")], [delta("c", FinishReason.STOP)]])
    assert asyncio.run(read(client_of(response), 2)) == ["a", "b"]
    assert response.cancelled


def test_a_stream_read_to_its_end_is_not_cancelled() -> None:
    response = FakeResponse([[delta("a")], [delta("b", FinishReason.STOP)]])
    assert asyncio.run(read(client_of(response), 9)) == ["a", "b"]
    assert not response.cancelled


@pytest.mark.parametrize("reason", [FinishReason.ERROR, FinishReason.ABORT])
def test_a_choice_that_the_engine_gave_up_is_an_error(reason: FinishReason) -> None:
    response = FakeResponse([[delta("a")], [delta("", reason)]])
    with pytest.raises(EngineDead):
        asyncio.run(read(client_of(response), 9))
    assert response.cancelled


def test_a_seed_is_drawn_only_where_there_is_none() -> None:
    drawn = {with_seed(SamplingParams()).seed for _ in range(3)}
    assert len(drawn) == 3
    assert with_seed(SamplingParams(seed=0)).seed == 0
