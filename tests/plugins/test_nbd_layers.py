"""A volume that lies on layers, served over NBD: its consumer sees all of it, whatever the files say of each other."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockstore_plugins.nbd import images
from blockstore_plugins.nfs import NfsBackend

from blockstore.backends.contract import VolumeLocation
from blockstore.errors import BackendError
from tests.contents import read

from . import nbd_initiators
from .nbd_initiators import export, make, qemu_io
from .test_nfs_layers import nas, share, write

__all__ = ["nas", "share"]  # fixtures


@pytest.fixture
def place() -> Iterator[Path]:
    nbd_initiators.need_tools()
    with nbd_initiators.place() as path:
        yield path


@pytest.fixture
def located(nas: NfsBackend) -> VolumeLocation:
    """A volume on two layers."""
    nas.create_volume("v", 1)
    write(nas, "v", b"\x01" * 512)
    nas.create_snapshot("v", "s0")
    write(nas, "v", b"\x02" * 512, 2**20)
    nas.create_snapshot("v", "s1")
    found = nas.locate("v")
    assert len(found.layers) == 2
    return found


def test_a_volume_is_read_through_its_layers_and_written_above_them(
    nas: NfsBackend, located: VolumeLocation, place: Path
) -> None:
    target = make(place)
    wanted = export(located.path, format="qcow2", layers=located.layers)
    told = target.export(wanted)
    qemu_io(told, place, "read -P 1 0 512", "read -P 2 1M 512", "write -P 3 1M 512", "flush", "read -P 3 1M 512")
    target.withdraw(wanted.id)
    assert (read(nas, "v", 1), read(nas, "v", 1, 2**20)) == (b"\x01", b"\x03")
    with nas.open_snapshot("v", "s1") as file:
        file.seek(2**20)
        assert file.read(1) == b"\x02"


@pytest.mark.parametrize("spoil", ["a layer is missing", "a layer too many", "the last one names another file"])
def test_layers_that_do_not_fit_the_headers_are_refused(located: VolumeLocation, spoil: str) -> None:
    change: dict[str, Callable[[], tuple[Path, ...]]] = {
        "a layer is missing": lambda: tuple(located.layers[:1]),
        "a layer too many": lambda: (*located.layers, located.layers[-1]),
        "the last one names another file": lambda: tuple(located.layers),
    }
    if spoil == "the last one names another file":
        argv = ["qemu-img", "rebase", "-q", "-u", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", located.layers[-1]]
        subprocess.run(argv, check=True)
    with pytest.raises(BackendError, match="refers to another file"):
        images.blockdev(located.path, located.format, change[spoil]())
