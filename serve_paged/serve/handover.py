"""A replica that is being stopped gives its requests away, and their blocks with them.

Ray tells a replica that it drains only once the drain is over, and calls reach running replicas alone. What still goes
out are the replica's own calls and its open streams. So the answers to its reports tell it to leave; it then puts a
request's blocks into Ray's object store, sends the reference as the last thing of the stream, and keeps the stream
open, and with it itself alive, until the ingress has the first token from elsewhere and lets go.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import ray

from serve_paged.core.errors import EngineDead

logger = logging.getLogger("ray.serve")

FETCH_TIMEOUT_S = 20.0
KEEP_S = 60.0  # how long a replica waits at most for the receiver of its blocks


@dataclass(frozen=True, slots=True)
class Handover:
    """The last thing that a leaving replica says in a stream."""

    blocks: Any  # reference to a `BlockBundle`; None where computing them again is cheaper


@dataclass(frozen=True, slots=True)
class ReportAnswer:
    """What an ingress answers to a replica's report."""

    wants_snapshot: bool = False  # of the prefix cache: something that was told before is missing
    leave_after_s: float | None = None  # Ray stops this replica: give away what has not ended by then


class ReplicaDeparted(EngineDead):
    """The replica takes no more requests and will stop soon: what is left of the request has to move."""

    def __init__(self, blocks: Any = None, release: Callable[[], None] = lambda: None) -> None:
        """`blocks` as in `Handover`; `release` lets the replica go."""
        super().__init__("the replica takes no more requests")
        self.blocks = blocks
        self.release = release


class Leave:
    """When a replica's requests have to be gone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._at = float("inf")

    def ask(self, after_s: float) -> None:
        """Told again, the first time counts."""
        self._at = min(self._at, self._clock() + after_s)

    @property
    def is_due(self) -> bool:
        """Whether it is time."""
        return self._clock() >= self._at


async def fetch(blocks: Any, take_in: Callable[[Any], Awaitable[int]]) -> None:
    """Get what another replica has handed over. If that fails, the blocks are computed again."""
    try:
        async with asyncio.timeout(FETCH_TIMEOUT_S):
            num_blocks = await take_in(await blocks)
        logger.info("took in %d blocks of another replica", num_blocks)
    except (ray.exceptions.RayError, TimeoutError, ValueError) as error:
        logger.warning("blocks of another replica could not be taken in: %r", error)
