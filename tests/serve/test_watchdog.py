"""A replica whose engine is dead ends with an error status."""

import asyncio

from serve_paged.core.errors import EngineDead
from serve_paged.serve.watchdog import EXIT_STATUS, watch


def test_the_process_ends_with_an_error_when_the_engine_is_found_dead() -> None:
    checks = iter([None, None, EngineDead("a step raised")])
    statuses: list[int] = []

    def check_health() -> None:
        if (error := next(checks)) is not None:
            raise error

    asyncio.run(watch(check_health, statuses.append))
    assert statuses == [EXIT_STATUS]
    assert EXIT_STATUS != 0
    assert next(checks, "all asked") == "all asked"
