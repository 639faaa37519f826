"""A real `blockstore serve` in a process of its own, on a state directory that is removed afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.client import Client
from tests.bench.figures import Watch

CONFIG = """
[quota]
volumes = -1
snapshots = -1
gigabytes = -1

[backend:directory]
plugin = directory
max_over_subscription_ratio = 100000
reserved_percentage = 0
fill_limit_percentage = 100
"""


class Server:
    """One process; ``start_s`` is the time from its beginning to its first answer."""

    def __init__(self, state_dir: Path, configuration: str = CONFIG, python: str = sys.executable) -> None:
        config = state_dir / "config.ini"
        config.write_text(configuration)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]
        argv = [python, "-m", "blockstore", "serve", "--config", str(config), "--state-dir", str(state_dir)]
        # As users have it: what was compiled is kept, and not compiled again at each start.
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self._log = state_dir / "log"
        with self._log.open("ab") as log:
            started = time.perf_counter()
            self.process = subprocess.Popen(
                [*argv, "--listen", f"127.0.0.1:{self.port}"],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._wait_for_answer()
        self.start_s = time.perf_counter() - started
        password = state_dir / "admin-password"
        self.password = password.read_text().strip() if password.exists() else ""
        if self.password and "auth = none" not in configuration:
            Client.tokens[self.port] = self.token()

    def tenant(self, name: str) -> str:
        """Make a project with a member, and return the member's token."""
        admin = Client(self.port)

        def made(path: str, body: dict[str, Any]) -> str:
            status, answer = admin("POST", f"/identity/v3/{path}", body)
            if status != 201:
                raise RuntimeError(f"POST {path}: {status} {answer!r}")
            return str(next(iter(json.loads(answer).values()))["id"])

        project = made("projects", {"project": {"name": name}})
        account = {"name": name, "password": name, "default_project_id": project}
        user = made("users", {"user": account})
        roles = json.loads(admin.get("/identity/v3/roles?name=member"))["roles"]
        admin("PUT", f"/identity/v3/projects/{project}/users/{user}/roles/{roles[0]['id']}")
        admin.close()
        return self.token(name, name)

    def token(self, name: str = "admin", password: str = "") -> str:
        """Log in, as the administrator unless told otherwise."""
        user = {"name": name, "domain": {"id": "default"}, "password": password or self.password}
        auth = {"identity": {"methods": ["password"], "password": {"user": user}}}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/identity/v3/auth/tokens",
            data=json.dumps({"auth": auth}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            return str(answer.headers["X-Subject-Token"])

    def _wait_for_answer(self) -> None:
        while self.process.poll() is None:
            with contextlib.suppress(ConnectionRefusedError):
                client = Client(self.port)
                client("GET", "/volumes?limit=1")  # any answer: without a token it is a refusal
                client.close()
                return
            time.sleep(0.002)
        raise RuntimeError(self._log.read_text())

    def watch(self) -> Watch:
        """Begin to note the machine's load."""
        return Watch(self.process.pid)

    def memory_mib(self) -> tuple[float, float]:
        """Return resident memory now, and the most it ever was."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        facts = dict(line.split(":", 1) for line in lines)
        return tuple(int(facts[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]

    def stop(self) -> None:
        """Stop it as an administrator would."""
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextlib.contextmanager
def state_dir() -> Iterator[Path]:
    """Give an empty directory."""
    path = Path(tempfile.mkdtemp(prefix="blockstore-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def served(directory: Path, configuration: str = CONFIG, python: str = sys.executable) -> Iterator[Server]:
    """Give a running service."""
    server = Server(directory, configuration, python)
    try:
        yield server
    finally:
        server.stop()
