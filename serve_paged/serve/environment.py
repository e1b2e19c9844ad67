"""Ray's environment, chosen for streaming throughput. Must be in place before `ray` is imported anywhere.

Ray Serve's throughput settings take a third less CPU time per streamed chunk than its defaults. HAProxy as Ray's front
(RAY_SERVE_ENABLE_HA_PROXY=1) would take less again, but does not notice that a client which waits for a whole answer
has left: its sequence would run to the end. What the user has set stays.
"""

import os
import secrets
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

SETTINGS = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between deployments, user code on the replica's own event loop
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # else a warning shows only after 999 others, or never
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",  # only HAProxy would use it; it opens ports and slows down shutdown
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 * 2**20),  # a tokenizer or prompt_logprobs exceed 4 MiB
    "RAY_AUTH_MODE": "token",  # Ray's ports are open to the network: calls need the token in ~/.ray/auth_token
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # Ray's coming default; without it every worker warns
}
TOKEN_FILE = Path(".ray") / "auth_token"  # under the home folder: where Ray looks


def prepare(environ: MutableMapping[str, str]) -> None:
    """Put the settings into a process's environment; Ray's workers inherit it.

    Raises RuntimeError when Ray was imported already: it reads most of them only then.
    """
    if "ray" in sys.modules:
        raise RuntimeError("Ray's environment must be prepared before ray is imported")
    for name, value in SETTINGS.items():
        environ.setdefault(name, value)


def ensure_token(environ: Mapping[str, str]) -> None:
    """Write Ray's token where there is none, readable by its owner alone (Ray itself would write it for all)."""
    if environ["RAY_AUTH_MODE"] != "token" or "RAY_AUTH_TOKEN" in environ or "RAY_AUTH_TOKEN_PATH" in environ:
        return
    file = Path.home() / TOKEN_FILE
    if not file.exists():
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as new:
            new.write(secrets.token_hex(32))
