"""One real server for all tests that need one: the shipped config on free ports, with the default model."""

import os
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import yaml
from tokenizers import Tokenizer

from tests.serve.server import ROOT, Server, free_port, running_server

os.environ["RAY_AUTH_MODE"] = "disabled"  # the test server's mode; Ray would otherwise look for a token at home


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`serve_config.yaml` as shipped, but for the port."""
    config = yaml.safe_load((ROOT / "serve_config.yaml").read_text())
    config["http_options"]["port"] = free_port()
    with running_server(config, tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="session")
def model(server: Server) -> str:
    """The name of the served model."""
    return httpx.get(f"{server.url}/v1/models").json()["data"][0]["id"]


@pytest.fixture(scope="session")
def ray_client(server: Server) -> Iterator[None]:
    """This process as a driver of the server's Ray."""
    import ray

    ray.init(address=server.ray_address, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def tokenizer(ray_client: None) -> Tokenizer:
    """The served model's tokenizer, as the replica describes it."""
    from ray import serve

    card = serve.get_deployment_handle("EngineReplica", "serve_paged").describe.remote().result()
    return Tokenizer.from_str(zlib.decompress(card.tokenizer_json).decode())


@pytest.fixture
def app_handle(ray_client: None) -> Any:
    """What users get from `serve.get_app_handle`."""
    from ray import serve

    return serve.get_app_handle("serve_paged")


@pytest.fixture
def engine_handle(ray_client: None) -> Any:
    """The engine replicas themselves, for their statistics."""
    from ray import serve

    return serve.get_deployment_handle("EngineReplica", "serve_paged")
