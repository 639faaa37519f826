"""The directory plugin keeps the contract on every kind of file system, and its errors say what to do."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions, commands, files

from blockstore.backends.contract import GIB, VolumeLocation
from blockstore.conformance.backend import BackendConformance
from blockstore.errors import BackendError, InUse, NoSpace, RefusedForSpace, Unreachable
from tests.contents import read, write

from .mounts import mounted, need, need_root

MIB = 2**20


def make(path: Path, kind: str = "raw") -> DirectoryBackend:
    return DirectoryBackend("directory", DirectoryOptions(path=path / "volumes", format=kind), path)


@pytest.fixture
def raw(tmp_path: Path) -> DirectoryBackend:
    backend = make(tmp_path)
    backend.check()
    return backend


def fill(path: Path) -> None:
    """Write a file until its file system is full."""
    with suppress(OSError), path.open("wb", buffering=0) as filler:
        while filler.write(b"x" * 4096):
            pass


def tree(path: Path) -> set[str]:
    """Return all files below a path, hidden ones included."""
    return {str(found.relative_to(path)) for found in path.rglob("*") if not found.is_dir()}


# --- the contract ------------------------------------------------------------------------------------------


class TestRaw(BackendConformance):
    """Raw files on whatever file system the tests run on, copied byte by byte."""

    @pytest.fixture
    def backend(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryBackend:
        monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
        return make(tmp_path)


class TestQcow2(BackendConformance):
    @pytest.fixture
    def backend(self, tmp_path: Path) -> DirectoryBackend:
        need("qemu-img")
        return make(tmp_path, "qcow2")


class OnReflinks(BackendConformance):
    """Raw files where copies share their blocks: a byte-by-byte copy would be a failure."""

    @pytest.fixture
    def backend(self, disk: Path, monkeypatch: pytest.MonkeyPatch) -> DirectoryBackend:
        monkeypatch.setattr(files, "_copy_sparse", None)
        return make(disk)

    def test_copies_take_no_space(self, backend: DirectoryBackend) -> None:
        backend.check()
        backend.create_volume("source", 1)
        write(backend, "source", os.urandom(MIB) * 32)
        os.sync()
        before = backend.capacity().free_gib
        for number in range(8):
            backend.clone_volume(f"clone-{number}", 1, "source")
            backend.create_snapshot("source", f"snap-{number}")
        os.sync()
        assert before - backend.capacity().free_gib < 16 * MIB / GIB
        for number in range(8):
            backend.delete_snapshot("source", f"snap-{number}")
            backend.delete_volume(f"clone-{number}")
        backend.delete_volume("source")


@pytest.fixture(scope="module")
def btrfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("btrfs"), "btrfs", "400M") as point:
        yield point


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted(tmp_path_factory.mktemp("xfs"), "xfs", "400M") as point:
        yield point


class TestRawOnBtrfs(OnReflinks):
    @pytest.fixture
    def disk(self, btrfs: Path) -> Path:
        return btrfs


class TestRawOnXfs(OnReflinks):
    @pytest.fixture
    def disk(self, xfs: Path) -> Path:
        return xfs


# --- cost --------------------------------------------------------------------------------------------------


def test_no_raw_action_starts_a_process_or_reads_the_directory(
    raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """100 creates a second among 100,000 volumes: a process or a listing per call would not allow it."""

    def never(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("too dear")

    monkeypatch.setattr(commands, "run", never)
    monkeypatch.setattr(subprocess, "Popen", never)
    looked: list[Path] = []
    entries = files.Folder.entries
    monkeypatch.setattr(files.Folder, "entries", lambda self: looked.append(self.label) or entries(self))
    raw.create_volume("volume-1", 1)
    raw.create_volume("volume-1", 1)
    raw.extend_volume("volume-1", 2)
    raw.create_snapshot("volume-1", "snap-1")
    raw.create_volume_from_snapshot("volume-2", 2, "volume-1", "snap-1")
    raw.clone_volume("volume-3", 3, "volume-1")
    raw.revert_volume("volume-1", "snap-1")
    raw.delete_snapshot("volume-1", "snap-1")
    raw.delete_volume("volume-1")
    raw.capacity()
    raw.check()
    assert set(looked) <= {raw.path / "snapshots" / "volume-1"}  # the deleted volume's own snapshots


def test_a_copy_leaves_holes_holes(raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    raw.create_volume("volume-1", 4)
    write(raw, "volume-1", b"x" * MIB, GIB)
    seen: list[int] = []
    raw.clone_volume("volume-2", 4, "volume-1", seen.append)
    assert (raw.path / "volume-2.raw").stat().st_blocks * 512 <= 2 * MIB
    assert seen[0] == 0
    assert seen[-1] == 100
    assert 25 in seen


def test_a_copy_works_where_the_kernel_has_no_copy_file_range(
    raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    monkeypatch.setattr(os, "copy_file_range", refuse)
    raw.create_volume("volume-1", 1)
    write(raw, "volume-1", b"y" * 3 * MIB, 5)
    raw.clone_volume("volume-2", 1, "volume-1")
    assert read(raw, "volume-2", 4 * MIB) == b"\0" * 5 + b"y" * 3 * MIB + b"\0" * (MIB - 5)


# --- copies of what is in use ------------------------------------------------------------------------------


def test_a_source_that_changes_once_is_copied_again(raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy must show one instant: never a later write without an earlier one."""
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    raw.create_volume("volume-1", 1)
    write(raw, "volume-1", b"old", GIB // 2)
    wrote = False

    def change(percent: int) -> None:
        nonlocal wrote
        if percent >= 50 and not wrote:
            wrote = True
            write(raw, "volume-1", b"early")
            write(raw, "volume-1", b"new", GIB // 2)

    raw.clone_volume("volume-2", 1, "volume-1", change)
    assert wrote
    assert (read(raw, "volume-2", 5), read(raw, "volume-2", 3, GIB // 2)) == (b"early", b"new")


def test_a_source_that_is_discarded_meanwhile_leaves_no_old_bytes(
    raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A14: the second copy skips holes, so it must not land on what the first one wrote."""
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    raw.create_volume("volume-1", 1)
    write(raw, "volume-1", b"old")
    path = raw.path / "volume-1.raw"

    def discard(percent: int) -> None:
        if percent == 100 and path.stat().st_blocks:
            os.truncate(path, 0)
            os.truncate(path, GIB)

    raw.clone_volume("volume-2", 1, "volume-1", discard)
    assert read(raw, "volume-2", 3) == b"\0\0\0"


def test_any_call_for_a_name_removes_its_unfinished_file(raw: DirectoryBackend) -> None:
    raw.create_volume("volume-1", 1)
    (raw.path / ".volume-1.tmp").write_bytes(b"what a killed revert left")
    raw.create_volume("volume-1", 1)
    assert tree(raw.path) == {"volume-1.raw"}


def test_a_source_that_never_rests_is_refused(raw: DirectoryBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_reflink", lambda _source, _target: False)
    raw.create_volume("volume-1", 1)
    write(raw, "volume-1", b"x")
    before = tree(raw.path)
    with pytest.raises(InUse, match="keep the volumes on btrfs or xfs"):
        raw.clone_volume("volume-2", 1, "volume-1", lambda percent: write(raw, "volume-1", b"%d" % percent, 8192))
    assert tree(raw.path) == before


@pytest.mark.parametrize("mode", ["rb", "r+b"])
def test_a_volume_that_another_process_has_open_is_in_use(raw: DirectoryBackend, mode: str) -> None:
    """The kernel is asked, not only our own memory: the consumer of the located file is another process."""
    raw.create_volume("volume-1", 1)
    raw.create_snapshot("volume-1", "snap-1")
    path = raw.locate("volume-1").path
    script = "import sys; f = open(sys.argv[1], sys.argv[2]); print('open', flush=True); sys.stdin.read()"
    argv = [sys.executable, "-c", script, str(path), mode]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout
        assert other.stdout.readline() == b"open\n"
        with pytest.raises(InUse, match="is open: something on this machine uses"):
            raw.revert_volume("volume-1", "snap-1")
        raw.delete_snapshot("volume-1", "snap-1")
        with pytest.raises(InUse, match="is open: something on this machine uses"):
            raw.delete_volume("volume-1")
        other.communicate()
    raw.delete_volume("volume-1")
    assert raw.list_volumes() == {}


# --- formats -----------------------------------------------------------------------------------------------


def test_a_changed_option_format_leaves_old_volumes_as_they_are(tmp_path: Path) -> None:
    need("qemu-img")
    old, new = make(tmp_path), make(tmp_path, "qcow2")
    old.check()
    old.create_volume("volume-1", 1)
    write(old, "volume-1", b"bytes")
    new.create_volume("volume-1", 1)
    new.clone_volume("volume-2", 2, "volume-1")
    new.create_volume("volume-3", 1)
    assert tree(new.path) == {"volume-1.raw", "volume-2.raw", "volume-3.qcow2"}
    assert read(new, "volume-2", 5) == b"bytes"
    assert old.list_volumes() == new.list_volumes() == {"volume-1": 1, "volume-2": 2, "volume-3": 1}
    assert new.locate("volume-2") == VolumeLocation(new.path / "volume-2.raw")
    assert new.locate("volume-3") == VolumeLocation(new.path / "volume-3.qcow2", "qcow2")


def test_qcow2_files_are_what_the_tool_says(tmp_path: Path) -> None:
    need("qemu-img")
    backend = make(tmp_path, "qcow2")
    backend.check()
    backend.create_volume("volume-1", 1)
    write(backend, "volume-1", b"bytes", 5000)
    backend.clone_volume("volume-2", 3, "volume-1")
    for name in ("volume-1", "volume-2"):
        argv = ["qemu-img", "check", "-f", "qcow2", str(backend.path / f"{name}.qcow2")]
        assert "No errors were found" in subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda header: b"\0" * len(header), id="not qcow2"),
        pytest.param(lambda header: header[:8] + b"\0" * 6 + b"\x02\0" + header[16:], id="backing file"),
        pytest.param(lambda header: header[:79] + b"\x04" + header[80:], id="external data file"),
    ],
)
def test_a_qcow2_header_that_was_harmed_is_refused(tmp_path: Path, harm: object) -> None:
    """Nothing reads through a header that sends its reader to another file."""
    need("qemu-img")
    backend = make(tmp_path, "qcow2")
    backend.check()
    backend.create_volume("volume-1", 1)
    backend.create_volume("volume-2", 1)
    path = backend.path / "volume-1.qcow2"
    header = path.read_bytes()
    path.write_bytes(harm(header[:104]) + header[104:])  # type: ignore[operator]
    for call in (
        lambda: backend.extend_volume("volume-1", 2),
        lambda: backend.clone_volume("volume-3", 2, "volume-1"),
        lambda: backend.create_snapshot("volume-1", "snap-1"),
        lambda: read(backend, "volume-1", 1),
    ):
        with pytest.raises(BackendError, match=r"damaged|another file"):
            call()
    assert backend.list_volumes() == {"volume-1": 0, "volume-2": 1}
    assert tree(backend.path) == {"volume-1.qcow2", "volume-2.qcow2"}


# --- what goes wrong, and what is said ---------------------------------------------------------------------


def test_without_qemu_img_qcow2_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "have", lambda _tool: False)
    with pytest.raises(Unreachable, match="apt-get install qemu-utils"):
        make(tmp_path, "qcow2").check()
    make(tmp_path, "raw").check()


def test_the_default_path_is_made_inside_the_state_directory(tmp_path: Path) -> None:
    backend = DirectoryBackend("directory", DirectoryOptions(), tmp_path / "state" / "directory")
    backend.check()
    assert backend.path == tmp_path / "state" / "directory" / "volumes"
    assert backend.path.stat().st_mode & 0o7777 == 0o700


def test_a_chosen_path_whose_parent_is_missing_is_not_made(tmp_path: Path) -> None:
    """It is probably on a disk that is not mounted; volumes must not fill the root file system."""
    backend = make(tmp_path / "mnt")
    for call in (backend.check, backend.capacity, lambda: backend.create_volume("volume-1", 1)):
        with pytest.raises(Unreachable, match=r"No such file or directory\. Mount its disk, or create it: mkdir"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "volumes").write_bytes(b"")
    with pytest.raises(Unreachable, match="must name a directory"):
        make(tmp_path).check()


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_directory_others_may_enter_is_refused(raw: DirectoryBackend, mode: int) -> None:
    raw.path.chmod(mode)
    for call in (raw.check, lambda: raw.create_volume("volume-1", 1)):
        with pytest.raises(Unreachable, match=f"other users can enter.* chmod 700 {raw.path}"):
            call()
    raw.path.chmod(0o700)
    raw.check()


def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    with mounted(tmp_path, "tmpfs", "1M") as point:
        backend = make(point)
        backend.check()
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for call in (backend.check, lambda: backend.create_volume("volume-1", 1)):
            with pytest.raises(Unreachable, match="remount it read-write"):
                call()


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_full_disk_leaves_nothing_and_tells_its_figures(tmp_path: Path, kind: str) -> None:
    with mounted(tmp_path, "tmpfs", "4M") as point:
        if kind == "qcow2":
            need("qemu-img")
        backend = make(point, kind)
        backend.check()
        backend.create_volume("volume-1", 1)
        write(backend, "volume-1", os.urandom(MIB))
        backend.create_snapshot("volume-1", "snap-1")
        fill(point / "filler")
        before = tree(backend.path)
        stats = r"volumes has 0\.0 of 0\.0 GiB free"
        for call in (
            lambda: backend.create_snapshot("volume-1", "snap-2"),
            lambda: backend.clone_volume("volume-2", 1, "volume-1"),
            lambda: backend.create_volume_from_snapshot("volume-2", 1, "volume-1", "snap-1"),
            lambda: backend.revert_volume("volume-1", "snap-1"),
            lambda: write(backend, "volume-1", os.urandom(MIB), GIB // 2),
        ):
            with pytest.raises(NoSpace, match=stats):
                call()
            assert tree(backend.path) == before
        assert backend.list_volumes() == {"volume-1": 1}
        (point / "filler").unlink()
        backend.clone_volume("volume-2", 1, "volume-1")


def test_no_inodes_left_is_no_space(tmp_path: Path) -> None:
    with mounted(tmp_path, "tmpfs", "1M,nr_inodes=5") as point:
        backend = make(point)
        backend.check()
        backend.create_volume("volume-1", 1)
        with pytest.raises(NoSpace, match="No space left on device"):
            backend.create_snapshot("volume-1", "snap-1")
        assert tree(backend.path) == {"volume-1.raw"}


def test_another_user_gets_nothing() -> None:
    """Not through the directory and, should somebody open that, not through the file."""
    need_root()
    with tempfile.TemporaryDirectory() as folder:
        outer = Path(folder)
        outer.chmod(0o755)
        backend = make(outer)
        backend.check()
        backend.create_volume("volume-1", 1)
        for mode in (0o700, 0o755):
            backend.path.chmod(mode)
            for flags in ("O_RDONLY", "O_WRONLY"):
                script = (
                    "import os, sys; os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
                    f"try: os.open(sys.argv[1], os.{flags})\n"
                    "except OSError as exc: print(type(exc).__name__)\n"
                )
                argv = [sys.executable, "-c", script, str(backend.path / "volume-1.raw")]
                assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "PermissionError\n"


def test_a_disk_shared_with_the_service_keeps_space_for_it(tmp_path: Path) -> None:
    """Copies stop, and creates are refused, before the disk of the database is full; what is deleted makes space."""
    with mounted(tmp_path, "tmpfs", "64M") as disk:
        (disk / "state").mkdir(mode=0o700)
        backend = DirectoryBackend("d", DirectoryOptions(), disk / "state" / "d")
        backend.check()
        backend.create_volume("volume-1", 1)
        with backend.open_volume("volume-1", "r+b") as file:
            file.write(b"x" * (40 * 2**20))
        free = os.statvfs(disk).f_bavail
        with pytest.raises(RefusedForSpace, match="keeps 4 MiB for the service's own files"):
            backend.clone_volume("volume-2", 1, "volume-1")
        assert os.statvfs(disk).f_bavail == free
        assert backend.capacity().free_gib == pytest.approx((free * 4096 - 4 * 2**20) / 2**30, abs=0.001)
        (disk / "others").write_bytes(bytes(free * 4096 - 3 * 2**20))
        with pytest.raises(RefusedForSpace):
            backend.create_volume("volume-2", 1)
        backend.delete_volume("volume-1")
        backend.create_volume("volume-2", 1)
        assert list(backend.list_volumes()) == ["volume-2"]
