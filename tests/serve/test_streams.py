"""Several streams read as one."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve_paged.serve.streams import merge


async def _count(n: int, closed: list[str], name: str) -> AsyncGenerator[str, None]:
    try:
        for index in range(n):
            yield f"{name}{index}"
            await asyncio.sleep(0)
    finally:
        closed.append(name)


async def _forever(closed: list[str], name: str) -> AsyncGenerator[str, None]:
    try:
        while True:
            yield name
            await asyncio.sleep(0)
    finally:
        closed.append(name)


async def _broken() -> AsyncGenerator[str, None]:
    yield "x"
    raise RuntimeError("broken")


@pytest.mark.parametrize("num_streams", [1, 3])
def test_every_item_arrives_in_order_with_the_number_of_its_stream(num_streams: int) -> None:
    async def run() -> list[tuple[int, str]]:
        return [found async for found in merge([_count(4, [], "abc"[i]) for i in range(num_streams)])]

    found = asyncio.run(run())
    for number in range(num_streams):
        assert [item for index, item in found if index == number] == [f"{'abc'[number]}{i}" for i in range(4)]


@pytest.mark.parametrize("names", ["a", "ab"])
def test_closing_closes_every_stream(names: str) -> None:
    closed: list[str] = []

    async def run() -> None:
        merged = merge([_forever(closed, name) for name in names])
        await anext(merged)
        await merged.aclose()

    asyncio.run(run())
    assert sorted(closed) == list(names)


def test_an_error_of_one_stream_ends_all() -> None:
    closed: list[str] = []

    async def run() -> None:
        async for _ in merge([_broken(), _forever(closed, "a")]):
            pass

    with pytest.raises(RuntimeError, match="broken"):
        asyncio.run(run())
    assert closed == ["a"]
