"""The service is killed between any two steps of the nbd plugin, and the next one finds its way."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import blockstore_plugins.nbd as plugin
import pytest
from blockstore_plugins.nbd import NbdTarget, folder

from blockstore.backends import process
from blockstore.errors import BackendError, SessionAlive
from blockstore.targets.contract import Connection, Export
from tests import sampling
from tests.crash.steps import Steps

from . import nbd_initiators
from .nbd_initiators import MIB, export, free_port, make, processes, qemu_io, volume

SOURCES = (str(Path(plugin.__file__).parent), process.__file__)


@pytest.fixture
def place() -> Iterator[Path]:
    nbd_initiators.need_tools()
    with nbd_initiators.place() as path:
        yield path


@pytest.fixture(params=["unix", "tcp"])
def target(request: pytest.FixtureRequest, place: Path) -> NbdTarget:
    """One port is all there is, so that a claim that is left over shows at once."""
    port = free_port()
    return make(place, "127.0.0.1", ports=f"{port}-{port}") if request.param == "tcp" else make(place)


class KillsItself(Steps):
    """Kills this process when the plugin is about to run its n-th line; a line counts once."""

    def __init__(self, fatal: int) -> None:
        super().__init__(fatal)
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCES):
            return None
        where = (frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and where not in self.seen:
            self.seen.add(where)
            if self.is_fatal():
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def killed_at(number: int, act: Callable[[], object]) -> bool:
    """Let another process act, and die at its n-th line; False when it lived to the end."""
    child = os.fork()
    if not child:
        try:
            sys.settrace(KillsItself(number))
            act()
            os._exit(0)
        finally:
            os._exit(1)
    _pid, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return bool(status)


def is_empty(target: NbdTarget, file: Path) -> bool:
    """Nothing tells of an export: no file, no claim, no process."""
    left = [path for path in target.state_dir.rglob("*") if path.name != ".ports"]
    return not (left or target.list_exports() or list(processes(file)))


def greeting(connection: Connection) -> None:
    """Connect as the connection says, and be greeted."""
    data = connection.data
    with socket.socket(socket.AF_UNIX if "socket" in data else socket.AF_INET) as client:
        client.connect(data["socket"] if "socket" in data else (data["host"], data["port"]))
        assert client.recv(8) == b"NBDMAGIC"


def again(target: NbdTarget, wanted: Export) -> None:
    """Export once more: it serves, once."""
    greeting(target.export(wanted))
    deadline = time.monotonic() + 600
    while len(list(processes(wanted.path))) != 1:  # the process that forked the server ends a moment after it serves
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert target.list_exports() == {wanted.id}


@pytest.mark.parametrize("way", ["export", "withdraw"])
def test_killed_in_the_middle_of_an_export(place: Path, target: NbdTarget, way: str) -> None:
    file = volume(place, size=MIB)
    for number in sampling.steps(f"export, {way}", range(1, 501), 4):
        wanted = export(file)
        killed = killed_at(number, lambda one=wanted: target.export(one))  # type: ignore[misc]
        if list(processes(file)) or (target.state_dir / wanted.id).exists():
            assert target.list_exports() == {wanted.id}
        if way == "export":
            again(target, wanted)
        target.withdraw(wanted.id)
        assert is_empty(target, file), number
        if not killed:
            assert number > 61
            return
    raise AssertionError("The action never ended.")


@pytest.mark.parametrize("way", ["export", "withdraw"])
def test_killed_in_the_middle_of_a_withdrawal(place: Path, target: NbdTarget, way: str) -> None:
    file = volume(place, size=MIB)
    for number in sampling.steps(f"withdraw, {way}", range(1, 501), 4):
        wanted = export(file)
        target.export(wanted)
        killed = killed_at(number, lambda one=wanted: target.withdraw(one.id))  # type: ignore[misc]
        if not is_empty(target, file):
            assert target.list_exports() == {wanted.id}
        if way == "export":
            again(target, wanted)
        target.withdraw(wanted.id)
        assert is_empty(target, file), number
        if not killed:
            assert number > 31
            return
    raise AssertionError("The action never ended.")


def test_killed_at_any_instant_of_the_start_of_a_server(place: Path, target: NbdTarget) -> None:
    """Where the tool goes on by itself: its next owner waits for it, and never starts a second one beside it."""
    file = volume(place, size=MIB)
    dice = random.Random(20)
    for number in range(30):
        wanted = export(file)
        child = os.fork()
        if not child:
            with suppress(BaseException):
                target.export(wanted)
            os._exit(0)
        time.sleep(dice.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if number % 2:
            again(target, wanted)
        target.withdraw(wanted.id)
        assert is_empty(target, file)


def test_a_tool_that_is_too_slow_is_not_left_behind(
    place: Path, target: NbdTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tool's parent process is stopped after its time; the one that would have served ends as well."""
    file = volume(place, size=MIB)
    slow = place / "bin" / "qemu-nbd"
    slow.parent.mkdir()
    real = subprocess.run(["which", "qemu-nbd"], capture_output=True, text=True, check=True).stdout.strip()
    slow.write_text(f'#!/bin/sh\n({real} "$@") &\nsleep 1.5\n')
    slow.chmod(0o755)
    monkeypatch.setattr(plugin.commands, "_START_S", 0.3)
    monkeypatch.setenv("PATH", f"{slow.parent}:{os.environ['PATH']}")
    with pytest.raises(BackendError, match="did not end within"):
        target.export(export(file))
    assert is_empty(target, file)


def test_a_server_that_nothing_can_end_keeps_its_export(
    place: Path, target: NbdTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a disk which does not answer. Here the signals are lost instead."""
    wanted = export(volume(place))
    connection = target.export(wanted)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "TERM_S", 0.1)
        patch.setattr(folder, "KILL_S", 0.1)
        patch.setattr(folder.signal, "pidfd_send_signal", lambda _fd, _number: None)
        with pytest.raises(SessionAlive, match=r"The server of export .* \(process [0-9]+\) has not ended"):
            target.withdraw(wanted.id)
    assert target.list_exports() == {wanted.id}
    if "socket" in connection.data:
        assert not Path(connection.data["socket"]).exists()
    target.withdraw(wanted.id)
    assert is_empty(target, wanted.path)


def test_the_lock_is_not_disturbed_by_other_children(place: Path, target: NbdTarget) -> None:
    """A child that another thread is just starting has our descriptors for a moment."""
    file = volume(place, size=MIB)
    stop = threading.Event()

    def start_children() -> None:
        while not stop.is_set():
            subprocess.run(["true"], check=True)

    thread = threading.Thread(target=start_children)
    thread.start()
    try:
        for _ in range(20):
            wanted = export(file)
            qemu_io(target.export(wanted), place, "write 0 4k")
            target.withdraw(wanted.id)
            assert is_empty(target, file)
    finally:
        stop.set()
        thread.join()
