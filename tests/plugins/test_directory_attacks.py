"""Whatever is planted in the directory or written into a volume, no other file is read, written or shown."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions, commands, files

from blockstore.backends.contract import GIB
from blockstore.errors import BackendError
from tests.contents import read, write

from .mounts import need
from .test_directory import make, tree

CANARY = b"the canary of another tenant" * 1000


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    path = tmp_path / "canary"
    path.write_bytes(CANARY)
    path.chmod(0o600)
    return path


@pytest.fixture
def pool(tmp_path: Path) -> DirectoryBackend:
    backend = make(tmp_path)
    backend.check()
    backend.create_volume("source", 1)
    backend.create_snapshot("source", "shot")
    return backend


def verbs(pool: DirectoryBackend, volume: str, snapshot: str) -> Iterator[Callable[[], object]]:
    """Yield every way to touch a volume and a snapshot."""
    yield lambda: pool.create_volume(volume, 1)
    yield lambda: pool.extend_volume(volume, 2)
    yield lambda: read(pool, volume, 100)
    yield lambda: write(pool, volume, b"written")
    yield lambda: pool.locate(volume)
    yield lambda: pool.create_snapshot(volume, "shot-2")
    yield lambda: pool.clone_volume(volume, 1, "source")
    yield lambda: pool.clone_volume("clone", 1, volume)
    yield lambda: pool.create_volume_from_snapshot("made", 1, "source", snapshot)
    yield lambda: pool.revert_volume("source", snapshot)
    yield lambda: pool.open_snapshot("source", snapshot).__enter__()
    yield lambda: pool.delete_snapshot("source", snapshot)
    yield lambda: pool.delete_volume(volume)


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "hard link", "pipe", "directory", "open mode"])
def test_what_is_planted_under_a_name_is_refused(pool: DirectoryBackend, canary: Path, kind: str) -> None:
    (pool.path / "snapshots" / "source" / "shot.raw").unlink()
    for path in (pool.path / "victim.raw", pool.path / "snapshots" / "source" / "shot.raw"):
        if kind == "symlink":
            path.symlink_to(canary)
        elif kind == "dangling symlink":
            path.symlink_to(pool.path / "made-by-us")
        elif kind == "hard link":
            os.link(canary, path)
        elif kind == "pipe":
            os.mkfifo(path, 0o600)
        elif kind == "directory":
            path.mkdir()
        else:
            path.write_bytes(b"")
            path.chmod(0o644)
    before = tree(pool.path)
    for verb in verbs(pool, "victim", "shot"):
        with pytest.raises(BackendError, match=r"which blockstore never creates|other users can reach its data"):
            verb()
        assert tree(pool.path) == before
    assert canary.read_bytes() == CANARY


def test_links_planted_under_temporary_names_are_removed_not_followed(pool: DirectoryBackend, canary: Path) -> None:
    planted = [
        pool.path / ".victim.tmp",
        pool.path / ".victim.open",
        pool.path / "snapshots" / ".shot-2.tmp",
        pool.path / "snapshots" / "victim" / ".shot-2.tmp",
    ]

    def plant() -> None:
        planted[-1].parent.mkdir(0o700, exist_ok=True)
        for path in planted:
            path.unlink(missing_ok=True)
            path.symlink_to(canary)

    for verb in (
        lambda: pool.create_volume("victim", 1),
        lambda: pool.create_snapshot("victim", "shot-2"),
        lambda: pool.revert_volume("victim", "shot-2"),
        lambda: pool.delete_snapshot("victim", "shot-2"),
        lambda: pool.delete_volume("victim"),
        lambda: pool.clone_volume("victim", 1, "source"),
    ):
        plant()
        verb()
    assert canary.read_bytes() == CANARY


@pytest.mark.parametrize("where", ["snapshots", "snapshots/source"])
def test_directories_planted_as_links_are_refused(pool: DirectoryBackend, tmp_path: Path, where: str) -> None:
    outside = tmp_path / "outside"
    (pool.path / where).rename(outside)
    (pool.path / where).symlink_to(outside)
    before = tree(outside)
    for verb in (
        lambda: pool.create_snapshot("source", "shot-2"),
        lambda: pool.delete_snapshot("source", "shot"),
        lambda: pool.open_snapshot("source", "shot").__enter__(),
        lambda: pool.revert_volume("source", "shot"),
        lambda: pool.delete_volume("source"),
    ):
        with pytest.raises(BackendError, match="must be a directory"):
            verb()
    assert tree(outside) == before


@pytest.mark.parametrize("kind", ["symlink", "hard link"])
def test_a_swap_between_look_and_use_is_noticed(
    pool: DirectoryBackend, canary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What was proved is what is used: the descriptor, not the name."""
    path = pool.path / "source.raw"
    real_open = os.open
    swaps = 0

    def swap_then_open(name: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        nonlocal swaps
        if name == "source.raw":
            swaps += 1
            path.unlink(missing_ok=True)
            path.symlink_to(canary) if kind == "symlink" else os.link(canary, path)
        return real_open(name, flags, mode, dir_fd=dir_fd)

    for verb in (
        lambda: read(pool, "source", 10),
        lambda: write(pool, "source", b"written"),
        lambda: pool.clone_volume("clone", 1, "source"),
        lambda: pool.extend_volume("source", 2),
        lambda: pool.create_snapshot("source", "shot-2"),
    ):
        path.unlink(missing_ok=True)
        path.write_bytes(b"")
        path.chmod(0o600)
        os.truncate(path, GIB)
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", swap_then_open)
            with pytest.raises(BackendError, match="which blockstore never creates"):
                verb()
    assert swaps == 5
    assert canary.read_bytes() == CANARY


def test_what_is_planted_is_not_listed(pool: DirectoryBackend, canary: Path) -> None:
    (pool.path / "victim.raw").symlink_to(canary)
    (pool.path / "other.raw.bak").write_bytes(b"")
    (pool.path / "lost+found").mkdir()
    assert pool.list_volumes() == {"source": 1}
    assert pool.list_snapshots() == {"shot": "source"}


def qcow2_header(backing: Path) -> bytes:
    """Return the header of a 10 GiB qcow2 image that takes its bytes from another file (CVE-2014-3641)."""
    name = str(backing).encode()
    fields = (b"QFI\xfb", 2, 512, len(name), 16, 10 * GIB, 0, 1, 4096, 8192, 1, 0, 0)
    return struct.pack(">4sIQIIQIIQQIIQ", *fields).ljust(512, b"\0") + name


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_header_written_by_a_guest_is_just_bytes(tmp_path: Path, canary: Path, kind: str) -> None:
    """A5: the guest says its volume is a qcow2 image backed by another tenant's file; nobody believes it."""
    if kind == "qcow2":
        need("qemu-img")
    pool = make(tmp_path, kind)
    pool.check()
    pool.create_volume("evil", 1)
    header = qcow2_header(canary)
    write(pool, "evil", header)
    pool.create_snapshot("evil", "shot")
    pool.clone_volume("clone", 2, "evil")
    pool.create_volume_from_snapshot("made", 3, "evil", "shot")
    pool.create_volume("evil", 1)
    pool.extend_volume("evil", 2)
    pool.revert_volume("evil", "shot")
    assert pool.list_volumes() == {"evil": 1, "clone": 2, "made": 3}
    for name, size in (("evil", 1), ("clone", 2), ("made", 3)):
        with pool.open_volume(name, "rb") as file:
            assert file.seek(0, os.SEEK_END) == size * GIB
            file.seek(0)
            assert file.read(64 * 1024) == header.ljust(64 * 1024, b"\0")
    with pool.open_snapshot("evil", "shot") as file:
        assert file.seek(0, os.SEEK_END) == GIB
    for path in pool.path.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                assert CANARY[:28] not in file.read(4 * 2**20)


def test_every_call_of_qemu_img_names_formats_and_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No format is ever guessed, and no name is ever looked up twice."""
    need("qemu-img")
    calls: list[tuple[str, ...]] = []
    run = commands.run
    monkeypatch.setattr(commands, "run", lambda argv, **kwargs: calls.append(tuple(argv)) or run(argv, **kwargs))
    pool = make(tmp_path, "qcow2")
    pool.check()
    pool.create_volume("volume-1", 1)
    pool.extend_volume("volume-1", 2)
    write(pool, "volume-1", b"bytes")
    pool.clone_volume("volume-2", 3, "volume-1")
    assert {argv[1] for argv in calls} == {"create", "resize", "convert"}
    for argv in calls:
        assert argv[3] == "-f"
        assert argv[1] != "convert" or argv[5] == "-O"
        paths = [word for word in argv if "/" in word]
        assert paths
        assert all(word.startswith(f"/proc/{os.getpid()}/fd/") for word in paths)


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
@pytest.mark.parametrize("umask", [0, 0o777], ids=["umask 0", "umask 777"])
def test_everything_is_private_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, umask: int
) -> None:
    """A20: stat after every verb, and while a copy is being made."""
    if kind == "qcow2":
        need("qemu-img")
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    pool = DirectoryBackend("d", DirectoryOptions(path=tmp_path / "volumes", format=kind), tmp_path)
    checked = 0

    def look(_percent: int = 0) -> None:
        nonlocal checked
        for path in (pool.path, *pool.path.rglob("*")):
            found = path.lstat()
            wanted = 0o700 if stat.S_ISDIR(found.st_mode) else 0o600
            assert stat.S_IMODE(found.st_mode) == wanted, path
            checked += 1

    before = os.umask(umask)
    try:
        for verb in (
            pool.check,
            lambda: pool.create_volume("volume-1", 1),
            lambda: write(pool, "volume-1", b"bytes"),
            lambda: pool.extend_volume("volume-1", 2),
            lambda: pool.create_snapshot("volume-1", "snap-1"),
            lambda: pool.clone_volume("volume-2", 3, "volume-1", look),
            lambda: pool.create_volume_from_snapshot("volume-3", 3, "volume-1", "snap-1", look),
            lambda: pool.revert_volume("volume-1", "snap-1", look),
            lambda: read(pool, "volume-1", 10),
            lambda: pool.delete_snapshot("volume-1", "snap-1"),
            lambda: pool.delete_volume("volume-1"),
        ):
            verb()
            look()
    finally:
        os.umask(before)
    assert checked > 40
