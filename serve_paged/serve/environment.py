"""Ray's environment, chosen for streaming throughput. Must be in place before `ray` is imported anywhere.

With HAProxy in front and Ray Serve's throughput settings a streamed token costs a fifth to a seventh of the CPU time
that Ray's default path (a Python proxy, actor calls) takes. What the user has set stays.
"""

import os
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SETTINGS = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy hands requests to the ingress replicas, no Python proxy
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between deployments, user code on the replica's own event loop
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 2**20),  # a tokenizer or prompt_logprobs exceed 4 MiB
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # else every shutdown waits 30 s
    "RAY_AUTH_MODE": "token",  # Ray's ports are open to the network: calls need the token in ~/.ray/auth_token
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it every worker warns
    "RAY_DEDUP_LOGS": "0",
}
HAPROXY_PORTS = {"RAY_SERVE_HAPROXY_METRICS_PORT": 9101, "RAY_SERVE_HAPROXY_STATS_PORT": 8404}
TOKEN_FILE = Path(".ray") / "auth_token"  # under the home folder: where Ray looks


def prepare(environ: MutableMapping[str, str]) -> None:
    """Put the settings into a process's environment; Ray's workers inherit it.

    Raises RuntimeError when Ray was imported already: it reads most of them only then.
    """
    if "ray" in sys.modules:
        raise RuntimeError("Ray's environment must be prepared before ray is imported")
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)


def haproxy_ports(environ: Mapping[str, str]) -> dict[str, tuple[str, int]]:
    """The two ports HAProxy opens on all interfaces besides the API's own: setting -> (host, port)."""
    return {name: ("0.0.0.0", int(environ.get(name, default))) for name, default in HAPROXY_PORTS.items()}


def ensure_token(environ: Mapping[str, str]) -> None:
    """Write Ray's token where there is none, readable by its owner alone (Ray itself would write it for all)."""
    if environ["RAY_AUTH_MODE"] != "token" or "RAY_AUTH_TOKEN" in environ or "RAY_AUTH_TOKEN_PATH" in environ:
        return
    file = Path.home() / TOKEN_FILE
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as new:
            new.write(secrets.token_hex(32))
