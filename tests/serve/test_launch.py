"""What stops a server from starting is told before Ray starts."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serve_paged.serve import launch
from serve_paged.serve.app import IMPORT_PATH
from serve_paged.serve.launch import LaunchError, check_config, check_port, read_config


def test_a_taken_port_is_an_error_that_names_it_and_its_setting() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LaunchError, match=f"port {port}.*in use.*http_options.port"):
            check_port("127.0.0.1", port)


def test_a_free_port_is_fine() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_port("127.0.0.1", port)


@pytest.mark.parametrize("text", ["", "applications: []", "- 1", "a: [", "applications:\n  - {"])
def test_a_file_that_is_not_a_serve_config_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(LaunchError, match=r"broken\.yaml"):
        read_config(file)


def test_the_server_listens_on_this_machine_unless_told_otherwise(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("applications: [{name: a}]\nhttp_options: {port: 9}\n")
    assert read_config(file)["http_options"] == {"host": "127.0.0.1", "port": 9}


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"proxy_locatio": "HeadOnly"}, "proxy_locatio"),
        ({"applications": [{"import_path": IMPORT_PATH, "args": {"dtypo": "auto"}}]}, "dtypo"),
        ({"applications": [{"import_path": IMPORT_PATH, "args": {"block_size": 17}}]}, "block_size"),
    ],
)
def test_a_wrong_key_or_value_is_named_before_anything_starts(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(LaunchError, match=complaint):
        check_config({"applications": [{"import_path": IMPORT_PATH}]} | changes)


def test_what_holds_a_deployment_up_is_told() -> None:
    def application(engine: SimpleNamespace, ingress: SimpleNamespace) -> dict[str, Any]:
        return {"serve_paged": SimpleNamespace(deployments={"EngineReplica": engine, "Ingress": ingress})}

    ready, starting = (SimpleNamespace(status=status, message="") for status in ("HEALTHY", "UPDATING"))
    starved = SimpleNamespace(status="UPDATING", message="resources required: CPU")
    assert launch._progress(application(starting, starting)) == "loading the model"
    assert launch._progress(application(ready, starting)) == "starting the ingress"
    assert launch._progress(application(ready, starved)) == "starting the ingress: resources required: CPU"
