"""The only place that starts processes: argv lists, no shell, C locale, a time limit, secrets hidden.

Called by plugins. Never interprets the output of a tool: the plugin's ``commands.py`` does.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence

from blockstore.errors import BackendError, OutOfFiles, ToolFailed, ToolTimeout, Unreachable, is_out_of_files

log = logging.getLogger(__name__)

HIDDEN = "***"

_PERCENT = re.compile(rb"(\d{1,3})(?:\.\d+)?(?:/100)?%")


def run(
    argv: Sequence[str],
    *,
    timeout_s: float = 60,
    stdin: bytes | None = None,
    secrets: Sequence[str] = (),
    package: str | None = None,
    pass_fds: Sequence[int] = (),
    complaints: list[str] | None = None,
) -> str:
    """Run a tool and return its output.

    ``secrets`` are replaced in logs and errors. ``package`` is the Debian package named when the tool is missing.
    ``pass_fds`` stay open in the tool and in processes that it leaves running: a lock on one shows that they live.
    ``complaints`` gets the tool's standard error, also when the tool succeeded.
    Raises: Unreachable when the tool is missing; OutOfFiles; ToolTimeout; ToolFailed with the tool's output.
    """
    shown_argv = tuple(_hide(word, secrets) for word in argv)
    started = time.monotonic()
    try:
        done = subprocess.run(  # noqa: S603 - argv list, no shell
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout_s,
            check=False,
            pass_fds=pass_fds,
            env=_environment(),
        )
    except OSError as exc:
        raise _cannot_start(exc, argv[0], package) from exc
    except subprocess.TimeoutExpired as exc:
        raise ToolTimeout(f"{' '.join(shown_argv)} did not end within {timeout_s:g} s and was stopped.") from exc
    took_ms = (time.monotonic() - started) * 1000
    log.debug("ran %s: status %d in %.0f ms", " ".join(shown_argv), done.returncode, took_ms)
    complaint = _hide(done.stderr.decode(errors="replace"), secrets)
    if complaints is not None:
        complaints.append(complaint)
    if done.returncode:
        raise ToolFailed(shown_argv, done.returncode, complaint)
    return done.stdout.decode(errors="replace")


def follow(
    argv: Sequence[str], tell: Callable[[int], None], *, timeout_s: float = 60, package: str | None = None
) -> None:
    """Run a tool that prints its progress in percent, and pass that to ``tell``; if ``tell`` raises, stop the tool.

    Raises: Unreachable when the tool is missing; OutOfFiles; ToolTimeout; ToolFailed with the tool's last output.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - argv list, no shell
            list(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=_environment()
        )
    except OSError as exc:
        raise _cannot_start(exc, argv[0], package) from exc
    assert process.stdout is not None
    expired = threading.Event()

    def stop() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(timeout_s, stop)
    timer.daemon = True
    timer.start()
    output, reported = b"", -1
    try:
        while part := os.read(process.stdout.fileno(), 4096):
            output = (output + part)[-4096:]
            percents = _PERCENT.findall(output)
            if percents and int(percents[-1]) > reported:
                reported = min(int(percents[-1]), 100)
                tell(reported)
        process.wait()
    finally:
        timer.cancel()
        process.kill()
        process.stdout.close()
        process.wait()
    if expired.is_set():
        raise ToolTimeout(f"{' '.join(argv)} did not end within {timeout_s:g} s and was stopped.")
    if process.returncode:
        raise ToolFailed(tuple(argv), process.returncode, output.decode(errors="replace"))


class Waiting:
    """A tool that was started, and waits for commands on its standard input."""

    def __init__(self, argv: Sequence[str], *, package: str | None = None):
        """Start the tool. Raises Unreachable and OutOfFiles."""
        self._argv = tuple(argv)
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(self._argv, stdin=pipe, stdout=pipe, stderr=pipe, env=_environment())  # noqa: S603 - argv list, no shell
        except OSError as exc:
            raise _cannot_start(exc, self._argv[0], package) from exc

    def finish(self, commands: str, *, timeout_s: float) -> str:
        """Give the tool its commands, and return its output when it has ended. Raises ToolTimeout and ToolFailed."""
        try:
            output, complaint = self._process.communicate(commands.encode(), timeout=timeout_s)
        except subprocess.TimeoutExpired as exc:
            raise ToolTimeout(f"{' '.join(self._argv)} did not end within {timeout_s:g} s and was stopped.") from exc
        if self._process.returncode:
            raise ToolFailed(self._argv, self._process.returncode, complaint.decode(errors="replace"))
        return output.decode(errors="replace")

    def stop(self) -> None:
        """Stop the tool if it runs."""
        self._process.kill()
        self._process.communicate()


def have(tool: str) -> bool:
    """Return True if a tool is installed."""
    return shutil.which(tool, path=_search_path()) is not None


def missing_tool(tool: str, package: str | None) -> str:
    """Return the sentence for a tool that is not installed."""
    hint = f" Install it: apt-get install {package}." if package else ""
    return f"The tool {tool} is not installed, or not in {_search_path()}.{hint}"


def _cannot_start(exc: OSError, tool: str, package: str | None) -> BackendError:
    if is_out_of_files(exc) or exc.errno == errno.EAGAIN:  # no file descriptors for its pipes, or no process
        return OutOfFiles(f"{tool} cannot be started now: {exc.strerror}.")
    if isinstance(exc, FileNotFoundError):
        return Unreachable(missing_tool(tool, package))
    return Unreachable(f"{tool} may not be run by this user: {exc.strerror}.")


def _environment() -> dict[str, str]:
    return {"PATH": _search_path(), "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1", **_inherited()}


def _hide(text: str, secrets: Sequence[str]) -> str:
    for secret in secrets:
        if secret:
            text = text.replace(secret, HIDDEN)
    return text


def _search_path() -> str:
    """Return PATH with the administrator's directories, which an ordinary user's PATH lacks."""
    given = [part for part in os.environ.get("PATH", "").split(":") if part]
    return ":".join([*given, *(part for part in ("/usr/sbin", "/usr/bin", "/sbin", "/bin") if part not in given)])


def _inherited() -> dict[str, str]:
    """Return the environment variables that a tool needs, and none that may hold a secret."""
    return {key: os.environ[key] for key in ("HOME", "TMPDIR", "DM_DISABLE_UDEV") if key in os.environ}
