"""A real kernel NFS server and mount: the conformance suite, a server that goes away, fills up, or turns read-only."""

from __future__ import annotations

import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from blockstore_plugins.nfs import NfsBackend, NfsOptions, mounts

from blockstore.conformance.backend import BackendConformance
from blockstore.errors import BackendError, NoSpace, Unreachable

from .conftest import SERVED

pytestmark = pytest.mark.lab

EXPORT = "127.0.0.1:/"


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, capture_output=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., NfsBackend]]:
    """Give a function that makes a backend on the lab's export, empty and ours alone."""
    made: list[NfsBackend] = []
    SERVED.chmod(0o755)

    def make(**options: object) -> NfsBackend:
        # type: ignore[arg-type]
        backend = NfsBackend("share", NfsOptions(**{"exports": EXPORT, "timeout_s": 30, **options}), tmp_path)
        made.append(backend)
        backend.check()
        return backend

    yield make
    for backend in made:
        assert backend._background_tasks.wait_idle(600)
        backend._merger.leave()  # what it has open would keep the mount, and what that remembers, alive
        backend._layers.unguard(everything=True)
        subprocess.run(["umount", "-f", "-l", str(backend.path)], check=False, capture_output=True)
    for path in SERVED.iterdir():
        run("rm", "-rf", str(path))


class TestNfs(BackendConformance):
    @pytest.fixture(params=["raw", "qcow2"])
    def backend(self, mount: Callable[..., NfsBackend], request: pytest.FixtureRequest) -> NfsBackend:
        return mount(format=request.param)


def name() -> str:
    return f"volume-{uuid.uuid4()}"


def test_it_is_mounted_once_and_again_when_it_went(mount: Callable[..., NfsBackend]) -> None:
    backend = mount()
    volume = name()
    backend.create_volume(volume, 1)
    assert (SERVED / f"{volume}.raw").stat().st_mode & 0o777 == 0o600
    backend.check()
    assert Path("/proc/self/mountinfo").read_text().count(str(backend.path)) == 1
    run("umount", str(backend.path))
    with pytest.raises(Unreachable, match="not mounted"):
        backend.create_volume(name(), 1)
    assert list(backend.path.iterdir()) == []  # nothing was written beside the share
    backend.check()
    assert backend.list_volumes() == {volume: 1}
    assert backend.direct(volume).data == {
        "export": EXPORT, "name": f"{volume}.raw", "options": "-o vers=4.2", "format": "raw", "discard": True,
    }  # fmt: skip


def test_what_another_mount_of_this_machine_wrote_is_read(mount: Callable[..., NfsBackend], tmp_path: Path) -> None:
    """To the server both mounts are one client, which it does not tell what it has written itself."""
    backend, volume, theirs = mount(), name(), tmp_path / "theirs"
    backend.create_volume(volume, 1)
    theirs.mkdir()
    run("mount", "-t", "nfs4", "-o", "vers=4.2", EXPORT, str(theirs))
    try:
        for byte in (1, 2, 3):
            run("qemu-io", "-f", "raw", "-c", f"write -P {byte} 0 1M", str(theirs / f"{volume}.raw"))
            with backend.open_volume(volume, "rb") as file:
                assert file.read(4096) == bytes([byte]) * 4096
    finally:
        run("umount", str(theirs))


def test_something_else_at_the_mount_point_is_not_used(mount: Callable[..., NfsBackend]) -> None:
    backend = mount()
    run("umount", str(backend.path))
    run("mount", "-t", "tmpfs", "none", str(backend.path))
    with pytest.raises(Unreachable, match="tmpfs is mounted"):
        backend.check()
    with pytest.raises(BackendError):
        backend.create_volume(name(), 1)
    run("umount", str(backend.path))


def test_a_server_that_stops_is_given_up_in_time_and_found_again(mount: Callable[..., NfsBackend]) -> None:
    backend = mount(timeout_s=6)
    volume = name()
    backend.create_volume(volume, 1)
    run("rpc.nfsd", "0")
    try:
        began = time.monotonic()
        with pytest.raises(BackendError):
            backend.create_volume(name(), 1)
        with pytest.raises(BackendError):
            backend.check()
        assert time.monotonic() - began < 600
    finally:
        run("rpc.nfsd", "-N", "3", "-V", "4", "-U", "2")  # as the lab starts it
        with suppress(OSError):
            Path("/proc/fs/nfsd/v4_end_grace").write_text("Y")
    deadline = time.monotonic() + 600
    while True:
        try:
            backend.check()
            break
        except BackendError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert volume in backend.list_volumes()
    backend.delete_volume(volume)


def test_a_share_without_room_says_so_and_keeps_what_it_has(mount: Callable[..., NfsBackend]) -> None:
    backend = mount()
    volume, clone = name(), name()
    backend.create_volume(volume, 1)
    with backend.open_volume(volume, "r+b") as file:
        file.write(os.urandom(4 * 2**20))
    fill = SERVED / "fill"
    free = os.statvfs(SERVED)
    run("fallocate", "-l", str(free.f_bavail * free.f_frsize - 2**20), str(fill))
    with pytest.raises(NoSpace, match=f"^{EXPORT}: .* GiB free"):
        backend.clone_volume(clone, 1, volume)
    assert clone not in backend.list_volumes()
    fill.unlink()
    backend.clone_volume(clone, 1, volume)
    assert set(backend.list_volumes()) == {volume, clone}


