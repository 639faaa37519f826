"""An interpreter that has imported the clients' command lines, and forks for each command.

Importing takes a command line one to two seconds of the processor, and the command itself a few hundredths.
``python -m tests.clients.interpreter`` has one thread; the tests speak JSON lines to it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

EXTENSIONS = ("openstack.cli", "openstack.common", "openstack.identity", "openstack.volume")
"""Groups of entry points that `openstack` looks through for its commands."""


class Interpreter:
    """Runs command lines of the clients in children of one warm process."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start it with the environment of the commands: some of it is read by an import."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clients.interpreter"],
            cwd=Path(__file__).parent.parent.parent,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, argv: Sequence[str], environment: Mapping[str, str], timeout_s: float = 120) -> tuple[int, str, str]:
        """Run a console script by its name; return its exit status and what it printed."""
        assert self._process.stdin
        assert self._process.stdout
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            self._process.stdin.write(json.dumps([list(argv), dict(environment), out.name, err.name, timeout_s]) + "\n")
            self._process.stdin.flush()
            status = json.loads(self._process.stdout.readline())
            return status, out.read().decode(), err.read().decode()

    def close(self) -> None:
        """End the process."""
        with self._process:
            assert self._process.stdin
            self._process.stdin.close()


def main() -> None:
    """Import, and answer requests until the input ends."""
    scripts = {one.name: one for one in importlib.metadata.entry_points(group="console_scripts")}
    for name in ("openstack", "cinder"):
        scripts[name].load()
    entry_points = importlib.metadata.entry_points()
    for group in (group for group in entry_points.groups if group.startswith(EXTENSIONS)):
        for one in entry_points.select(group=group):
            with contextlib.suppress(Exception):  # what a command needs, it imports again, and says what is wrong
                one.load()
    logging.root.handlers.clear()  # some extension configures logging when it is imported
    logging.root.setLevel(logging.WARNING)
    for line in sys.stdin:
        argv, environment, out, err, timeout_s = json.loads(line)
        pid = os.fork()
        if not pid:
            os.environ.clear()
            os.environ.update(environment)
            _live(scripts[argv[0]], argv, out, err)
        print(json.dumps(_wait(pid, timeout_s)), flush=True)


def _wait(pid: int, timeout_s: float) -> int:
    """Return the exit status of a child; one that takes too long is killed."""
    deadline = time.monotonic() + timeout_s
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, 9)
        time.sleep(0.005)


def _live(script: importlib.metadata.EntryPoint, argv: list[str], out: str, err: str) -> None:
    """Be the command, as its console script is; never return."""
    status = 1
    try:
        for number, name in enumerate((os.devnull, out, err)):
            opened = os.open(name, os.O_RDWR)
            os.dup2(opened, number)
            os.close(opened)
        sys.argv = argv
        sys.exit(script.load()())
    except SystemExit as exc:
        if exc.code is None or isinstance(exc.code, int):
            status = exc.code or 0
        else:
            print(exc.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
