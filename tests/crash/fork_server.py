"""A warm interpreter that forks children: a start without the half second of imports, killed for real all the same.

``python -m tests.crash.fork_server`` has one thread and no engine, so forking it is safe. The tests speak JSON lines to
it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_PR_SET_PDEATHSIG = 1


class ForkServer:
    """Starts children by the name of a function in ``tests.crash.children``."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.fork_server"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, log: Path, function: str, *arguments: Any) -> int:
        """Fork a child that calls the function; what it prints goes to ``log``. Return its process id."""
        return int(self._ask("start", str(log), function, *arguments))

    def wait(self, pid: int) -> int:
        """Wait for a child; return its exit status, negative for the signal that killed it."""
        return int(self._ask("wait", pid))

    def run(self, log: Path, function: str, *arguments: Any) -> int:
        """Start and wait."""
        return self.wait(self.start(log, function, *arguments))

    def close(self) -> None:
        """End the interpreter; its children die with it. One that has failed is a failure of the tests that asked."""
        with self._process, contextlib.suppress(BrokenPipeError):
            assert self._process.stdin
            self._process.stdin.close()

    def _ask(self, *words: Any) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


def main() -> None:
    """Answer requests until the input ends."""
    from tests.crash import children

    libc = ctypes.CDLL(None)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        verb, *words = json.loads(line)
        if verb == "start":
            log, function, *arguments = words
            pid = os.fork()
            if pid == 0:
                libc.prctl(_PR_SET_PDEATHSIG, 9)
                _live(Path(log), lambda f=function, a=arguments: getattr(children, f)(*a))
            answer = pid
        else:
            answer = os.waitstatus_to_exitcode(os.waitpid(words[0], 0)[1])
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()


def _live(log: Path, function: Any) -> None:
    """Be a child, and leave without the parent's clean-up."""
    status = 1
    with contextlib.suppress(BaseException):
        with log.open("ab", buffering=0) as file, Path(os.devnull).open("rb") as nothing:
            os.dup2(nothing.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        try:
            status = function() or 0
        except SystemExit as exc:
            status = exc.code if isinstance(exc.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
