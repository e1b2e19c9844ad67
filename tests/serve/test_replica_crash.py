"""The only replica dies: Ray Serve brings up another, and streams wait for it."""

import os
import signal
from typing import Any

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
def test_the_only_replica_is_killed_and_its_stream_goes_on_when_another_has_started(server: Server, model: str) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=RECOVERY_TIMEOUT_S)
    prompt: dict[str, Any] = {"model": model, "prompt": "Once", "max_tokens": 600, "extra_body": {"ignore_eos": True}}
    stream = client.completions.create(**prompt, stream=True, stream_options={"include_usage": True})
    next(stream)
    killed = replica_process(server)
    os.kill(killed.pid, signal.SIGKILL)
    *_, last = stream
    assert last.usage.completion_tokens == 600
    assert replica_process(server).pid != killed.pid
