"""A replica's side of routing: sends its reports to every ingress, as often as there is something to tell."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from serve_paged.core.errors import EngineDead
from serve_paged.core.replica_report import ReplicaReport

logger = logging.getLogger("ray.serve")

Compose = Callable[[bool], Awaitable[ReplicaReport]]  # with a snapshot?
Send = Callable[[ReplicaReport], Awaitable[bool]]  # to every ingress; whether one of them wants a snapshot


@dataclass(frozen=True, slots=True)
class ReportPolicy:
    """How often to report, in seconds: each delivery costs an ingress milliseconds of CPU time."""

    busy_s: float = 0.25  # while requests run
    idle_s: float = 1.0  # a sign of life


async def keep_reporting(compose: Compose, send: Send, policy: ReportPolicy) -> None:
    """Report until the engine is dead.

    An ingress that could not be reached has missed a batch of events, notices, and asks for a snapshot.
    """
    with_snapshot = False
    while True:
        try:
            report = await compose(with_snapshot)
        except EngineDead:  # the health check sees to the rest
            return
        try:
            with_snapshot = await send(report)
        except Exception as error:  # noqa: BLE001  (whatever Ray raises while ingresses come and go)
            logger.warning("a report did not reach every ingress: %r", error)
        await asyncio.sleep(policy.busy_s if report.load.num_seqs else policy.idle_s)
