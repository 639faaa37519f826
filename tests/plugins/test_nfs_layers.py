"""Layers below volumes and snapshots: what reads as what, what goes when, on a local directory in a share's place."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from blockstore_plugins.nfs import NfsBackend, NfsOptions, layers, mounts
from blockstore_plugins.nfs.layers import LAYER, SUPERSEDED

from blockstore.backends.contract import GIB
from blockstore.conformance.backend import BackendConformance
from blockstore.errors import BackendError, InUse
from tests.contents import read, read_snapshot

from .mounts import need

MIB = 2**20


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., NfsBackend]:
    """Give a function that opens the same share, as a process does that was started anew."""
    need("qemu-img")

    def mounted(_export: str, at: Path, *_args: object) -> int:
        at.mkdir(mode=0o700, parents=True, exist_ok=True)
        return at.stat().st_dev

    monkeypatch.setattr(mounts, "mounted", mounted)
    monkeypatch.setattr(layers, "GUARDED_S", 0)
    opened: list[NfsBackend] = []

    def start(**more: object) -> NfsBackend:
        for before in opened:  # as if its process were gone
            before._merger.leave()
            before._layers.unguard(everything=True)
        options = {"exports": "nas:/volumes", "format": "qcow2", "layers": "yes", "max_layers": 3, **more}
        backend = NfsBackend("nas", NfsOptions(**options), tmp_path)  # type: ignore[arg-type]
        backend.check()
        opened.append(backend)
        return backend

    return start


@pytest.fixture
def nas(share: Callable[..., NfsBackend]) -> NfsBackend:
    return share()


class TestLayered(BackendConformance):
    @pytest.fixture
    def backend(self, nas: NfsBackend) -> NfsBackend:
        return nas


def write(nas: NfsBackend, volume: str, text: bytes, at: int = 0) -> None:
    """As a consumer does: by QEMU, into the volume's file."""
    path = nas.path / f"{volume}.qcow2"
    (nas.state_dir / "text").write_bytes(text)
    command = f"write -s {nas.state_dir / 'text'} {at} {len(text)}"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, path], check=True, stdout=subprocess.DEVNULL)


def tended(nas: NfsBackend) -> None:
    assert nas._background_tasks.wait_idle(600)


def hidden(nas: NfsBackend, kind: str) -> list[str]:
    return sorted(path.name for path in nas.path.iterdir() if path.name.startswith(kind))


def chain(nas: NfsBackend, volume: str) -> int:
    return len(nas.locate(volume).layers)


@contextmanager
def opened_by_qemu(nas: NfsBackend, volume: str) -> Iterator[None]:
    """A consumer that has a volume open, with all layers that it has now."""
    path = nas.path / f"{volume}.qcow2"
    argv = ["qemu-io", "-f", "qcow2", path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"read 0 512\n")
        process.stdin.flush()
        process.stdout.readline()  # it has been opened
        yield
        process.stdin.write(b"quit\n")
        process.stdin.close()
        process.stdout.read()


