"""Several streams read as one: the prompts of one HTTP request run side by side."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


async def merge(streams: list[AsyncGenerator[Item, None]]) -> AsyncGenerator[tuple[int, Item], None]:
    """Items with the number of their stream, as they come. The first error ends all; closing this closes all."""
    if len(streams) == 1:  # nearly every request: no task, no queue
        async with aclosing(streams[0]) as stream:
            async for item in stream:
                yield 0, item
        return
    queue: asyncio.Queue[tuple[int, Item | _End]] = asyncio.Queue()
    tasks = [asyncio.create_task(_pump(index, stream, queue)) for index, stream in enumerate(streams)]
    num_open = len(tasks)
    try:
        while num_open:
            index, found = await queue.get()
            if not isinstance(found, _End):
                yield index, found
                continue
            if found.error is not None:
                raise found.error
            num_open -= 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(
    index: int, stream: AsyncGenerator[Item, None], queue: "asyncio.Queue[tuple[int, Item | _End]]"
) -> None:
    error: BaseException | None = None
    try:
        async with aclosing(stream):
            async for item in stream:
                queue.put_nowait((index, item))
    except Exception as caught:  # noqa: BLE001  (raised again by the reader)
        error = caught
    queue.put_nowait((index, _End(error)))
