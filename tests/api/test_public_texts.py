"""Nothing that a member is told names a pool, a node, a path, a tool or an extra spec; administrators are told them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Answer, Served

NODE, SECTION, DOWN, GROUP, SPEC = "canarynode", "canaryfiles", "canarydown", "canaryvg", "canaryspec"
CONFIG = f"""
[service]
auth = none
node = {NODE}

[quota]
volumes = -1
snapshots = -1
gigabytes = -1

[backend:{SECTION}]
plugin = directory

[backend:{DOWN}]
plugin = lvm
volume_group = {GROUP}
"""
PASSING = ("creating", "deleting", "extending", "retyping")
LISTS = (
    "/volumes/detail", "/snapshots/detail", "/attachments/detail", "/messages", "/types", "/volume-transfers/detail",
    "/os-availability-zone", "/limits", "/extensions", "/volumes/summary", "/resource_filters", "/types/default",
)  # fmt: skip


class Asked:
    """Asks a served process as somebody, and keeps what is answered."""

    def __init__(self, served: Served, roles: str) -> None:
        self.served, self.roles = served, roles
        self.heard: list[str] = []

    def __call__(self, method: str, path: str, body: Any = None) -> Answer:
        headers = {
            "Content-Type": "application/json",
            "OpenStack-API-Version": "volume 3.71",
            "X-Roles": self.roles,
            "X-Project-Id": "tenant",
            "X-User-Id": "somebody",
        }
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.served.url + path, method=method, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as got:
                answer = Answer(got.status, dict(got.headers), got.read())
        except urllib.error.HTTPError as got:
            answer = Answer(got.code, dict(got.headers), got.read())
        self.heard.append(f"{method} {path}: {answer.body.decode()} {answer.headers}")
        return answer

    def create(self, body: dict[str, Any], *, noun: str = "volume") -> str:
        answer = self("POST", f"/{noun}s", {noun: body})
        assert answer.status == 202, answer.body
        return self.rested(noun, answer.json[noun]["id"])

    def rested(self, noun: str, found: str) -> str:
        deadline = time.monotonic() + 60
        while True:
            answer = self("GET", f"/{noun}s/{found}")
            if answer.status == 404 or answer.json[noun]["status"] not in PASSING:
                return found
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def messages(self) -> str:
        return " | ".join(message["user_message"] for message in self("GET", "/messages").json["messages"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service with one backend that works, and one that is down."""
    process = Served(tmp_path_factory.mktemp("canarypath") / "state", CONFIG)
    yield process
    process.kill()


