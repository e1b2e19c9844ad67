"""Replicas killed and drained under load, with real Ray: every stream ends with the text of an undisturbed run."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import openai
import psutil
import pytest
import ray.serve
import yaml
from ray.serve.schema import ServeDeploySchema

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


@dataclass
class Fleet:
    """A server with two replicas, and the means to disturb it."""

    server: Server
    config: dict[str, Any]

    def replicas(self) -> list[psutil.Process]:
        """The engine replicas that are alive."""
        family = psutil.Process(self.server.process.pid).children(recursive=True)
        return [p for p in family if p.status() != psutil.STATUS_ZOMBIE and "EngineReplica" in " ".join(p.cmdline())]

    def kill(self, order: random.Random) -> None:
        """One of them, at once."""
        os.kill(order.choice(self.replicas()).pid, signal.SIGKILL)

    def deploy(self, **changes: Any) -> None:
        """Change the replicas' deployment, as `serve deploy` does."""
        self.config["applications"][0]["deployments"][1] |= changes
        client = ray.serve.context._get_global_client()
        client.deploy_apps(ServeDeploySchema.model_validate(self.config))

    def wait(self, number: int) -> None:
        """Until so many replicas exist, all of them take requests, and the server is healthy."""
        begin = time.monotonic()
        while not (self._num_running() == len(self.replicas()) == number and self._is_healthy()):
            assert time.monotonic() - begin < RECOVERY_TIMEOUT_S
            time.sleep(0.2)

    def num_moves(self, answer: "Answer") -> int:
        """How often a stream went on on another replica."""
        if not answer.routing_id:
            return 0
        told = httpx.get(f"{self.server.url}/debug/routing/{answer.routing_id}", timeout=30)
        return len(told.json()["decisions"]) - 1

    def _num_running(self) -> int:
        application = ray.serve.status().applications["serve_paged"]
        return application.deployments["EngineReplica"].replica_states.get("RUNNING", 0)

    def _is_healthy(self) -> bool:
        return httpx.get(f"{self.server.url}/health", timeout=30).status_code == 200


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The shipped configuration with two replicas, in float32: text does not depend on what shares a step.

    A replica that is stopped is given 8 s, far less than the streams last, and they leave it after 1 s.
    """
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    application["args"] |= {"dtype": "float32", "kv_cache_gb": 0.5, "swap_space_gb": 0.1, "threads": 1}
    application["args"]["ingress"] |= {"drain_grace_s": 1.0}
    application["deployments"][1] |= {
        "num_replicas": 2,
        "health_check_period_s": 1,
        "graceful_shutdown_timeout_s": 8,
        "ray_actor_options": {"num_cpus": 0.5},
    }
    with running_server(config, tmp_path_factory.mktemp("fleet")) as running:
        ray.init(address=running.ray_address, log_to_driver=False, logging_level="ERROR")
        yield Fleet(running, config)
        ray.shutdown()


Disturbance = Callable[[Fleet], None]


@dataclass
class Answer:
    """What one client saw."""

    texts: dict[int, str] = field(default_factory=dict)
    logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish_reasons: dict[int, str] = field(default_factory=dict)
    num_tokens: int = 0
    largest_gap_s: float = 0.0
    routing_id: str = ""

    @property
    def content(self) -> tuple[Any, ...]:
        """All that a kill must not change. Log probabilities are rounded: only their text has to be the same."""
        return self.texts, [token for token, _ in self.logprobs], self.finish_reasons, self.num_tokens


async def ask(client: openai.AsyncOpenAI, model: str, index: int, salt: str, started: asyncio.Event) -> Answer:
    """Stream one answer; `started` is set once it is under way. Blocks are found again under the same `salt` only."""
    kind = KINDS[index % len(KINDS)]
    extra = {"ignore_eos": True, "cache_salt": salt, **kind.get("extra_body", {})}
    answer, last = Answer(), time.monotonic()
    stream = await client.completions.create(
        model=model,
        prompt=f"Number {index}. " + "Once upon a time there was a fox. " * 5,  # a few blocks that no other has
        max_tokens=48 + index,
        stream=True,
        stream_options={"include_usage": True},
        **kind | {"extra_body": extra},
    )
    answer.routing_id = stream.response.headers.get("X-Routing-Id", "")  # none before the replicas have reported
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


async def ask_all(fleet: Fleet, model: str, salt: str, disturb: Disturbance, times: list[int]) -> list[Answer]:
    """All streams together; the fleet is disturbed each time that as many of them as in `times` have begun."""
    url = f"{fleet.server.url}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=RECOVERY_TIMEOUT_S) as client:
        started = [asyncio.Event() for _ in range(NUM_STREAMS)]
        tasks = [asyncio.create_task(ask(client, model, i, salt, started[i])) for i in range(NUM_STREAMS)]
        for num_started in times:
            await asyncio.gather(*(event.wait() for event in started[:num_started]))
            await asyncio.to_thread(disturb, fleet)
        return await asyncio.gather(*tasks)


@pytest.fixture(scope="module")
def model(fleet: Fleet) -> str:
    """The name of the served model."""
    return str(httpx.get(f"{fleet.server.url}/v1/models").json()["data"][0]["id"])


@pytest.fixture(scope="module")
def undisturbed(fleet: Fleet, model: str) -> list[Answer]:
    return asyncio.run(ask_all(fleet, model, "undisturbed", lambda fleet: None, []))


def check(name: str, fleet: Fleet, model: str, expected: list[Answer], disturb: Disturbance, times: list[int]) -> None:
    """Nobody notices; the largest gap between two chunks is told."""
    fleet.wait(2)
    answers = asyncio.run(ask_all(fleet, model, name, disturb, times))
    assert [answer.content for answer in answers] == [answer.content for answer in expected]
    num_moves = sum(fleet.num_moves(answer) for answer in answers)
    assert num_moves > 0, "the streams had ended before"
    largest, usual = (max(answer.largest_gap_s for answer in found) for found in (answers, expected))
    print(f"\n{name}: {num_moves} moves, largest gap {largest:.2f} s, undisturbed {usual:.2f} s")


@pytest.mark.parametrize("seed", [1, 2])
def test_no_stream_notices_that_a_replica_was_killed(
    fleet: Fleet, model: str, undisturbed: list[Answer], seed: int
) -> None:
    order = random.Random(seed)
    check("killed", fleet, model, undisturbed, lambda f: f.kill(order), [order.randrange(1, NUM_STREAMS)])


def test_no_stream_notices_that_both_were_killed_in_a_row(fleet: Fleet, model: str, undisturbed: list[Answer]) -> None:
    order = random.Random(3)
    times = sorted(order.sample(range(1, NUM_STREAMS), 2))
    check("killed in a row", fleet, model, undisturbed, lambda f: f.kill(order), times)


def test_no_stream_notices_that_a_replica_is_drained(fleet: Fleet, model: str, undisturbed: list[Answer]) -> None:
    try:
        check("scaled down", fleet, model, undisturbed, lambda f: f.deploy(num_replicas=1), [NUM_STREAMS])
        fleet.wait(1)
        left = ray.serve.get_deployment_handle("EngineReplica", "serve_paged").stats.remote().result()
        assert left.num_preemptions == 0
        assert left.num_swapped_in_blocks > 0, "no block of the other replica was used"
    finally:
        fleet.deploy(num_replicas=2)


def test_no_stream_notices_a_rolling_upgrade(fleet: Fleet, model: str, undisturbed: list[Answer]) -> None:
    before = {process.pid for process in fleet.replicas()}
    upgrade = {"ray_actor_options": {"num_cpus": 0.4}}  # restarts every replica, one by one
    check("upgraded", fleet, model, undisturbed, lambda f: f.deploy(**upgrade), [NUM_STREAMS])
    fleet.wait(2)
    assert not before & {process.pid for process in fleet.replicas()}
