"""Streams that survive the loss of a replica: what is left of a request goes to another one."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, replace

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError, RayTaskError, WorkerCrashedError

from serve_paged.core.errors import EngineDead
from serve_paged.core.outputs import ChoiceDelta
from serve_paged.serve.engine_request import EngineRequest
from serve_paged.serve.handover import ReplicaDeparted
from serve_paged.serve.token_log import TokenLog

logger = logging.getLogger("ray.serve")  # so that it lands in the replica's own log file

Chunks = AsyncGenerator[list[ChoiceDelta], None]


@dataclass(frozen=True, slots=True)
class ResumePolicy:
    """How long to go on when replicas are lost."""

    max_resumes: int  # per request: one that kills whatever runs it must not kill them all
    recovery_s: float  # to the first token after a loss; where no replica is left, one has to start
    backoff_s: float = 0.05  # before the second resume in a row, then four times as long: Ray's router may take a
    # moment to learn that a replica is dead

    def wait_s(self, num_resumes: int) -> float:
        """Seconds to wait before resume number `num_resumes`, counted from 1 since the last token."""
        return 0.0 if num_resumes <= 1 else self.backoff_s * 4 ** (num_resumes - 2)


def is_loss(error: Exception) -> bool:
    """Whether an attempt failed because its replica did, not because of the request."""
    cause = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return isinstance(cause, EngineDead | RayActorError | WorkerCrashedError | NodeDiedError | ObjectLostError)


async def resumed(request: EngineRequest, attempt: Callable[[EngineRequest], Chunks], policy: ResumePolicy) -> Chunks:
    """One unbroken stream out of as many attempts as it takes.

    `attempt(request)` streams one replica's chunks; closing this closes it. Raises what the last attempt raised when
    it was no loss, or one too many; TimeoutError when no token came within `recovery_s` of a loss.
    """
    log = TokenLog(request)
    num_resumes = num_in_a_row = 0
    current = request
    with ExitStack() as departed:  # replicas that wait until somebody has their blocks
        while True:
            try:
                async with aclosing(
                    _with_first_in_time(attempt(current), policy.recovery_s if num_resumes else None)
                ) as chunks:
                    async for chunk in chunks:
                        num_in_a_row = 0
                        departed.close()
                        yield [log.take(delta) for delta in chunk]
                return
            except Exception as error:
                blocks = None
                if isinstance(error, ReplicaDeparted):
                    blocks = error.blocks
                    departed.callback(error.release)
                if log.is_complete:  # lost behind the last token: there is nothing left to resume
                    return
                if not is_loss(error) or num_resumes == policy.max_resumes:
                    raise
                num_resumes, num_in_a_row = num_resumes + 1, num_in_a_row + 1
                logger.warning("request %s: lost its replica, resume %d: %r", request.request_id, num_resumes, error)
            await asyncio.sleep(policy.wait_s(num_in_a_row))
            current = replace(log.remainder(num_resumes), blocks=blocks)


async def _with_first_in_time(chunks: Chunks, timeout_s: float | None) -> Chunks:
    """The same chunks; TimeoutError if the first takes longer."""
    async with aclosing(chunks):
        async with asyncio.timeout(timeout_s):
            first = await anext(chunks, None)
        if first is not None:
            yield first
            async for chunk in chunks:
                yield chunk