def test_a_snapshot_takes_no_room_and_keeps_its_bytes(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    write(nas, "v", os.urandom(8 * MIB))
    write(nas, "v", b"first")
    nas.create_snapshot("v", "s")
    write(nas, "v", b"later")
    assert (read(nas, "v", 5), read_snapshot(nas, "v", "s", 5)) == (b"later", b"first")
    used = sum(path.stat().st_blocks * 512 for path in nas.path.rglob("*.qcow2"))
    assert used < 10 * MIB
    tended(nas)
    assert nas.capacity().deepest_chain == 1
    nas.revert_volume("v", "s")
    assert read(nas, "v", 5) == b"first"


def test_what_nobody_lies_on_goes(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    write(nas, "v", b"first")
    nas.create_snapshot("v", "s")
    nas.create_volume_from_snapshot("c", 2, "v", "s")
    nas.delete_snapshot("v", "s")
    nas.delete_volume("v")
    tended(nas)
    assert read(nas, "c", 5) == b"first"
    assert len(hidden(nas, LAYER)) == 1
    nas.delete_volume("c")
    tended(nas)
    assert not hidden(nas, LAYER)
    assert [path.name for path in nas.path.iterdir() if path.is_file()] == [".tender"]


def test_a_clone_of_what_rests_adds_no_layer(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    write(nas, "v", b"first")
    for number in range(5):
        nas.clone_volume(f"c{number}", 1, "v")
        nas.create_snapshot("v", f"s{number}")
    tended(nas)
    assert len(hidden(nas, LAYER)) == 1
    assert {chain(nas, volume) for volume in nas.list_volumes()} == {1}


def test_layers_that_only_one_lies_on_are_merged(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    for number in range(6):
        write(nas, "v", b"%d" % number * 1000, number * MIB)
        nas.create_snapshot("v", f"s{number}")
        nas.delete_snapshot("v", f"s{number}")
        tended(nas)
    assert chain(nas, "v") == 1
    assert len(hidden(nas, LAYER)) == 1
    assert [read(nas, "v", 1, number * MIB) for number in range(6)] == [b"%d" % number for number in range(6)]


def test_zeros_hide_what_lies_below_also_when_merged(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    write(nas, "v", b"x" * MIB)
    nas.create_snapshot("v", "s0")
    path = nas.path / "v.qcow2"
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -z 0 512k", path], check=True, stdout=subprocess.DEVNULL)
    nas.create_snapshot("v", "s1")
    nas.create_volume_from_snapshot("c", 1, "v", "s1")
    nas.delete_snapshot("v", "s0")
    nas.delete_snapshot("v", "s1")
    tended(nas)
    assert (chain(nas, "v"), chain(nas, "c")) == (1, 1)
    for volume in "vc":
        assert read(nas, volume, MIB) == bytes(MIB // 2) + b"x" * (MIB // 2)


def test_a_chain_of_snapshots_that_stay_is_kept_short(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    for number in range(9):
        write(nas, "v", b"%d" % number)
        nas.create_snapshot("v", f"s{number}")
        tended(nas)
        assert nas.capacity().deepest_chain == chain(nas, "v") <= 3
    for number in range(9):
        assert read_snapshot(nas, "v", f"s{number}", 1) == b"%d" % number


def test_what_grew_reads_as_zeros_beyond_its_layer(nas: NfsBackend) -> None:
    nas.create_volume("v", 1)
    write(nas, "v", b"end", GIB - 512)
    nas.create_snapshot("v", "s")
    nas.extend_volume("v", 2)
    nas.create_snapshot("v", "t")
    nas.create_volume_from_snapshot("c", 3, "v", "t")
    assert read(nas, "c", 1024, GIB - 512) == b"end".ljust(1024, b"\0")
    nas.revert_volume("v", "s")
    assert nas.list_volumes() == {"v": 1, "c": 3}
    nas.extend_volume("v", 3)
    assert read(nas, "v", 1024, GIB - 512) == b"end".ljust(1024, b"\0")


def chained(nas: NfsBackend) -> None:
    """A volume on two layers, each with a snapshot."""
    nas.create_volume("v", 1)
    write(nas, "v", b"first")
    nas.create_snapshot("v", "s0")
    write(nas, "v", b"second", MIB)
    nas.create_snapshot("v", "s1")


def test_what_a_consumer_has_open_is_copied_and_what_lies_below_stays(nas: NfsBackend) -> None:
    chained(nas)
    with opened_by_qemu(nas, "v"):
        before = (nas.path / "v.qcow2").stat().st_ino
        nas.create_snapshot("v", "s2")
        assert (nas.path / "v.qcow2").stat().st_ino == before
        with pytest.raises(InUse, match="a QEMU process uses"):
            nas.extend_volume("v", 2)
        nas.delete_snapshot("v", "s0")
        tended(nas)
        assert chain(nas, "v") == 2
    nas.check()
    tended(nas)
    assert chain(nas, "v") == 1
    assert hidden(nas, SUPERSEDED) == []
    assert read(nas, "v", 6, MIB) == b"second"
    assert (read_snapshot(nas, "v", "s1", 5), read_snapshot(nas, "v", "s2", 5)) == (b"first", b"first")


def test_what_the_service_has_connected_counts_as_open(nas: NfsBackend) -> None:
    """On this machine NFS may hide QEMU's locks."""
    chained(nas)
    nas.is_attached = lambda volume: volume == "v"
    before = (nas.path / "v.qcow2").stat().st_ino
    nas.create_snapshot("v", "s2")
    nas.clone_volume("c", 1, "v")
    assert (nas.path / "v.qcow2").stat().st_ino == before
    nas.delete_snapshot("v", "s0")
    tended(nas)
    assert chain(nas, "v") == 2
    nas.is_attached = lambda _volume: False
    nas.check()
    tended(nas)
    assert chain(nas, "v") == 1
    assert (read(nas, "c", 5), read(nas, "c", 6, MIB)) == (b"first", b"second")


def test_who_opened_it_in_the_last_instant_keeps_what_they_have(nas: NfsBackend) -> None:
    chained(nas)
    nas._merger._is_used = lambda *_args: False
    with opened_by_qemu(nas, "v"):
        nas.delete_snapshot("v", "s0")
        tended(nas)
        assert len(hidden(nas, SUPERSEDED)) == 1
        nas.check()
        tended(nas)
        assert len(hidden(nas, SUPERSEDED)) == 1
    nas.check()
    tended(nas)
    assert hidden(nas, SUPERSEDED) == []
    assert read(nas, "v", 6, MIB) == b"second"


def test_who_takes_a_new_layer_for_the_volume_cannot_write(nas: NfsBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that has the volume's name cached opens the file that is a layer now."""
    monkeypatch.setattr(layers, "GUARDED_S", 3600)
    nas.create_volume("v", 1)
    nas.create_snapshot("v", "s")
    (layer,) = hidden(nas, LAYER)
    late = ["qemu-io", "-f", "qcow2", "-c", "write 0 1k", nas.path / layer]
    done = subprocess.run(late, capture_output=True, text=True, check=False)
    assert "lock" in done.stderr
    write(nas, "v", b"first")
    assert read_snapshot(nas, "v", "s", 5) == bytes(5)
    nas.delete_snapshot("v", "s")
    nas.delete_volume("v")
    tended(nas)
    assert hidden(nas, LAYER) == [layer]  # it waits until it is nobody's any more
    clock = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: clock() + 3601)
    nas.check()
    tended(nas)
    assert hidden(nas, LAYER) == []


def test_only_one_process_tends_a_share(nas: NfsBackend, tmp_path: Path) -> None:
    nas.create_volume("v", 1)
    nas.create_snapshot("v", "s")
    tended(nas)
    other = NfsBackend("other", nas.options, tmp_path)
    other.check()
    tended(other)
    (stray := nas.path / f"{LAYER}{'0' * 16}.qcow2").write_bytes((nas.path / hidden(nas, LAYER)[0]).read_bytes())
    stray.chmod(0o600)
    other._merge_soon()
    tended(other)
    assert stray.exists()
    nas._merge_soon()
    tended(nas)
    assert not stray.exists()


@pytest.mark.parametrize(
    ("backing", "kind"),
    [
        ("/etc/passwd", "raw"), ("/etc/passwd", "qcow2"), ("../../secret", "qcow2"), (".layer-0.qcow2", "qcow2"),
        (".layer-0123456789abcdef.qcow2", "raw"), ("json:{}", "qcow2"), ("nbd://127.0.0.1/x", "raw"),
        ("v.qcow2", "qcow2"),
    ],
)  # fmt: skip
def test_a_header_that_names_anything_but_a_layer_is_refused(nas: NfsBackend, backing: str, kind: str) -> None:
    path = nas.path / "v.qcow2"
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", kind, "-b", backing, path, "1G"]
    subprocess.run(argv, check=True)
    path.chmod(0o600)
    for act in (
        lambda: read(nas, "v", 1),
        lambda: nas.extend_volume("v", 2),
        lambda: nas.create_snapshot("v", "s"),
        lambda: nas.clone_volume("c", 1, "v"),
        lambda: nas.locate("v"),
    ):
        with pytest.raises(BackendError, match="refers to another file"):
            act()


def test_layers_in_a_circle_are_refused(nas: NfsBackend) -> None:
    names = [f"{LAYER}{digit * 16}.qcow2" for digit in "ab"]
    for name, backing in zip(names, reversed(names), strict=True):
        argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, nas.path / name, "1G"]
        subprocess.run(argv, check=True)
        (nas.path / name).chmod(0o600)
    argv = ["qemu-img", "create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", names[0], nas.path / "v.qcow2", "1G"]
    subprocess.run(argv, check=True)
    (nas.path / "v.qcow2").chmod(0o600)
    with pytest.raises(BackendError, match="form a loop"):
        read(nas, "v", 1)
    nas._merge_soon()
    tended(nas)


def test_volumes_made_on_layers_are_served_without(share: Callable[..., NfsBackend]) -> None:
    nas = share()
    nas.create_volume("v", 1)
    write(nas, "v", b"first")
    nas.create_snapshot("v", "s")
    nas = share(layers="no")
    nas.clone_volume("c", 1, "v")
    nas.create_volume_from_snapshot("d", 2, "v", "s")
    nas.delete_snapshot("v", "s")
    nas.delete_volume("v")
    tended(nas)
    assert (read(nas, "c", 5), read(nas, "d", 5)) == (b"first", b"first")
