"""Layers on a real NFS server: where they are used, and that consumers on other machines may go on meanwhile."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockstore_plugins.nfs import NfsBackend, layers
from blockstore_plugins.nfs.layers import LAYER, SUPERSEDED

from blockstore.conformance.backend import BackendConformance
from blockstore.errors import InUse, Unreachable

from .test_nfs import EXPORT, SERVED, mount, name, run

__all__ = ["mount"]  # a fixture

pytestmark = pytest.mark.lab

OLD = "vers=4.1"
"""The server copies nothing before NFS 4.2."""


class TestLayered(BackendConformance):
    @pytest.fixture
    def backend(self, mount: Callable[..., NfsBackend]) -> NfsBackend:
        return mount(format="qcow2", mount_options=OLD)


@pytest.fixture
def nas(mount: Callable[..., NfsBackend], monkeypatch: pytest.MonkeyPatch) -> NfsBackend:
    monkeypatch.setattr(layers, "GUARDED_S", 0)
    return mount(format="qcow2", mount_options=OLD, max_layers=3)


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """The export as another machine mounts it: the server takes who speaks another version for somebody else."""
    point = tmp_path / "elsewhere"
    point.mkdir()
    run("mount", "-t", "nfs4", "-o", "vers=4.2,lookupcache=none", EXPORT, str(point))
    yield point
    run("umount", "-f", "-l", str(point))


def there(kind: str) -> list[str]:
    return [path.name for path in SERVED.iterdir() if path.name.startswith(kind)]


def tended(nas: NfsBackend) -> None:
    assert nas._background_tasks.wait_idle(600)


@pytest.mark.parametrize(
    ("options", "layered"),
    [
        ({"format": "qcow2", "mount_options": OLD}, True),
        ({"format": "qcow2", "mount_options": "vers=4.2"}, False),
        ({"format": "qcow2", "mount_options": "vers=4.2", "layers": "yes"}, True),
        ({"format": "qcow2", "mount_options": OLD, "layers": "no"}, False),
        ({"format": "raw", "mount_options": OLD}, False),
    ],
)
def test_layers_are_for_shares_that_cannot_copy(
    mount: Callable[..., NfsBackend], options: dict[str, str], layered: bool
) -> None:
    nas, volume = mount(**options), name()
    nas.create_volume(volume, 1)
    nas.create_snapshot(volume, name().replace("volume", "snap"))
    assert bool(there(LAYER)) == layered


def test_a_consumer_elsewhere_goes_on_while_its_layers_are_merged(nas: NfsBackend, elsewhere: Path) -> None:
    volume, first, second = name(), "snap-first", "snap-second"
    nas.create_volume(volume, 1)
    text = os.urandom(3 * 2**20)
    with nas.open_volume(volume, "r+b") as file:
        file.write(text)
    nas.create_snapshot(volume, first)
    path = elsewhere / f"{volume}.qcow2"
    run("qemu-io", "-f", "qcow2", "-c", "write -P 7 8M 1M", str(path))
    nas.create_snapshot(volume, second)
    told = nas.direct(volume).data
    assert (told["name"], told["options"]) == (path.name, "-o vers=4.1,lookupcache=none")
    argv = ["qemu-io", "-f", "qcow2", str(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None

        def ask(words: str) -> str:
            assert qemu.stdin is not None
            assert qemu.stdout is not None
            print(words, file=qemu.stdin, flush=True)
            said = ""
            for line in qemu.stdout:
                said += line
                if "ops;" in line or "failed" in line:
                    break
            return said

        assert "ops;" in ask("read -P 7 8M 1M")
        with pytest.raises(InUse, match="another machine"):
            nas.extend_volume(volume, 2)
        nas.create_snapshot(volume, "snap-live")  # of what is open: copied
        nas.delete_snapshot(volume, first)
        nas.delete_snapshot(volume, second)
        tended(nas)
        assert len(nas.locate(volume).layers) == 2
        assert "ops;" in ask("read 0 3M")
        assert "ops;" in ask("read -P 7 8M 1M")
        assert "ops;" in ask("write -P 9 16M 1M")
        qemu.stdin.close()
        qemu.stdout.read()
    nas.check()
    tended(nas)
    assert len(nas.locate(volume).layers) == 1
    assert there(SUPERSEDED) == []
    with nas.open_volume(volume, "rb") as file:
        assert hashlib.sha256(file.read(3 * 2**20)).digest() == hashlib.sha256(text).digest()
        file.seek(16 * 2**20)
        assert file.read(2**20) == b"\t" * 2**20
    run("qemu-io", "-f", "qcow2", "-c", "read -P 9 16M 1M", str(path))


def test_a_name_that_another_machine_has_cached_is_not_written_by(
    mount: Callable[..., NfsBackend], tmp_path: Path
) -> None:
    """Mounted otherwise than it is told, it may take the layer for the volume, and cannot write to it."""
    nas, volume, point = mount(format="qcow2", mount_options=OLD), name(), tmp_path / "careless"
    nas.create_volume(volume, 1)
    point.mkdir()
    run("mount", "-t", "nfs4", "-o", "vers=4.2,acregmin=600,acdirmin=600,nocto", EXPORT, str(point))
    try:
        write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(point / f"{volume}.qcow2")]
        subprocess.run(write, check=True, capture_output=True)
        nas.create_snapshot(volume, "snap-one")
        with nas.open_snapshot(volume, "snap-one") as file:
            before = file.read(2 * 2**20)
        write[4] = "write -P 9 0 2M"
        late = subprocess.run(write, check=False, capture_output=True, text=True)
        with nas.open_snapshot(volume, "snap-one") as file:
            assert file.read(2 * 2**20) == before
        if late.returncode == 0 and "lock" not in late.stderr:  # it asked the server for the name after all
            with nas.open_volume(volume, "rb") as file:
                assert file.read(1) == b"\t"
    finally:
        run("umount", "-f", "-l", str(point))


def test_another_mount_of_this_machine_must_not_hide_what_is_written(
    mount: Callable[..., NfsBackend], tmp_path: Path
) -> None:
    """The kernel shows by one mount what it remembers, not what was written by the other."""
    nas, raw, theirs = mount(format="qcow2"), mount(), tmp_path / "theirs"
    theirs.mkdir()
    run("mount", "-t", "nfs4", "-o", "vers=4.2", EXPORT, str(theirs))
    delegations = Path("/sys/module/nfsv4/parameters/delegation_watermark")
    before = delegations.read_text()
    try:
        with pytest.raises(Unreachable, match=f"also mounted at {theirs}, with"):
            nas.check()
        raw.check()  # reads past what is remembered
        delegations.write_text("0")
        nas.check()
    finally:
        delegations.write_text(before)
        run("umount", str(theirs))
    nas.check()


def test_another_machine_does_not_tend(nas: NfsBackend, elsewhere: Path) -> None:
    volume = name()
    nas.create_volume(volume, 1)
    nas.create_snapshot(volume, "snap-one")
    tended(nas)
    done = subprocess.run(
        ["qemu-io", "-f", "raw", "-c", "read 0 0", str(elsewhere / ".tender")], capture_output=True, check=False
    )
    assert b"lock" in done.stderr  # QEMU's locks, which the tender holds, reach across machines
