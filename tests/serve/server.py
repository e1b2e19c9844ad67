"""The real server in a process of its own, started and stopped as a user does it."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0


@dataclass
class Server:
    """A running `python -m serve_paged serve`."""

    process: subprocess.Popen[str]
    url: str = ""
    ray_address: str = ""
    output: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)  # or ended

    def read_output(self) -> None:
        """Collect what it prints, and note where it can be reached. Runs in a thread until the process ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output.append(line)
            if found := re.match(r"Ready: (\S+)", line):
                self.url = found[1]
            if found := re.search(r'ray\.init\(address="([^"]+)"\)', line):
                self.ray_address = found[1]
                self.ready.set()
        self.ready.set()


@contextmanager
def running_server(config: dict[str, object], folder: Path) -> Iterator[Server]:
    """Serve a config on free ports; afterwards check that the server ended well and left no process behind."""
    config_file = folder / "serve_config.yaml"
    config_file.write_text(yaml.safe_dump(config))
    environ = os.environ | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", "serve_paged", "serve", str(config_file)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    server = Server(process)
    reader = threading.Thread(target=server.read_output)
    reader.start()
    try:
        assert server.ready.wait(START_TIMEOUT_S), "not ready in time:\n" + "".join(server.output)
        assert server.ray_address, "".join(server.output)
        yield server
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(STOP_TIMEOUT_S)
        finally:
            process.kill()  # only if it hangs: it is our own child
            _, left = psutil.wait_procs(family, timeout=10)
            for orphan in left:
                orphan.kill()
            reader.join()
            process.stdout.close()  # type: ignore[union-attr]
    assert status == 0, "".join(server.output)
    assert not left, left


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
