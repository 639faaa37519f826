"""A volume goes between any two kinds of storage, over HTTP: every byte arrives, nothing stays behind.

`make test` draws a third of the ways by the seed, so that each kind is left twice and reached twice.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from blockstore.app.service import Service
from tests import sampling
from tests.api.volumes.test_migration import fill, holds, idle, move, shown, whole
from tests.ceph.conftest import Ceph, down, up
from tests.conftest import Client, backend_section, need, target_section

from .conftest import SERVED, Disk

pytestmark = pytest.mark.lab

PLACES = ("thin", "thick", "nas", "disk", "ceph", "nas-qcow2", "disk-qcow2")


@pytest.fixture
def ceph(tmp_path: Path) -> Iterator[Ceph]:
    need(shutil.which("ceph-osd"), "tests/ceph/install.sh")
    cluster = up(tmp_path / "c", "--size", "4G")
    yield cluster
    down(cluster)


@pytest.fixture
def api(start_service: Callable[..., Service], ceph: Ceph) -> Iterator[Client]:
    thin, thick = Disk(6), Disk(6)
    for kind in ("raw", "qcow2"):
        (SERVED / kind).mkdir()
    SERVED.chmod(0o755)
    cluster = {"ceph_conf": str(ceph.conf), "user": "cinder", "keyring": str(ceph.keyring)}
    sections = (
        backend_section("thin", "lvm", volume_group=thin.vg, lvm_type="thin"),
        backend_section("thick", "lvm", volume_group=thick.vg, lvm_type="thick"),
        backend_section("nas", "nfs", exports="127.0.0.1:/raw"),
        backend_section("nas-qcow2", "nfs", exports="127.0.0.1:/qcow2", format="qcow2"),
        backend_section("disk", "directory"),
        backend_section("disk-qcow2", "directory", format="qcow2"),
        backend_section("ceph", "rbd", pools="volumes", **cluster),
    )
    nbd = target_section("nbd", socket_dir="/run/lab-nbd")  # the state directory's path is too long for sockets
    service = start_service(backends=sections, targets=(nbd,))
    service.report()  # the lab may take longer than a start waits
    yield Client(service)
    service.stop()
    for pool, backend in service.backends.items():
        if "@nas" in pool:
            subprocess.run(["umount", "-l", str(backend.path)], check=True)  # type: ignore[attr-defined]
    for path in SERVED.iterdir():
        shutil.rmtree(path)
    thin.close()
    thick.close()


def tour() -> Iterator[str]:
    """Yield places so that each is followed by each other one, once."""
    for at, place in enumerate(PLACES):
        yield place
        for other in PLACES[at + 2 :]:
            yield from (other, place)
    yield from reversed(PLACES[:-1])


def drawn_tour() -> list[str]:
    """Return two rounds through all places, in which no way is gone twice."""
    dice = sampling.dice("migrations")
    places = dice.sample(PLACES, len(PLACES))
    stride = dice.randrange(2, len(places))  # of which no multiple is the number of places, a prime
    return [*places, *(places[at * stride % len(places)] for at in range(len(places) + 1))]


def place_of(api: Client, volume_id: str) -> str:
    host: str = shown(api, volume_id)["os-vol-host-attr:host"]
    return host.partition("@")[2].partition("#")[0]


def test_between_any_two(api: Client, ceph: Ceph) -> None:
    stops = list(tour()) if sampling.LONG else drawn_tour()
    ways = list(itertools.pairwise(stops))
    if sampling.LONG:
        assert sorted(ways) == sorted(itertools.permutations(PLACES, 2))
    else:
        assert len(set(ways)) == len(ways) == 2 * len(PLACES)
        assert {there for _, there in ways} == {here for here, _ in ways} == set(PLACES)
    made = api.volume()["id"]
    assert shown(api, made)["status"] == "available", api("GET", "/messages").json
    fill(api, made)
    if place_of(api, made) != stops[0]:
        stops.insert(0, place_of(api, made))
    for here, there in itertools.pairwise(stops):
        answer = move(api, made, f"blockstore@{there}")
        assert answer.status == 202, answer.body
        idle(api)
        found = shown(api, made)
        assert found["migration_status"] == "success", api("GET", "/messages").json
        assert place_of(api, made) == there
        assert holds(api, made), (here, there)
        whole(api)
    api("DELETE", f"/volumes/{made}")
    idle(api)
    whole(api)
    assert ceph.run("rbd", "ls", "volumes") + ceph.run("rbd", "trash", "ls", "volumes") == ""
