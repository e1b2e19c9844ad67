"""When a replica sends what it has of a stream, and how several deltas become one.

The serving path's cost is per chunk, not per token: with few streams every token travels at once, with many they
travel in small groups.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, replace

from serve_paged.core.outputs import ChoiceDelta


@dataclass(frozen=True, slots=True)
class ChunkPolicy:
    """Groups the tokens of one stream. Tokens of parallel choices count once: they come in one step."""

    few_streams: int = 8  # below this many open streams nothing is held
    max_tokens: int = 4
    max_wait_s: float = 0.1

    def wait_s(self, num_tokens: int, held_for_s: float, *, num_streams: int, first: bool, finished: bool) -> float:
        """Seconds that `num_tokens` held tokens of a choice may still wait for company; 0 sends them now.

        `first`: nothing of this stream was sent yet; `finished`: a choice has ended, with news its client acts on.
        """
        if first or finished or num_streams < self.few_streams or num_tokens >= self.max_tokens:
            return 0.0
        return max(0.0, self.max_wait_s - held_for_s)


def merge_deltas(deltas: list[ChoiceDelta]) -> list[ChoiceDelta]:
    """One delta per choice, in order of first appearance, equal to all its deltas one after the other."""
    merged: dict[int, ChoiceDelta] = {}
    for delta in deltas:
        earlier = merged.get(delta.choice)
        merged[delta.choice] = delta if earlier is None else _join(earlier, delta)
    return list(merged.values())


def _join(earlier: ChoiceDelta, later: ChoiceDelta) -> ChoiceDelta:
    return replace(
        later,
        token_ids=earlier.token_ids + later.token_ids,
        text=earlier.text + later.text,
        logprobs=earlier.logprobs + later.logprobs,
        prompt_logprobs=earlier.prompt_logprobs + later.prompt_logprobs,
        num_prompt_tokens=max(earlier.num_prompt_tokens, later.num_prompt_tokens),
        num_cached_tokens=max(earlier.num_cached_tokens, later.num_cached_tokens),
    )


async def chunked(
    steps: AsyncGenerator[list[ChoiceDelta], None],
    policy: ChunkPolicy,
    num_streams: Callable[[], int],
    clock: Callable[[], float],
) -> AsyncGenerator[list[ChoiceDelta], None]:
    """Pass on an engine's stream in chunks. Closing this closes `steps`.

    `num_streams` tells how many streams are open now, this one included; `clock` gives seconds.
    """
    held: list[ChoiceDelta] = []
    held_since = 0.0
    first = True
    upcoming: asyncio.Future[list[ChoiceDelta] | None] | None = None
    try:
        while True:
            step = await (anext(steps, None) if upcoming is None else upcoming)
            upcoming = None
            if step is None:
                break
            if not held:
                held_since = clock()
            held = merge_deltas(held + step)
            wait_s = policy.wait_s(
                max(len(delta.token_ids) for delta in held),
                clock() - held_since,
                num_streams=num_streams(),
                first=first,
                finished=any(delta.finish_reason is not None for delta in step),
            )
            if wait_s > 0:
                upcoming = asyncio.ensure_future(anext(steps, None))
                done, _ = await asyncio.wait({upcoming}, timeout=wait_s)
                if done:
                    continue
            yield held
            held, first = [], False
        if held:
            yield held
    finally:
        if upcoming is None:
            await steps.aclose()
        else:  # goes on by itself when this is cancelled a second time, while it waits
            await asyncio.shield(_close(steps, upcoming))


async def _close(
    steps: AsyncGenerator[list[ChoiceDelta], None], upcoming: asyncio.Future[list[ChoiceDelta] | None]
) -> None:
    """Close a stream that a task of ours may still be reading: it must have let go of it first."""
    upcoming.cancel()
    await asyncio.wait({upcoming})
    await steps.aclose()
