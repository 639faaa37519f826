"""A volume is given away, over real exports: its former owner's connection never reaches the next owner's bytes."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from blockstore.targets.contract import Connection
from tests.conftest import Answer, Served
from tests.plugins import nbd_initiators
from tests.plugins.initiators import CommandFailed, Login, LoginRefused, Raw, tool
from tests.plugins.nbd_initiators import Session, qemu_io, qemu_io_says
from tests.tgtd import Tgtd

INITIATOR = "iqn.1993-08.org.debian:01:former"
MINE, THEIRS = 0xBB, 0xAA
BACKEND = "[backend:files]\nplugin = directory\ntarget = exported\nmax_over_subscription_ratio = 1000\n"


class Project:
    """Somebody who asks a served process, as a member of a project."""

    def __init__(self, served: Served, project: str, roles: str = "member,reader") -> None:
        self.served = served
        self.headers = {"X-Project-Id": project, "X-Roles": roles, "X-User-Id": project}

    def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        request = urllib.request.Request(
            self.served.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71", **self.headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as exc:
            with exc:
                return Answer(exc.code, dict(exc.headers), exc.read())

    def action(self, volume: str, name: str, arguments: Any) -> Answer:
        return self("POST", f"/volumes/{volume}/action", {name: arguments})

    def volume(self) -> str:
        """Create a volume and wait for it."""
        made = str(self("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["id"])
        for _ in range(2000):
            if self("GET", f"/volumes/{made}").json["volume"]["status"] == "available":
                return made
        raise AssertionError("the volume does not become available")

    def offer(self, volume: str) -> Answer:
        return self("POST", "/volume-transfers", {"transfer": {"volume_id": volume}})

    def accept(self, offered: Answer) -> Answer:
        transfer = offered.json["transfer"]
        body = {"accept": {"auth_key": transfer["auth_key"]}}
        return self("POST", f"/volume-transfers/{transfer['id']}/accept", body)


def given_away(donor: Project, receiver: Project, connector: Any, former: Callable[[Any], None]) -> tuple[str, Any]:
    """Walk the whole way; ``former`` uses the former owner's connection. Return the volume, and the receiver's.

    The offer is refused until the connection is ended; from then on the former owner is shut out at every door.
    """
    volume, body = donor.volume(), {"connector": connector}
    told = donor.action(volume, "os-initialize_connection", body)
    assert told.status == 200, told.body
    former(told.json["connection_info"])
    refused = donor.offer(volume)
    assert (refused.status, "end it with os-terminate_connection first" in refused.message) == (400, True)
    assert donor.action(volume, "os-terminate_connection", body).status == 202
    offered = donor.offer(volume)
    assert offered.status == 202, offered.body
    assert donor.action(volume, "os-initialize_connection", body).status == 400
    assert receiver.accept(offered).status == 202
    assert donor.action(volume, "os-initialize_connection", body).status == 404
    mine = receiver.action(volume, "os-initialize_connection", body)
    assert mine.status == 200, mine.body
    return volume, mine.json["connection_info"]


@pytest.fixture
def place() -> Iterator[Path]:
    nbd_initiators.need_tools()
    with nbd_initiators.place() as path:
        yield path


def test_over_nbd_with_tls(place: Path) -> None:
    port = nbd_initiators.free_port()
    served = Served(
        place / "state",
        BACKEND + f"[target:exported]\nplugin = nbd\nlisten = 127.0.0.1\nports = {port}-{port + 20}\n",
    )
    try:
        donor, receiver = Project(served, "former"), Project(served, "next")
        with ExitStack() as kept:
            sessions, used = [], []

            def connection(info: Any) -> tuple[Connection, str]:
                data = dict(info["data"])
                return Connection(driver_volume_type="nbd", data=data, secret_as=""), data["auth_password"]

            def former(info: Any) -> None:
                door, secret = connection(info)
                used.append((door, secret))
                qemu_io(door, place, f"write -P {MINE} 0 1M", secret=secret)
                sessions.append(kept.enter_context(Session(door, place, secret=secret)))

            volume, info = given_away(donor, receiver, {"host": "h"}, former)
            ((door, secret),) = used
            mine, own = connection(info)
            qemu_io(mine, place, f"read -P {MINE} 0 1M", f"write -P {THEIRS} 0 1M", secret=own)
            (old,) = sessions
            for command in (f"read -P {THEIRS} 0 512", "write -P 1 0 512"):
                assert "failed: " in old.ask(command)
            assert qemu_io_says(door, place, "read 0 512", secret=secret).returncode != 0
            qemu_io(mine, place, f"read -P {THEIRS} 0 1M", secret=own)
            assert receiver.action(volume, "os-terminate_connection", {"connector": None}).status == 202
    finally:
        served.kill()


def test_over_iscsi_with_chap(tmp_path: Path) -> None:
    with Tgtd() as tgtd:
        options = f"[target:exported]\nplugin = tgt\nportals = {tgtd.portal}\ncontrol_socket = {tgtd.socket}\n"
        served = Served(tmp_path / "state", BACKEND + options)
        try:
            donor, receiver = Project(served, "former"), Project(served, "next")
            with ExitStack() as kept:
                sessions, logins = [], []

                def login(info: Any) -> Login:
                    data = info["data"]
                    portal, iqn = data["target_portal"], data["target_iqn"]
                    return Login(portal, iqn, INITIATOR, data["auth_username"], data["auth_password"])

                def former(info: Any) -> None:
                    logins.append(login(info))
                    sessions.append(kept.enter_context(Raw(logins[0])).login().ready())
                    sessions[0].write(0, bytes([MINE]) * 512)

                volume, info = given_away(donor, receiver, {"host": "h", "initiator": INITIATOR}, former)
                with Raw(login(info)) as mine:
                    mine.login().ready()
                    assert mine.read(0) == bytes([MINE]) * 512
                    mine.write(0, bytes([THEIRS]) * 512)
                    with pytest.raises((OSError, CommandFailed)):
                        sessions[0].read(0)
                    with Raw(logins[0]) as again, pytest.raises((LoginRefused, OSError)):
                        again.login()
                    assert tool(logins[0], "iscsi-inq").returncode != 0
                    assert mine.read(0) == bytes([THEIRS]) * 512
                assert receiver.action(volume, "os-terminate_connection", {"connector": None}).status == 202
        finally:
            served.kill()
