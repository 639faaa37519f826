"""What is said when a tool cannot be started: a storage that is missing, or a node that has no space for it now."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from typing import Any

import pytest

from blockstore.backends import process
from blockstore.errors import OutOfFiles, ToolFailed, ToolTimeout, TryAgain, Unreachable


def failing(number: int) -> Any:
    def start(*_arguments: Any, **_named: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return start


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EAGAIN])
def test_want_of_files_and_processes_is_tried_again(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(subprocess, "run", failing(number))
    monkeypatch.setattr(subprocess, "Popen", failing(number))
    with pytest.raises(OutOfFiles, match=r"lvs cannot be started now: .*\."):
        process.run(["lvs"])
    with pytest.raises(OutOfFiles):
        process.follow(["qemu-img"], lambda _percent: None)
    with pytest.raises(OutOfFiles):
        process.Waiting(["qemu-io"])
    assert issubclass(OutOfFiles, TryAgain)
    assert not OutOfFiles.retry_elsewhere


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_tool_that_is_missing_is_the_storages_matter(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(subprocess, "run", failing(number))
    with pytest.raises(Unreachable):
        process.run(["lvs"])


def test_tool_waits_for_its_commands() -> None:
    assert process.Waiting(["sh"]).finish("echo $LC_ALL", timeout_s=60) == "C\n"
    with pytest.raises(ToolFailed, match="status 3: what was wrong"):
        process.Waiting(["sh"]).finish("echo what was wrong >&2; exit 3", timeout_s=60)


def test_tool_that_waits_is_stopped() -> None:
    tool = process.Waiting(["sleep", "600"])
    with pytest.raises(ToolTimeout, match=r"sleep 600 did not end within 0\.1 s"):
        tool.finish("", timeout_s=0.1)
    tool.stop()
    assert tool._process.returncode == -signal.SIGKILL
