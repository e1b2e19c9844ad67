"""A replica's reports: sent for ever, with a snapshot when somebody asked for one."""

import asyncio
from typing import Any

import pytest

from serve_paged.core.errors import EngineDead
from serve_paged.core.load_view import LoadReport, ReplicaCapacity
from serve_paged.core.replica_report import ReplicaReport
from serve_paged.serve.reporter import ReportPolicy, keep_reporting

LOAD = LoadReport(1, 0, 0, 0, 0.1, frozenset())
REPORT = ReplicaReport("a", ReplicaCapacity(1, 1, 0.1), LOAD, None, 0)


def snapshots_sent(answers: list[Any]) -> list[bool]:
    """Whether each report had a snapshot, if the ingresses answer like this; then the engine dies."""
    asked: list[bool] = []

    async def compose(with_snapshot: bool) -> ReplicaReport:
        if len(asked) == len(answers):
            raise EngineDead("it is over")
        asked.append(with_snapshot)
        return REPORT

    async def send(report: ReplicaReport) -> bool:
        answer = answers[len(asked) - 1]
        if isinstance(answer, Exception):
            raise answer
        return bool(answer)

    asyncio.run(keep_reporting(compose, send, ReportPolicy(busy_s=0, idle_s=0)))
    return asked


def test_a_snapshot_follows_when_an_ingress_asks_for_one() -> None:
    assert snapshots_sent([False, True, False]) == [False, False, True]


def test_reports_go_on_when_no_ingress_is_there_or_sending_fails() -> None:
    assert snapshots_sent([False, RuntimeError("no route"), True, False]) == [False, False, False, True]


def test_a_request_for_a_snapshot_outlives_a_failed_report() -> None:
    assert snapshots_sent([True, RuntimeError("no route"), False]) == [False, True, True]


@pytest.mark.parametrize(("num_seqs", "expected"), [(0, 7.0), (1, 3.0)])
def test_a_busy_replica_reports_more_often(num_seqs: int, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise EngineDead("enough")

    async def compose(with_snapshot: bool) -> ReplicaReport:
        load = LoadReport(1, 0, num_seqs, 0, 0.1, frozenset())
        return ReplicaReport("a", ReplicaCapacity(1, 1, 0.1), load, None, 0)

    async def send(report: ReplicaReport) -> bool:
        return False

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(EngineDead):
        asyncio.run(keep_reporting(compose, send, ReportPolicy(busy_s=3.0, idle_s=7.0)))
    assert slept == [expected]
