"""`python -m serve_paged serve`: Ray on this machine, the application of a config file, until Ctrl-C."""

import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import yaml

from serve_paged.serve.environment import ensure_token, prepare

READY_TIMEOUT_S = 1800.0  # a first start fetches and converts a model
_POLL_S = 0.2
_REPEAT_S = 10.0  # a long step says so again: a new model is converted, kernels are compiled once
_ALL_INTERFACES = "0.0.0.0"

_READY = """
Ready: {url}  (model {model}, {seconds:.0f} s)

Try it:
  curl -sN {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{{
    "model": "{model}", "stream": true, "temperature": 0,
    "messages": [{{"role": "user", "content": "What is the capital of France?"}}]}}'

From Python, in another process: ray.init(address="{address}")
Ctrl-C stops it."""

Say = Callable[[str], None]


class LaunchError(click.ClickException):
    """The server could not be started; the message says why and what to do."""


def run(config_path: Path) -> None:
    """Serve what the config file describes until SIGINT or SIGTERM. Raises `LaunchError` when it cannot start.

    Call it before anything has imported ray.
    """
    began = time.monotonic()

    def say(message: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {message}", file=sys.stderr, flush=True)

    signal.signal(signal.SIGTERM, _interrupt)
    prepare(os.environ)
    ensure_token(os.environ)
    try:
        with serving(config_path, say) as url:
            seconds = time.monotonic() - began
            print(_READY.format(url=url, model=_first_model(url), seconds=seconds, address=_ray_address()), flush=True)
            signal.signal(signal.SIGTERM, _interrupt)  # again: ray.init put its own in place
            signal.pause()
    except KeyboardInterrupt:
        say("stopped")


@contextmanager
def serving(config_path: Path, say: Say) -> Iterator[str]:
    """Ray and the applications of a config file while the context is open. Yields the URL once it answers.

    Ray's environment must be prepared. Raises `LaunchError`.
    """
    config = read_config(config_path)
    http = config["http_options"]
    check_port(http["host"], http["port"])
    say("starting Ray")
    import ray  # only now: it reads its environment when it is imported
    from ray import serve

    check_config(config)
    try:
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        say("deploying")
        _deploy(config)
        _wait_until_running(config, say)
        host = "127.0.0.1" if http["host"] == _ALL_INTERFACES else http["host"]
        url = f"http://{host}:{http['port']}"
        _wait_until_healthy(url)
        try:
            yield url
        finally:
            say("stopping; running answers may end first (Ctrl-C again: at once)")
            for application in config["applications"]:
                serve.delete(application.get("name", "default"))
    finally:
        ray.shutdown()


def read_config(path: Path) -> dict[str, Any]:
    """The config file, with our defaults of `http_options`. Raises `LaunchError`."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise LaunchError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or not config.get("applications"):
        raise LaunchError(f"{path} is not a Serve config: it lists no applications")
    config["http_options"] = {"host": "127.0.0.1", "port": 8000} | (config.get("http_options") or {})
    return config


def check_config(config: dict[str, Any]) -> None:
    """Raise `LaunchError` for unknown keys, which Ray ignores, and for settings of the engine that are wrong."""
    from ray.serve.schema import ServeDeploySchema

    from serve_paged.serve.app import IMPORT_PATH
    from serve_paged.serve.settings import read_settings

    unknown = sorted(set(config) - set(ServeDeploySchema.model_fields))
    if unknown:
        raise LaunchError(f"unknown keys in the Serve config: {', '.join(unknown)}")
    for application in config["applications"]:
        if application.get("import_path") == IMPORT_PATH:
            try:
                read_settings(application.get("args") or {})
            except ValueError as error:
                raise LaunchError(str(error)) from error


def check_port(host: str, port: int) -> None:
    """Raise `LaunchError` when somebody else listens there."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            reason = f"port {port} of {host} cannot be used ({error.strerror})"
            raise LaunchError(f"{reason}; choose another in http_options.port") from error


def _deploy(config: dict[str, Any]) -> None:
    from ray import serve
    from ray.serve.context import _get_global_client  # what `serve run` uses; there is no public way from Python
    from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config)
    serve.start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
    _get_global_client().deploy_apps(schema)


def _wait_until_running(config: dict[str, Any], say: Say) -> None:
    """Tell what is going on until every application runs. Raises `LaunchError` when one cannot."""
    from ray import serve

    deadline = time.monotonic() + READY_TIMEOUT_S
    names = [application.get("name", "default") for application in config["applications"]]
    told, told_at = "", 0.0
    while True:
        applications = serve.status().applications
        waiting = [name for name in names if name not in applications or applications[name].status != "RUNNING"]
        if not waiting:
            return
        for name in waiting:
            if name in applications and applications[name].status in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise LaunchError(_why(applications[name]))
        if time.monotonic() > deadline:
            raise LaunchError(f"not ready after {READY_TIMEOUT_S:.0f} s: {', '.join(waiting)}")
        state = _progress(applications)
        if state != told or time.monotonic() > told_at + _REPEAT_S:
            say(state if state != told else f"still {state}")
            told, told_at = state, time.monotonic()
        time.sleep(_POLL_S)


def _progress(applications: Any) -> str:
    deployments = {name: found for app in applications.values() for name, found in app.deployments.items()}
    if not deployments:
        return "building the application"
    pending = {name: found for name, found in deployments.items() if found.status != "HEALTHY"}
    doing = "loading the model" if "EngineReplica" in pending else "starting the ingress"
    reasons = [found.message for found in pending.values() if found.message]  # too few cores or GPUs, for instance
    return f"{doing}: {reasons[0]}" if reasons else doing


def _why(application: Any) -> str:
    messages = [application.message, *(found.message for found in application.deployments.values())]
    return "the application cannot start:\n" + "\n".join(filter(None, messages))


def _wait_until_healthy(url: str) -> None:
    """The HTTP proxy hears of a new application a moment after Serve calls it running."""
    deadline = time.monotonic() + 60
    while True:
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=10):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            if time.monotonic() > deadline:
                raise LaunchError(f"{url}/health does not answer: {error}") from error
        time.sleep(_POLL_S)


def _first_model(url: str) -> str:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
        return json.load(answer)["data"][0]["id"]


def _ray_address() -> str:
    import ray

    return ray.get_runtime_context().gcs_address


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
