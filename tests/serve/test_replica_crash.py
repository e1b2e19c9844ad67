"""A replica that dies: its streams end with an error that clients see, and Ray Serve brings up another."""

import os
import signal
import time
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.serve.server import Server

RECOVERY_TIMEOUT_S = 120.0


def replica_process(server: Server) -> psutil.Process:
    """The process of the engine replica."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = [process for process in family if "EngineReplica" in " ".join(process.cmdline())]
    return found


@pytest.mark.slow
def test_a_killed_replica_ends_its_streams_with_an_error_and_is_replaced(server: Server, model: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)
    prompt: dict[str, Any] = {"model": model, "prompt": "Once", "max_tokens": 1500, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**prompt, stream=True)
    next(stream)
    os.kill(replica_process(server).pid, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="engine failed"):
        list(stream)
    deadline = time.monotonic() + RECOVERY_TIMEOUT_S
    while (status := httpx.get(f"{server.url}/health", timeout=30).status_code) != 200:
        assert status == 503
        assert time.monotonic() < deadline
    answer = client.completions.create(model=model, prompt="Once", max_tokens=2)
    assert answer.usage.completion_tokens == 2