@pytest.fixture(scope="module")
def told(served: Served) -> tuple[Asked, Asked]:
    """A member and an administrator of one project in which everything went wrong that can."""
    member, admin = Asked(served, "member,reader"), Asked(served, "admin,member,reader")
    for name, specs in (
        ("picky", {"volume_backend_name": SPEC}),
        ("down", {"volume_backend_name": DOWN}),
        ("thick", {"provisioning:type": "thick", f"capabilities:{SPEC}": "<is> True"}),
    ):
        assert admin("POST", "/types", {"volume_type": {"name": name, "extra_specs": specs}}).status == 200
    for name in ("picky", "down", "thick"):
        member.create({"size": 1, "volume_type": name})
    member.create({"size": 1_000_000})
    good = member.create({"size": 1})
    member("POST", f"/volumes/{good}/action", {"os-extend": {"new_size": 2_000_000}})
    member.rested("volume", good)
    member("POST", f"/volumes/{good}/action", {"os-retype": {"new_type": "picky"}})
    member.rested("volume", good)
    member("POST", f"/volumes/{good}/action", {"os-retype": {"new_type": "down", "migration_policy": "on-demand"}})
    member.rested("volume", good)
    elsewhere = {"connector": {"host": "elsewhere", "initiator": "iqn.2026-01.test:a"}}
    member("POST", f"/volumes/{good}/action", {"os-initialize_connection": elsewhere})
    member("POST", "/attachments", {"attachment": {"volume_uuid": good, **elsewhere}})
    host = f"{NODE}@{SECTION}"
    assert admin("PUT", "/os-services/freeze", {"host": host}).status == 200
    member("DELETE", f"/volumes/{good}")
    assert admin("PUT", "/os-services/thaw", {"host": host}).status == 200
    # From here on its files are gone from under the service.
    broken = member.create({"size": 1})
    reserved = member("POST", "/attachments", {"attachment": {"volume_uuid": broken}}).json["attachment"]["id"]
    snapshot = member.create({"volume_id": good}, noun="snapshot")
    files = next(served.state_dir.rglob("volumes"))
    assert files.is_dir()
    shutil.move(files, served.state_dir / "moved")
    files.write_text("no directory")
    here = {"attachment": {"connector": {"host": socket.gethostname(), "initiator": "iqn.2026-01.test:a"}}}
    assert member("PUT", f"/attachments/{reserved}", here).status == 503
    member("DELETE", f"/attachments/{reserved}")
    member.create({"size": 1})
    member.create({"size": 1, "source_volid": good})
    member.create({"size": 1, "snapshot_id": snapshot})
    member.create({"volume_id": good, "force": True}, noun="snapshot")
    for path in (f"/snapshots/{snapshot}", f"/volumes/{broken}"):
        member("DELETE", path)
        noun, found = path.strip("/").split("s/")
        member.rested(noun, found)
    for path in LISTS:
        member("GET", path)
    return member, admin


def canaries(served: Served) -> re.Pattern[str]:
    words = [NODE, SECTION, DOWN, GROUP, SPEC, "canarypath", str(served.state_dir), re.escape(socket.gethostname())]
    tools = ["vgs", "lvs", "cp:", "Errno", "Filter", "directory:", "volume_backend_name", "provisioning:type", ".raw"]
    return re.compile("|".join([*words, *(re.escape(tool) for tool in tools)]))


def test_a_member_is_told_no_name_of_the_inside(served: Served, told: tuple[Asked, Asked]) -> None:
    member, _ = told
    pattern = canaries(served)
    leaks = []
    for line in member.heard:
        # A member may say his own node's name, and is then told what he said.
        found = pattern.search(line)
        if found:
            leaks.append((found[0], line[:400]))
    assert leaks == []


def test_a_member_is_told_what_happened_and_what_to_do(told: tuple[Asked, Asked]) -> None:
    said = told[0].messages()
    for sentence in (
        "schedule allocate volume: No storage can take the volume: it does not have 1000000 GiB free; or",
        "it does not have the capabilities that the volume type requires",
        "extend volume: The only possible storage does not have 1999999 GiB free for this volume type. Ask for less,"
        " or ask your administrator. (request id req-",
        "ask your administrator",
    ):
        assert sentence in said, said


def test_an_administrator_is_told_the_names(served: Served, told: tuple[Asked, Asked]) -> None:
    said = told[1].messages()
    for word in (f"{NODE}@{SECTION}#", f"{NODE}@{DOWN}#", GROUP, SPEC, "CapacityFilter", "CapabilitiesFilter"):
        assert word in said, said
    assert str(served.state_dir) in said


def test_the_log_has_the_operators_text(served: Served, told: tuple[Asked, Asked]) -> None:
    log = served.log.read_text()
    for word in ("CapacityFilter", SPEC, f"The backend {NODE}@{SECTION} is frozen", "option hosts"):
        assert word in log, log[-4000:]


def test_the_operators_operation_list_has_it_too(served: Served, told: tuple[Asked, Asked]) -> None:
    from click.testing import CliRunner

    from blockstore.cli import main

    listed = CliRunner().invoke(main, ["operation", "list", "--all", "--state-dir", str(served.state_dir)])
    assert "CapacityFilter" in listed.output, listed.output
    assert Path(str(served.state_dir)).name in listed.output
