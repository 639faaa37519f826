"""What is said when a tool cannot be started: a storage that is missing, or a node that has no space for it now."""

from __future__ import annotations

import errno
import os
import subprocess
from typing import Any

import pytest

from blockstore.backends import process
from blockstore.errors import OutOfFiles, TryAgain, Unreachable


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
    assert issubclass(OutOfFiles, TryAgain)
    assert not OutOfFiles.retry_elsewhere


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES])
def test_tool_that_is_missing_is_the_storages_matter(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(subprocess, "run", failing(number))
    with pytest.raises(Unreachable):
        process.run(["lvs"])
