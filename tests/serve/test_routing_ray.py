"""Two replicas behind the block-aware router, with real Ray."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
import yaml

from tests.serve.server import ROOT, Server, free_port, running_server

pytestmark = pytest.mark.slow

REPORT_TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    (application,) = config["applications"]
    application["args"] |= {"kv_cache_gb": 0.3, "swap_space_gb": 0.1, "threads": 1}
    application["deployments"][1] |= {"num_replicas": 2, "ray_actor_options": {"num_cpus": 0.5}}
    with running_server(config, tmp_path_factory.mktemp("pair")) as running:
        yield running


def complete(server: Server, prompt: str, **headers: str) -> httpx.Response:
    body = {"model": "smollm2-135m-instruct", "prompt": prompt, "max_tokens": 2, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer


def decision_on(server: Server, answer: httpx.Response) -> dict[str, Any]:
    told = httpx.get(f"{server.url}/debug/routing/{answer.headers['X-Routing-Id']}", timeout=30)
    (decision,) = told.json()["decisions"]
    return dict(decision)


def eventually(found: Callable[[], bool]) -> None:
    """Until the replicas' reports have come."""
    deadline = time.monotonic() + REPORT_TIMEOUT_S
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_requests_follow_their_blocks_and_the_decision_is_told(pair: Server) -> None:
    eventually(lambda: "X-Routing" in complete(pair, "warm").headers)
    eventually(lambda: decision_on(pair, complete(pair, "warm"))["num_replicas"] == 2)
    prompts = [f"Story number {n}. " + "Once upon a time there was a fox. " * 20 for n in range(6)]
    first = [decision_on(pair, complete(pair, prompt)) for prompt in prompts]
    again = [decision_on(pair, complete(pair, prompt)) for prompt in prompts]
    assert [decision["chosen"] for decision in again] == [decision["chosen"] for decision in first]
    assert len({decision["chosen"] for decision in first}) == 2, "one replica has got everything"
    for decision in again:
        best, *others = decision["candidates"]
        assert best["num_overlap_blocks"] == decision["num_prompt_blocks"] > 0
        assert best["exact"]
        assert others[0]["cost_s"] > best["cost_s"]


def test_prompt_tokens_are_served_from_the_cache_of_the_chosen_replica(pair: Server) -> None:
    prompt = "The hedgehog and the owl. " * 40
    complete(pair, prompt)
    usage = complete(pair, prompt).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] > 0.8 * usage["prompt_tokens"]


def test_an_unknown_request_has_no_decision(pair: Server) -> None:
    told = httpx.get(f"{pair.url}/debug/routing/unknown", timeout=30)
    assert told.status_code == 404
    assert "unknown" in told.json()["error"]["message"]
