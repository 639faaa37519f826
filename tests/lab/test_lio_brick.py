"""A volume exported by the plugin lio, and os-brick as the host that attaches it: from the first login to no trace."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator

import pytest
from blockstore_plugins.lio import LioTarget

from blockstore.targets.contract import Connection, Export
from tests.contents import write_file

from .conftest import Disk, run
from .initiator import HOSTS_OWN, Initiator, read_disk, traces, udev
from .lio import BOB, MIB, an_export, is_closed, left_over, make_lv, make_target

pytestmark = [pytest.mark.lab, pytest.mark.slow]

PATTERN = b"on the host's disk...".ljust(4096, b".") * 16


@pytest.fixture
def lio(disk: Disk) -> Iterator[LioTarget]:
    """A target of which nothing is left, neither here nor on the host."""
    made = make_target(uuid.uuid4().hex[:8])
    made.check()
    with udev():
        yield made
    for export_id in made.list_exports():
        made.withdraw(export_id)
    assert left_over(made.owner) == []
    assert traces() == []


def with_password(connection: Connection, export: Export) -> dict[str, object]:
    return {**connection.data, connection.secret_as: export.secret}


def test_a_host_attaches_writes_grows_and_detaches(lio: LioTarget, disk: Disk) -> None:
    with Initiator() as host:
        export = make_lv(disk)
        export = an_export(export.volume, export.path, HOSTS_OWN)
        path = host.connect(with_password(lio.export(export), export))
        assert lio.sessions() == {export.id: (HOSTS_OWN,)}
        write_file(path, PATTERN, MIB)
        assert read_disk(path, len(PATTERN), MIB) == PATTERN
        assert int(run("blockdev", "--getsize64", path)) == 64 * MIB

        run("lvextend", "-L", "128m", f"{disk.vg}/{export.volume}")
        lio.resize(export.id)
        assert host.extend(path) == 128 * MIB
        write_file(path, PATTERN, 127 * MIB)
        host.disconnect(path)
        assert lio.sessions() == {}
        lio.withdraw(export.id)
        assert is_closed(export.path)
        assert traces() == []

    # Attached elsewhere, and read only.
    with Initiator(BOB) as host:
        again = an_export(export.volume, export.path, BOB, read_only=True)
        path = host.connect(with_password(lio.export(again), again))
        assert lio.sessions() == {again.id: (BOB,)}
        assert (read_disk(path, len(PATTERN), MIB), read_disk(path, len(PATTERN), 127 * MIB)) == (PATTERN, PATTERN)
        assert run("blockdev", "--getro", path).strip() == "1"


def test_two_hosts_share_a_volume(lio: LioTarget, disk: Disk) -> None:
    volume = make_lv(disk)
    hosts = [Initiator(name) for name in (HOSTS_OWN, BOB)]
    exports = [an_export(volume.volume, volume.path, host.name) for host in hosts]
    paths = [
        host.connect(with_password(lio.export(export), export)) for host, export in zip(hosts, exports, strict=True)
    ]
    assert os.path.realpath(paths[0]) != os.path.realpath(paths[1])
    assert lio.sessions() == {export.id: (host.name,) for host, export in zip(hosts, exports, strict=True)}
    write_file(paths[0], PATTERN)
    assert read_disk(paths[1], len(PATTERN)) == PATTERN
    hosts[0].disconnect(paths[0])
    lio.withdraw(exports[0].id)
    write_file(paths[1], PATTERN[::-1])
    hosts[1].disconnect(paths[1])
    lio.withdraw(exports[1].id)
    assert is_closed(volume.path)
