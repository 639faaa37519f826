"""A service killed before any one of the things that it does to the kernel's target, then started again."""

from __future__ import annotations

import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from blockstore.targets.contract import Export
from tests import sampling
from tests.crash.steps import Crash, Steps

from .conftest import Disk
from .libiscsi import Refused
from .lio import BOB, CONFIGFS, MIB, an_export, is_closed, left_over, log_in, make_lv, make_target

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PATTERN = b"what was there".ljust(512, b".")


class Killer(Steps):
    """Counts what is made, written and removed in configfs, and from one such step on forbids it all."""

    def __init__(self) -> None:
        super().__init__()
        sys.addaudithook(self._hook)  # for ever, but it does nothing unless told

    def crashed(self, fatal: int, action: Callable[[], object]) -> bool:
        """Run an action that crashes at a step, whatever it makes of that; return False if it ended before."""
        try:
            super().crashed(fatal, action)
        except BaseException:
            if self.taken < fatal:
                raise
        return self.taken >= fatal

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.fatal is None:
            return
        if event == "open":
            path, _, flags = args
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in ("os.mkdir", "os.rmdir", "os.remove"):
            path = args[0]
        elif event == "os.symlink":
            path = args[1]
        else:
            return
        if str(path).startswith(str(CONFIGFS)) and self.is_fatal():
            # The switch is thrown by a thread, whose death would be pytest's business.
            raise Crash if threading.current_thread() is threading.main_thread() else OSError("killed")


@pytest.fixture(scope="module")
def killer() -> Killer:
    """Return a killer that lets everything through until it is told."""
    return Killer()


@pytest.fixture(params=["device", "file", "shared"])
def export(request: pytest.FixtureRequest, disk: Disk) -> Iterator[Export]:
    """Return an export of a device, of a file, and of a device that another export leads to."""
    if request.param == "file":
        path = Path("/dev/shm") / f"volume-{uuid.uuid4()}"
        path.write_bytes(PATTERN)
        os.truncate(path, MIB)
        yield an_export(path.name, path)
        path.unlink()
    else:
        yield make_lv(disk, fill=PATTERN)


@pytest.fixture
def owner(request: pytest.FixtureRequest, export: Export) -> Iterator[str]:
    """Return an installation of which nothing but the other export may be left after each round."""
    owner = uuid.uuid4().hex[:8]
    make_target(owner).check()
    if "shared" not in request.node.callspec.id:
        yield owner
        return
    bob = an_export(export.volume, export.path, BOB)
    lio = make_target(owner)
    session = log_in(lio.export(bob), bob)
    yield owner
    assert session.read(0, len(PATTERN)) == PATTERN
    lio.withdraw(bob.id)
    assert left_over(owner) == []
    assert is_closed(export.path)


def rounds(killer: Killer, before: Callable[[], object], act: Callable[[], object]) -> Iterator[int]:
    """Kill an action before each step, or before a sample of them; yield each time what to go on from."""
    for step in sampling.steps(str(os.environ.get("PYTEST_CURRENT_TEST")), range(1, 200), 6):
        before()
        killed = killer.crashed(step, act)
        yield step
        if not killed:
            assert step > 10
            return
    raise AssertionError("The action never ended.")


def assert_closed_to_others(owner: str, export: Export) -> None:
    """However far it came, nobody gets in who should not."""
    if (CONFIGFS / f"iscsi/iqn.2010-10.org.openstack:blockstore.{owner}.{export.id}/tpgt_1/np/127.0.0.1:3260").exists():
        data = {
            "target_iqn": f"iqn.2010-10.org.openstack:blockstore.{owner}.{export.id}",
            "target_lun": 0,
            "target_portal": "127.0.0.1:3260",
            "auth_username": f"blockstore-{export.id}",
        }
        connection: Any = type("Connection", (), {"data": data})
        for lie in ({"password": None}, {"password": "x" * 16}, {"initiator": BOB}):
            with pytest.raises(Refused):
                log_in(connection, export, **lie)


def assert_works(owner: str, export: Export) -> None:
    """Export it again: it is as if nothing had been."""
    lio = make_target(owner)
    session = log_in(lio.export(export), export)
    assert session.read(0, len(PATTERN)) == PATTERN
    assert export.volume.removeprefix("volume-").encode() in session.page(0x80)
    if export.read_only:
        with pytest.raises(Refused):
            session.write(0, PATTERN)
    else:
        session.write(0, PATTERN)
    session.close()


def withdraw_all(owner: str, export: Export) -> None:
    """Withdraw as the service does that compares its exports with its attachments."""
    lio = make_target(owner)
    others = {name for name in lio.list_exports() if name != export.id and lio.sessions().get(name) == (BOB,)}
    for export_id in lio.list_exports() - others:
        lio.withdraw(export_id)
    assert lio.list_exports() == others
    assert len(left_over(owner)) == 2 * len(others)
    assert others or export.path.is_file() or is_closed(export.path)


@pytest.mark.parametrize("then", ["again", "withdraw"])
@pytest.mark.parametrize("read_only", [False, True])
def test_export(killer: Killer, owner: str, export: Export, then: str, read_only: bool) -> None:
    """A killed export is completed or removed."""
    export = an_export(export.volume, export.path, read_only=read_only)
    for _ in rounds(killer, lambda: None, lambda: make_target(owner).export(export)):
        assert_closed_to_others(owner, export)
        if then == "again":
            assert_works(owner, export)
        withdraw_all(owner, export)


@pytest.mark.parametrize("then", ["again", "withdraw"])
def test_withdraw(killer: Killer, owner: str, export: Export, then: str) -> None:
    """A killed withdrawal is completed, or the export is whole again."""
    begin = lambda: make_target(owner).export(export)  # noqa: E731
    for _ in rounds(killer, begin, lambda: make_target(owner, session_timeout_s=0.3).withdraw(export.id)):
        assert_closed_to_others(owner, export)
        if then == "again":
            assert_works(owner, export)
        withdraw_all(owner, export)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # rtslib's, of pyudev
@pytest.mark.parametrize("export", ["device"], indirect=True)
def test_mending(killer: Killer, owner: str, export: Export) -> None:
    """What target.service restored is ended and made again; a kill in the middle leaves that to the next look."""
    import rtslib_fb

    make_target(owner).export(export)
    root = rtslib_fb.RTSRoot()
    saved = root.dump()
    for step in sampling.steps("mending", range(1, 250), 10):  # each round costs the lab a second
        assert root.restore(saved, clear_existing=True) == []
        assert make_target(owner).faults().keys() == {export.id}
        killed = killer.crashed(step, lambda: make_target(owner, session_timeout_s=0.3).export(export))
        assert_closed_to_others(owner, export)
        after = make_target(owner)
        after.check()
        assert_works(owner, export)
        assert after.faults() == {}
        assert len(left_over(owner)) == 2
        if not killed:
            break
    assert not killed
    assert step > 20
    withdraw_all(owner, export)
