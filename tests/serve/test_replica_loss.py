"""Replicas killed under load, with real Ray: every stream ends with the text of an undisturbed run."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pytest
import yaml

from tests.serve.server import ROOT, Server, free_port, running_server

pytestmark = pytest.mark.slow

NUM_STREAMS = 40
RECOVERY_TIMEOUT_S = 180.0
# What has to go on where it was: greedy, seeded draws with penalties, stop strings, parallel choices, logprobs.
KINDS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8, "seed": 11, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    {"temperature": 0.0, "stop": ["the end of it", "zzz"]},
    {"temperature": 0.9, "seed": 5, "n": 2},
    {"temperature": 0.0, "logprobs": 2, "extra_body": {"repetition_penalty": 1.2}},
]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The shipped configuration with two replicas, in float32: text does not depend on what shares a step."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    application["args"] |= {"dtype": "float32", "kv_cache_gb": 0.5, "swap_space_gb": 0.1, "threads": 1}
    replicas = {"num_replicas": 2, "health_check_period_s": 1, "ray_actor_options": {"num_cpus": 0.5}}
    application["deployments"][1] |= replicas
    with running_server(config, tmp_path_factory.mktemp("fleet")) as running:
        yield running


@dataclass
class Answer:
    """What one client saw."""

    texts: dict[int, str] = field(default_factory=dict)
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    num_tokens: int = 0
    largest_gap_s: float = 0.0

    @property
    def content(self) -> tuple[Any, ...]:
        """All that a kill must not change. Log probabilities are rounded: only their text has to be the same."""
        return self.texts, [token for token, _ in self.logprobs], self.finish_reasons, self.num_tokens


async def ask(client: openai.AsyncOpenAI, model: str, index: int, started: asyncio.Event) -> Answer:
    """Stream one answer; `started` is set once it is under way."""
    answer, last = Answer(), time.monotonic()
    stream = await client.completions.create(
        model=model,
        prompt=f"Number {index}. Once upon a time",
        max_tokens=48 + index,
        stream=True,
        stream_options={"include_usage": True},
        **KINDS[index % len(KINDS)],
    )
    async for chunk in stream:
        now = time.monotonic()
        answer.largest_gap_s, last = max(answer.largest_gap_s, now - last), now
        if chunk.usage:
            answer.num_tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            answer.texts[choice.index] = answer.texts.get(choice.index, "") + choice.text
            if choice.logprobs:
                answer.logprobs += zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, strict=True)
            if choice.finish_reason:
                answer.finish_reasons[choice.index] = choice.finish_reason
        started.set()
    return answer


async def ask_all(server: Server, model: str, num_kills: int, seed: int) -> list[Answer]:
    """All streams together; after each of `num_kills` random numbers of started streams a replica is killed."""
    order = random.Random(seed)
    client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=RECOVERY_TIMEOUT_S)
    started = [asyncio.Event() for _ in range(NUM_STREAMS)]
    async with client:
        tasks = [asyncio.create_task(ask(client, model, i, started[i])) for i in range(NUM_STREAMS)]
        for first in sorted(order.sample(range(NUM_STREAMS), num_kills)):
            await asyncio.gather(*(event.wait() for event in started[: first + 1]))
            os.kill(order.choice(replica_processes(server)).pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)


def replica_processes(server: Server) -> list[psutil.Process]:
    """The engine replicas that are alive."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    return [p for p in family if p.status() != psutil.STATUS_ZOMBIE and "EngineReplica" in " ".join(p.cmdline())]


def wait_for_replicas(server: Server, number: int) -> float:
    """Seconds until so many replicas exist and the server is healthy."""
    begin = time.monotonic()
    while len(replica_processes(server)) < number or httpx.get(f"{server.url}/health", timeout=30).status_code != 200:
        assert time.monotonic() - begin < RECOVERY_TIMEOUT_S
        time.sleep(0.2)
    return time.monotonic() - begin


@pytest.fixture(scope="module")
def fleet_model(fleet: Server) -> str:
    return httpx.get(f"{fleet.url}/v1/models").json()["data"][0]["id"]


@pytest.fixture(scope="module")
def undisturbed(fleet: Server, fleet_model: str) -> list[Answer]:
    return asyncio.run(ask_all(fleet, fleet_model, num_kills=0, seed=0))


@pytest.mark.parametrize(("num_kills", "seed"), [(1, 1), (2, 2)], ids=["one replica", "two in a row"])
def test_no_stream_notices_that_replicas_were_killed(
    fleet: Server, fleet_model: str, undisturbed: list[Answer], num_kills: int, seed: int
) -> None:
    wait_for_replicas(fleet, 2)
    answers = asyncio.run(ask_all(fleet, fleet_model, num_kills, seed))
    assert [answer.content for answer in answers] == [answer.content for answer in undisturbed]
    gap = max(answer.largest_gap_s for answer in answers)
    print(f"{num_kills} killed: largest gap {gap:.2f} s, undisturbed {max(a.largest_gap_s for a in undisturbed):.2f} s")
