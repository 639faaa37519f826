"""The fenced blocks of README.md and docs/*.md, and a shell that runs those of one page against a served process."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socketserver
import subprocess
import sys
import textwrap
import threading
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.clients.conftest import Cloud
from tests.clients.interpreter import Interpreter
from tests.conftest import ROOT

PAGES = ("README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md")))

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[a-z]*)\n(?P<text>.*?)^(?P=indent)```$|^ *<!-- (?P<mark>.*?) -->$", re.M | re.S
)
_SERVE = re.compile(r"(?:make|blockstore) serve( .*)?")
_VARIES = (
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "UUID"),
    (re.compile(r"\b[0-9a-f]{16}-[0-9a-f]{8}(\.\d+)? *"), "OPERATION "),
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?Z?"), "TIME"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "ID"),
    (re.compile(r"\d+\.\d+"), "FIGURE"),
    (re.compile(r" password: \S+"), " password: SECRET"),
    (re.compile(r"/\S*/\.local/"), "~/.local/"),
    (re.compile(r" +"), " "),
)
"""What differs from run to run in the output of a command, and what stands for it in a comparison."""

CLIENT = """\
#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    connection.connect({socket!r})
    request = [[os.path.basename(sys.argv[0]), *sys.argv[1:]], dict(os.environ)]
    connection.sendall(json.dumps(request).encode() + b"\\n")
    with connection.makefile() as reply:
        status, out, err = json.loads(reply.readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str
    mark: str
    """The HTML comment before it: ``tested by FILE``, ``file: NAME``, or nothing."""

    @property
    def is_run(self) -> bool:
        """Whether its commands are run here."""
        return self.language in ("sh", "console") and not self.mark

    def commands(self) -> Iterator[tuple[str, str | None]]:
        """Yield each command, and the output that the page shows for it; None in blocks that show no output."""
        text = self.text.replace("\\\n", " ")
        if self.language == "sh":
            for line in text.splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield line, None
            return
        first, *rest = re.split(r"^\$ ", text, flags=re.M)
        assert not first, f"{self.page}:{self.line}: a console block begins with a command"
        for part in rest:
            command, _, output = part.partition("\n")
            yield command, output


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page."""
    text = (ROOT / page).read_text()
    found, mark, marked = [], "", 0
    for match in _FENCE.finditer(text):
        if match["mark"] is not None:
            mark, marked = match["mark"], match.end()
            continue
        if text[marked : match.start()].strip():
            mark = ""
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(page, line, match["language"], textwrap.dedent(match["text"]), mark))
        mark = ""
    return found


def alike(output: str) -> str:
    """Return the output of a command without what differs from run to run."""
    for pattern, word in _VARIES:
        output = pattern.sub(word, output)
    return "\n".join(line.rstrip() for line in output.strip().splitlines())


class Clients:
    """The commands ``openstack`` and ``cinder``, as small programs that hand on to one warm interpreter."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        interpreter = Interpreter(environment)
        lock = threading.Lock()

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                argv, variables = json.loads(self.rfile.readline())
                with lock:
                    done = interpreter.run(argv, variables)
                self.wfile.write(json.dumps(done).encode() + b"\n")

        self._interpreter = interpreter
        self._server = socketserver.ThreadingUnixStreamServer(str(directory / "clients"), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self._script = CLIENT.format(python=sys.executable, socket=str(directory / "clients"))

    def install(self, directory: Path) -> None:
        """Write the programs into a directory."""
        for name in ("openstack", "cinder"):
            (directory / name).write_text(self._script)
            (directory / name).chmod(0o755)

    def close(self) -> None:
        """End the interpreter."""
        self._server.shutdown()
        self._server.server_close()
        self._interpreter.close()


class Shell:
    """One bash in a directory that looks like a clone, and the service that it serves."""

    def __init__(self, directory: Path, environment: dict[str, str], clients: Clients) -> None:
        self.home = Path(environment["HOME"])
        self.state_dir = self.home / ".local" / "state" / "blockstore"
        self.directory = directory
        programs = directory / ".venv" / "bin"
        programs.mkdir(parents=True)
        (programs / "blockstore").write_text(f'#!/bin/sh\nexec {sys.executable} -m blockstore "$@"\n')
        (programs / "blockstore").chmod(0o755)
        clients.install(programs)
        self.environment = {**environment, "PATH": f"{programs}:{environment['PATH']}"}
        self._log = directory / "log"
        self._service: subprocess.Popen[bytes] | None = None
        self._cloud: Cloud | None = None
        self._bash = subprocess.Popen(
            ["/bin/bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=self.environment,
        )

    def run(self, command: str) -> str:
        """Run a command, which must succeed, and return its output; then wait for what it began."""
        if command == "make serve":
            said = subprocess.run(
                ["make", "-C", ROOT, "-n", "serve"], capture_output=True, text=True, check=True
            ).stdout
            assert "exec .venv/bin/blockstore serve" in said, said
        if match := _SERVE.fullmatch(command.partition(" #")[0].strip()):
            self.serve(*(match[1] or "").split())
            return ""
        if self._service is None:
            self.serve()
        assert self._bash.stdin
        assert self._bash.stdout
        self._bash.stdin.write(f"{{ {command}\n}} < /dev/null; printf '\\0%s\\n' $?\n".encode())
        self._bash.stdin.flush()
        output = b""
        while b"\0" not in output:
            line = self._bash.stdout.readline()
            assert line, f"{command}: bash has ended: {output.decode()}"
            output += line
        text, _, status = output.decode().partition("\0")
        assert status == "0\n", f"{command}: exit status {status}{text}\n{self._log.read_text()[-2000:]}"
        if command.startswith(("openstack", "cinder", "blockstore backend drain")):
            assert self._cloud
            self._cloud.settle()
        return text

    def serve(self, *arguments: str) -> None:
        """Start the service, in place of the one that serves."""
        self.stop()
        (self.state_dir / "endpoint").unlink(missing_ok=True)
        argv = [sys.executable, "-m", "blockstore", "serve", *arguments, "--listen", "127.0.0.1:0"]
        with self._log.open("ab") as log:
            self._service = subprocess.Popen(
                argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.directory, env=self.environment
            )
        deadline = time.monotonic() + 60
        while not (self.state_dir / "endpoint").exists():
            assert self._service.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)
        url = (self.state_dir / "endpoint").read_text().strip()
        served = types.SimpleNamespace(url=url if url.endswith("/v3") else f"{url}/v3", state_dir=self.state_dir)
        self._cloud = Cloud(served, self.home)  # type: ignore[arg-type]

    def stop(self) -> None:
        """Stop the service cleanly."""
        if self._service is not None:
            self._service.send_signal(signal.SIGTERM)
            assert self._service.wait(60) == 0, self._log.read_text()
            self._service = None

    def close(self) -> None:
        """End bash and the service."""
        with contextlib.suppress(OSError), self._bash:
            self._bash.kill()
        if self._service is not None:
            self._service.kill()
            self._service.wait()


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a new user."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
    }
