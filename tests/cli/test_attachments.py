"""Attaching to this node, and the attachments of a served process."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cli.invoking import refused, said
from tests.conftest import Served


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """A served process with a volume named disk."""
    served = serve()
    make(served, "disk")
    return served


def make(served: Served, name: str) -> str:
    """Make a volume of 1 GiB and return its id when it is available."""
    volume = asked(served, "POST", "/volumes", {"volume": {"size": 1, "name": name}})["volume"]["id"]
    deadline = time.monotonic() + 60
    while status_of(served, volume) != "available":
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return str(volume)


def status_of(served: Served, volume: str) -> str:
    return str(asked(served, "GET", f"/volumes/{volume}")["volume"]["status"])


def asked(served: Served, method: str, path: str, body: Any = None) -> Any:
    headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(served.url + path, method=method, data=data, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read() or b"null")


def test_attach_prints_the_path_and_detach_takes_it_back(served: Served) -> None:
    where = ("--state-dir", served.state_dir)
    path = Path(said("attach", "disk", *where).removesuffix("\n"))
    (volume,) = asked(served, "GET", "/volumes/detail")["volumes"]
    assert path == served.state_dir / "directory" / "volumes" / f"volume-{volume['id']}.raw"
    assert path.stat().st_size == 1 << 30
    assert (volume["status"], volume["attachments"][0]["host_name"]) == ("in-use", socket.gethostname())
    (shown,) = asked(served, "GET", "/attachments/detail")["attachments"]
    assert (shown["attach_mode"], shown["connection_info"]["access_mode"]) == ("rw", "rw")
    header, line = said("attachment", "list", *where).splitlines()
    assert header.split() == [
        "ATTACHMENT", "VOLUME", "PROJECT", "STATUS", "SERVER", "HOST", "TARGET", "CONNECTED", "REASON",
    ]  # fmt: skip
    assert line.split() == [
        shown["id"], volume["id"], "admin", "attached", "-", socket.gethostname(), "local", "nobody", "-",
    ]  # fmt: skip
    with held(path) as holder:
        assert str(holder) in said("attachment", "list", *where)
        assert said("attachment", "list", "--stale", *where) == "There are no such attachments.\n"
        line = refused("detach", "disk", *where)
        assert f"{path} is still in use on this node, by " in line
        assert line.endswith("Close it there first.")
        assert status_of(served, volume["id"]) == "in-use"
    assert shown["id"] in said("attachment", "list", "--stale", *where)
    assert said("detach", volume["id"], *where) == ""
    assert status_of(served, volume["id"]) == "available"
    assert said("attachment", "list", *where) == "There are no attachments.\n"
    assert refused("detach", "disk", *where) == (
        "blockstore: The volume disk is not attached to this node by `blockstore attach`."
    )


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Have another process hold a file open, and return its id: a process's own files are no use of a volume to it."""
    argv = [sys.executable, "-c", "import sys; file = open(sys.argv[1], 'rb'); print(flush=True); input()", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "\n"
        yield holder.pid
        holder.communicate("\n")


def test_attach_for_reading_only(served: Served) -> None:
    said("attach", "disk", "--read-only", "--state-dir", served.state_dir)
    (shown,) = asked(served, "GET", "/attachments/detail")["attachments"]
    assert (shown["attach_mode"], shown["connection_info"]["access_mode"]) == ("ro", "ro")


def test_attach_of_what_cannot_be_attached_is_one_sentence(served: Served) -> None:
    where = ("--state-dir", served.state_dir)
    said("attach", "disk", *where)
    (attachment,) = (a["id"] for a in asked(served, "GET", "/attachments")["attachments"])
    assert f"It is held by attachment {attachment} (no server, host {socket.gethostname()})." in refused(
        "attach", "disk", *where
    )
    assert refused("attach", "tape", *where) == "blockstore: No volumes are named tape; give the id."
    unknown = "00000000-0000-4000-8000-000000000000"
    assert refused("attach", unknown, *where) == f"blockstore: Volume {unknown} could not be found."
    second = make(served, "disk")
    assert refused("attach", "disk", *where) == "blockstore: 2 volumes are named disk; give the id."
    assert second in said("attach", second, *where)


def test_detach_leaves_the_attachments_of_others_alone(served: Served) -> None:
    """What a client attached through the API is not this command's to end."""
    (volume,) = (v["id"] for v in asked(served, "GET", "/volumes")["volumes"])
    connector = {"host": socket.gethostname()}
    made = asked(served, "POST", "/attachments", {"attachment": {"volume_uuid": volume, "connector": connector}})
    assert "is not attached to this node by" in refused("detach", "disk", "--state-dir", served.state_dir)
    line = said("attachment", "list", "--volume", volume, "--state-dir", served.state_dir)
    assert made["attachment"]["id"] in line
    other = "00000000-0000-4000-8000-000000000000"
    assert said("attachment", "list", "--volume", other, "--state-dir", served.state_dir) == (
        "There are no such attachments.\n"
    )


def test_what_os_initialize_connection_made_is_listed_and_can_be_ended(served: Served) -> None:
    """No list of the API shows it, and it keeps its volume from being given away."""
    where = ("--state-dir", served.state_dir)
    (volume,) = (v["id"] for v in asked(served, "GET", "/volumes")["volumes"])
    connector = {"host": socket.gethostname()}
    asked(served, "POST", f"/volumes/{volume}/action", {"os-initialize_connection": {"connector": connector}})
    assert asked(served, "GET", "/attachments?all_tenants=1")["attachments"] == []
    _, line = said("attachment", "list", *where).splitlines()
    attachment, found, project, *rest = line.split()
    assert (found, project, rest[:2]) == (volume, "admin", ["attaching", "(os-initialize_connection)"])
    assert said("attachment", "delete", attachment, *where) == ""
    assert said("attachment", "list", *where) == "There are no attachments.\n"
    assert refused("attachment", "delete", attachment, *where) == (
        f"blockstore: Volume attachment could not be found with filter: attachment_id = {attachment}."
    )
    assert status_of(served, volume) == "available"


def test_attach_survives_a_kill_of_the_service(served: Served, serve: Callable[..., Served]) -> None:
    path = said("attach", "disk", "--state-dir", served.state_dir)
    served.kill()
    again = serve(state_dir=served.state_dir)
    assert "attached" in said("attachment", "list", "--state-dir", again.state_dir)
    assert said("detach", "disk", "--state-dir", again.state_dir) == ""
    assert said("attach", "disk", "--state-dir", again.state_dir) == path


def test_attach_without_a_service_is_one_sentence(served: Served) -> None:
    served.stop()
    for command in ("attach", "detach"):
        line = refused(command, "disk", "--state-dir", served.state_dir)
        assert "is `blockstore serve` running?" in line
