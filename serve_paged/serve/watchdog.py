"""Ends a replica whose engine has failed or hangs, at once: health checks would cost its requests seconds."""

import asyncio
import logging
import os
from collections.abc import Callable

from serve_paged.core.errors import EngineDead

logger = logging.getLogger("ray.serve")

EXIT_STATUS = 70  # EX_SOFTWARE of sysexits.h
PERIOD_S = 0.2


async def watch(check_health: Callable[[], None], end: Callable[[int], None] = os._exit) -> None:
    """Check for ever; the first `EngineDead` ends the process, whatever its threads are doing.

    Streams are told before, if their event loop still runs; either way they go on elsewhere (resume.py), and Ray Serve
    starts another replica.
    """
    while True:
        try:
            check_health()
        except EngineDead as error:
            logger.critical("this replica ends: %s", error)
            end(EXIT_STATUS)
            return
        await asyncio.sleep(PERIOD_S)
