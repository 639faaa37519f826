"""A volume goes round all kinds of storage of this node, over HTTP: every byte arrives, nothing stays behind."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstore.service import Service
from tests.api.test_moving import fill, holds, idle, move, shown, whole
from tests.conftest import Client, backend_section

from .conftest import Disk

pytestmark = pytest.mark.lab

SERVED = Path("/run/lab-nfs")
PLACES = ("thin", "thick", "nas", "disk")


@pytest.fixture
def api(start_service: Callable[..., Service]) -> Iterator[Client]:
    thin, thick = Disk(6), Disk(6)
    SERVED.chmod(0o755)
    sections = (
        backend_section("thin", "lvm", volume_group=thin.vg, lvm_type="thin"),
        backend_section("thick", "lvm", volume_group=thick.vg, lvm_type="thick"),
        backend_section("nas", "nfs", exports="127.0.0.1:/"),
        backend_section("disk", "directory"),
    )
    service = start_service(backends=sections)
    yield Client(service)
    service.stop()
    (nas,) = (backend for pool, backend in service.backends.items() if "@nas#" in pool)
    subprocess.run(["umount", "-l", str(nas.path)], check=True)  # type: ignore[attr-defined]
    for path in SERVED.iterdir():
        subprocess.run(["rm", "-rf", str(path)], check=True)
    thin.close()
    thick.close()


def test_between_any_two(api: Client) -> None:
    made = api("POST", "/volumes", {"volume": {"size": 1}}).json["volume"]["id"]
    idle(api)
    found = shown(api, made)
    assert found["status"] == "available", api("GET", "/messages").json
    fill(api, made)
    here = found["os-vol-host-attr:host"].partition("@")[2].partition("#")[0]
    for start, end in itertools.permutations(PLACES, 2):
        for there in (start, end):
            if there != here:
                answer = move(api, made, f"blockstore@{there}")
                assert answer.status == 202, answer.body
                idle(api)
                here = there
            found = shown(api, made)
            assert found["migration_status"] in (None, "success"), api("GET", "/messages").json
            assert found["os-vol-host-attr:host"].partition("@")[2].partition("#")[0] == there
        assert holds(api, made), (start, end)
        whole(api)
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)