def test_a_share_that_turns_read_only_says_so(mount: Callable[..., NfsBackend]) -> None:
    backend = mount()
    volume = name()
    backend.create_volume(volume, 1)
    run("mount", "-o", "remount,ro", str(backend.path))
    try:
        with pytest.raises(Unreachable, match="read-only"):
            backend.check()
        with pytest.raises(BackendError):
            backend.create_volume(name(), 1)
    finally:
        run("mount", "-o", "remount,rw", str(backend.path))
    backend.check()
    assert volume in backend.list_volumes()


@contextmanager
def exported(name: str, options: str, *, host: str = "127.0.0.1", owner: int = 0) -> Iterator[None]:
    """Export a file system of its own below the lab's export, with options of its own."""
    folder = SERVED / name
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"mode=755,uid={owner}", "odd", str(folder))
    run("exportfs", "-o", f"{options},insecure,no_subtree_check,fsid=11", f"{host}:{folder}")
    try:
        yield
    finally:
        run("umount", "-a", "-f", "-l", "-t", "nfs4")
        run("exportfs", "-u", f"{host}:{folder}")
        run("umount", "-l", str(folder))
        folder.rmdir()


@pytest.mark.parametrize(
    ("options", "owner", "words"),
    [
        (
            "rw,root_squash",
            0,
            "maps root of this machine to another user: the option root_squash.*no_root_squash: /odd ",
        ),
        ("rw,root_squash", 65534, "maps root .* to uid 65534: the option root_squash.* on 127.0.0.1, chown 0 /odd$"),
        ("rw,all_squash,anonuid=1000", 1000, "maps every user to uid 1000: the option all_squash.*no_all_squash"),
        ("ro,no_root_squash", 0, "is read-only.*the option rw, not ro, for /odd in /etc/exports of 127.0.0.1"),
        ("rw,no_root_squash", 1000, "belongs to uid 1000, who could change volumes: on 127.0.0.1, chown 0 /odd$"),
    ],
    ids=["root_squash", "root_squash, nobody's", "all_squash", "ro", "foreign owner"],
)
def test_a_share_that_lets_us_not_write_names_the_servers_option(
    mount: Callable[..., NfsBackend], options: str, owner: int, words: str
) -> None:
    with exported("odd", options, owner=owner):
        with pytest.raises(Unreachable, match=f"^127.0.0.1:/odd .*{words}") as refused:
            mount(exports="127.0.0.1:/odd")
        assert options.startswith("ro") or "/mnt/" not in str(refused.value)
        assert list((SERVED / "odd").iterdir()) == []


def test_an_export_with_a_space_on_an_ipv6_server(mount: Callable[..., NfsBackend]) -> None:
    run("exportfs", "-o", "rw,no_root_squash,insecure,no_subtree_check,fsid=0", f"[::1]:{SERVED}")
    with exported("a share", "rw,no_root_squash", host="[::1]"):
        backend = mount(exports="[::1]:/a share", format="qcow2")
        volume, clone = name(), name()
        backend.create_volume(volume, 1)
        backend.clone_volume(clone, 1, volume)
        assert {file.name for file in (SERVED / "a share").glob("v*")} == {f"{volume}.qcow2", f"{clone}.qcow2"}
        run("umount", str(backend.path))
        backend.check()
        assert set(backend.list_volumes()) == {volume, clone}
        assert backend.direct(volume).data["export"] == "[::1]:/a share"
    run("exportfs", "-u", f"[::1]:{SERVED}")


def test_links_planted_on_the_share_are_refused(mount: Callable[..., NfsBackend], tmp_path: Path) -> None:
    backend = mount()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    volume = name()
    (SERVED / f"{volume}.raw").symlink_to(secret)
    with pytest.raises(BackendError, match="symbolic link"):
        backend.extend_volume(volume, 2)
    (SERVED / f"{volume}.raw").unlink()
    backend.create_volume(volume, 1)
    os.link(SERVED / f"{volume}.raw", SERVED / "other.raw")
    with pytest.raises(BackendError, match="hard links"), backend.open_volume(volume, "rb"):
        pass
    assert secret.read_bytes() == b"secret"


def test_swapping_in_a_loop_leads_nowhere(mount: Callable[..., NfsBackend], tmp_path: Path) -> None:
    """Whoever may write to the share makes the volume's name a link again and again; the file behind it stays whole."""
    backend = mount()
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret" * 1000)
    secret.chmod(0o600)
    volume = name()
    backend.create_volume(volume, 1)
    real, link, there = SERVED / "real", SERVED / "link", SERVED / f"{volume}.raw"
    os.link(there, real)
    there.unlink()
    stop = threading.Event()

    def swap() -> None:
        while not stop.is_set():
            link.symlink_to(secret)
            link.replace(there)
            os.rename(real, there)  # noqa: PTH104 - a rename is the attack
            os.rename(there, real)  # noqa: PTH104

    swapper = threading.Thread(target=swap)
    swapper.start()
    opened, tried = 0, 0
    try:
        while tried < 150 or opened == tried:  # until it was in the way
            tried += 1
            with suppress(BackendError), backend.open_volume(volume, "r+b") as file:
                assert file.read(6) != b"secret"
                file.seek(0)
                file.write(b"volume")
                opened += 1
            with suppress(BackendError):
                backend.extend_volume(volume, 1)
    finally:
        stop.set()
        swapper.join()
    assert secret.read_bytes() == b"secret" * 1000


def test_who_is_asked_for_what(tmp_path: Path) -> None:
    backend = NfsBackend("share", NfsOptions(exports="127.0.0.1:/nothing", timeout_s=30), tmp_path)
    with pytest.raises(
        Unreachable, match=r"cannot be mounted.*Does the server export this path\? On the server: exportfs -v"
    ):
        backend.check()
    assert mounts.source_of(backend.path) is None
