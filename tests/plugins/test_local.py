"""The target `local`: whom it gives a path, what it writes down, and whom it finds holding a volume."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins import local
from blockstore_plugins.local import LocalOptions, LocalTarget

from blockstore.backends import holders
from blockstore.errors import BackendError, DiskFull, InUse, InvalidConnector, NotSupported, Unreachable, VolumeMissing
from blockstore.targets.contract import Export
from tests.conftest import need
from tests.plugins.mounts import mounted

HOST = socket.gethostname()
OPEN = "import sys; file = open(sys.argv[1], 'rb'); print('open', flush=True); sys.stdin.read()"
MAP = (
    "import mmap, os, sys; fd = os.open(sys.argv[1], os.O_RDWR); m = mmap.mmap(fd, 4096); os.close(fd);"
    " print('mapped', flush=True); sys.stdin.read()"
)

BRICK = (
    "import json, sys; from os_brick.initiator.connector import InitiatorConnector as Connector;"
    " print(json.dumps(Connector.factory('LOCAL', None).connect_volume(json.loads(sys.argv[1]))))"
)


def new_id() -> str:
    return str(uuid.uuid4())


@pytest.fixture
def target(tmp_path: Path) -> LocalTarget:
    return LocalTarget("local", LocalOptions(), tmp_path / "exports", "0a1b2c3d")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume.raw"
    path.write_bytes(bytes(2**20))
    return path


def export_of(path: Path, **fields: Any) -> Export:
    return Export(**{"id": new_id(), "volume": "volume-1", "path": path, "connector": {"host": HOST}, **fields})


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "PATIENCE_S", 0.3)


@contextlib.contextmanager
def holding(path: Path, code: str = OPEN) -> Iterator[int]:
    """Another process holds the file until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout
        assert process.stdout.readline()
        yield process.pid
        process.communicate()


# --- exporting ---------------------------------------------------------------------------------------------


def test_the_connection_is_what_os_brick_takes(target: LocalTarget, volume: Path) -> None:
    connection = target.export(export_of(volume))
    assert connection.driver_volume_type == "local"
    assert connection.data == {"device_path": str(volume), "access_mode": "rw"}
    assert connection.secret_as == ""
    # In a process of its own, since it patches what it finds.
    said = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", BRICK, json.dumps(connection.data)], capture_output=True, check=True
    ).stdout
    assert json.loads(said) == {"type": "local", "path": str(volume)}


def test_a_read_only_export_says_so(target: LocalTarget, volume: Path) -> None:
    assert target.export(export_of(volume, read_only=True)).data["access_mode"] == "ro"


def test_exporting_again_is_the_same_export(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    with holding(volume):
        assert target.export(export) == target.export(export)
    assert target.list_exports() == {export.id}


@pytest.mark.parametrize("connector", [{}, {"host": None}, {"host": HOST}, {"host": HOST.upper(), "ip": "192.0.2.1"}])
def test_a_consumer_on_this_node_is_accepted(target: LocalTarget, volume: Path, connector: dict[str, Any]) -> None:
    target.check_connector(connector)
    target.export(export_of(volume, connector=connector))


@pytest.mark.parametrize(
    "host", ["elsewhere", "", "a\0b", HOST + "\n", "x" * 10_000, "../" + HOST, 7, [HOST], {}, False]
)
def test_a_consumer_elsewhere_is_refused(target: LocalTarget, volume: Path, host: object) -> None:
    with pytest.raises(InvalidConnector) as refusal:
        target.export(export_of(volume, connector={"host": host}))
    assert len(str(refusal.value)) < 400
    with pytest.raises(InvalidConnector):
        target.check_connector({"host": host})
    assert target.list_exports() == frozenset()
    assert not target.state_dir.exists()


def test_this_node_may_have_other_names(tmp_path: Path, volume: Path) -> None:
    target = LocalTarget("local", LocalOptions(hosts="node-1, Node-1.example.com"), tmp_path / "x", "o")
    target.export(export_of(volume, connector={"host": "node-1.EXAMPLE.com"}))
    with pytest.raises(InvalidConnector, match="add node-2 to the target's option hosts"):
        target.export(export_of(volume, connector={"host": "node-2"}))


def test_a_path_that_is_gone_is_a_missing_volume(target: LocalTarget, tmp_path: Path) -> None:
    for path in (tmp_path / "gone", tmp_path / "gone" / "deeper"):
        with pytest.raises(VolumeMissing, match="does not exist"):
            target.export(export_of(path))
    assert target.list_exports() == frozenset()


def test_only_files_and_block_devices_are_given(target: LocalTarget, tmp_path: Path, volume: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(volume)
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link", Path("/dev/null"), Path("/dev/fd")):
        with pytest.raises(BackendError, match="is not exported"):
            target.export(export_of(path))
    assert target.list_exports() == frozenset()


def test_formats_other_than_raw_are_refused(target: LocalTarget, volume: Path) -> None:
    with pytest.raises(NotSupported, match="nbd"):
        target.export(export_of(volume, format="qcow2"))
    assert target.list_exports() == frozenset()


@pytest.mark.parametrize("export_id", ["", ".", "..", "../x", "a/b", ".hidden", "a\nb", "a\0b", "x" * 65])
def test_an_id_is_no_path(target: LocalTarget, volume: Path, export_id: str) -> None:
    with pytest.raises(BackendError):
        target.export(export_of(volume, id=export_id))
    target.withdraw(export_id)
    assert not target.state_dir.exists()


# --- what is written down ----------------------------------------------------------------------------------


def test_what_is_written_down_is_private_and_holds_no_secret(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume, secret="s3cr3ts3cr3ts3cr")
    target.export(export)
    assert stat.S_IMODE(target.state_dir.stat().st_mode) == 0o700
    (file,) = target.state_dir.iterdir()
    assert file.name == export.id
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "s3cr3t" not in file.read_text()


def test_a_full_disk_is_named(tmp_path: Path, volume: Path) -> None:
    """It is no storage that does not answer."""
    with mounted(tmp_path, "tmpfs", "1M") as disk:
        target = LocalTarget("local", LocalOptions(), disk / "exports", "0a1b2c3d")
        target.check()
        with contextlib.suppress(OSError), (disk / "others").open("wb", buffering=0) as others:
            while True:
                others.write(bytes(4096))
        with pytest.raises(DiskFull, match=f"The disk of {disk}/exports is full") as raised:
            target.export(export_of(volume))
        assert "The service's own disk is full" in raised.value.public
        assert target.list_exports() == set()


def test_a_restarted_service_knows_its_exports(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    again = LocalTarget("local", LocalOptions(), target.state_dir, target.owner)
    assert again.list_exports() == {export.id}
    with holding(volume) as pid:
        assert again.sessions() == {export.id: (f"PID {pid} ({python()})",)}
    again.withdraw(export.id)
    assert target.list_exports() == frozenset()


def test_another_installation_sees_and_ends_nothing_of_ours(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    other = LocalTarget("local", LocalOptions(), target.state_dir, "other")
    other.withdraw(export.id)
    assert other.list_exports() == frozenset()
    assert target.list_exports() == {export.id}


def test_exports_end_with_the_boot(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    file = target.state_dir / export.id
    file.write_text(json.dumps({**json.loads(file.read_text()), "boot": new_id()}))
    assert target.list_exports() == frozenset()
    assert not file.exists()


def test_an_unfinished_record_is_no_export_and_is_replaced(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.check()
    (target.state_dir / f".{export.id}").write_text("{")
    assert target.list_exports() == frozenset()
    target.export(export)
    assert [file.name for file in target.state_dir.iterdir()] == [export.id]


def test_a_damaged_record_is_one_sentence(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    for text in ("{", "[]", "7", "{}", '{"owner": "x"}', "\0"):
        (target.state_dir / export.id).write_text(text)
        with pytest.raises(BackendError, match=f"{export.id} is damaged"):
            target.withdraw(export.id)


def test_check_proves_that_exports_can_be_written_down(target: LocalTarget, tmp_path: Path) -> None:
    target.check()
    target.check()
    assert target.list_exports() == frozenset()
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="file"):
        LocalTarget("local", LocalOptions(), tmp_path / "file", "o").check()


# --- withdrawing -------------------------------------------------------------------------------------------


def python() -> str:
    return Path("/proc/self/comm").read_text().strip()


def test_withdrawing_twice_and_nothing(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    for _ in range(2):
        target.withdraw(export.id)
    target.withdraw(new_id())
    assert target.list_exports() == frozenset()
    assert list(target.state_dir.iterdir()) == []


@pytest.mark.parametrize("code", [OPEN, MAP], ids=["open", "mapped"])
def test_a_process_that_holds_the_file_is_named_and_the_export_stays(
    target: LocalTarget, volume: Path, code: str
) -> None:
    export = export_of(volume)
    target.export(export)
    with holding(volume, code) as pid:
        with pytest.raises(InUse, match=rf"{volume} is still in use on this node, by PID {pid} \({python()}"):
            target.withdraw(export.id)
        assert target.list_exports() == {export.id}
        assert target.sessions() == {export.id: (f"PID {pid} ({python()})",)}
    assert target.sessions() == {}
    target.withdraw(export.id)
    assert target.list_exports() == frozenset()


def test_the_file_is_known_by_what_it_is_not_by_its_name(target: LocalTarget, volume: Path, tmp_path: Path) -> None:
    export = export_of(volume)
    target.export(export)
    os.link(volume, tmp_path / "another name")
    with holding(tmp_path / "another name") as pid, pytest.raises(InUse, match=f"PID {pid} "):
        target.withdraw(export.id)


def test_ones_own_open_file_is_no_holder(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    with volume.open("r+b") as file, mmap.mmap(file.fileno(), 4096):
        target.withdraw(export.id)


def test_a_holder_that_lets_go_within_a_moment_does_not_matter(
    target: LocalTarget, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "PATIENCE_S", 600)
    export = export_of(volume)
    target.export(export)
    code = "import sys, time; file = open(sys.argv[1]); print('open', flush=True); time.sleep(0.3)"
    with holding(volume, code):
        target.withdraw(export.id)


def test_a_holder_that_only_the_kernel_knows_is_noticed(
    target: LocalTarget, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an ordinary user cannot look at root's processes, nor anybody at an export of the kernel."""
    monkeypatch.setattr(holders, "find", lambda _things: {})
    export = export_of(volume)
    target.export(export)
    with holding(volume), pytest.raises(InUse, match="something that this user cannot see"):
        target.withdraw(export.id)
    target.withdraw(export.id)


def test_a_free_file_costs_no_look_at_all_processes(
    target: LocalTarget, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "find", None)
    export = export_of(volume)
    target.export(export)
    target.withdraw(export.id)


def test_of_two_exports_of_one_volume_only_the_last_asks_who_holds_it(target: LocalTarget, volume: Path) -> None:
    first, second = export_of(volume), export_of(volume)
    target.export(first)
    target.export(second)
    with holding(volume) as pid:
        assert target.sessions() == dict.fromkeys((first.id, second.id), (f"PID {pid} ({python()})",))
        target.withdraw(first.id)
        with pytest.raises(InUse):
            target.withdraw(second.id)
    assert target.list_exports() == {second.id}


def test_a_volume_that_is_gone_is_held_by_nobody(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    target.export(export)
    volume.unlink()
    assert target.sessions() == {}
    target.withdraw(export.id)


def test_an_exports_cost_does_not_grow_with_their_number(target: LocalTarget, volume: Path) -> None:
    exports = [export_of(volume) for _ in range(20)]
    for export in exports:
        target.export(export)
    reads: list[str] = []
    read = target._read
    target._read = lambda export_id: (reads.append(export_id), read(export_id))[1]  # type: ignore[method-assign]
    target.withdraw(exports[0].id)
    target.export(exports[0])
    assert len(reads) == 1


# --- block devices -----------------------------------------------------------------------------------------


def loop_of(path: Path) -> str:
    need(os.geteuid() == 0, "root, for loop devices")
    done = subprocess.run(["losetup", "-f", "--show", str(path)], capture_output=True, text=True, check=False)
    need(done.returncode == 0, f"loop devices ({done.stderr.strip()})")
    return done.stdout.strip()


@pytest.fixture
def make_loop() -> Iterator[Callable[[Path], Path]]:
    """Return a maker of loop devices, which are gone after the test."""
    made: list[str] = []

    def make(path: Path) -> Path:
        made.append(loop_of(path))
        return Path(made[-1])

    yield make
    for device in reversed(made):
        subprocess.run(["losetup", "-d", device], check=False)


def test_a_loop_device_made_of_the_file_is_named(
    target: LocalTarget, volume: Path, make_loop: Callable[[Path], Path]
) -> None:
    export = export_of(volume)
    target.export(export)
    loop = make_loop(volume)
    with pytest.raises(InUse, match=f"by {loop.name}[.]"):
        target.withdraw(export.id)
    assert target.sessions() == {export.id: (loop.name,)}
    subprocess.run(["losetup", "-d", loop], check=True)
    target.withdraw(export.id)


def test_a_device_that_is_open_is_in_use(
    target: LocalTarget, volume: Path, make_loop: Callable[[Path], Path], tmp_path: Path
) -> None:
    loop = make_loop(volume)
    export = export_of(loop)
    assert target.export(export).data["device_path"] == str(loop)
    node = tmp_path / "another node"
    os.mknod(node, 0o600 | stat.S_IFBLK, loop.stat().st_rdev)
    with holding(node) as pid, pytest.raises(InUse, match=rf"{loop} is still in use on this node, by PID {pid} "):
        target.withdraw(export.id)
    on_top = make_loop(loop)
    with pytest.raises(InUse, match=f"by {on_top.name}[.]"):
        target.withdraw(export.id)
    subprocess.run(["losetup", "-d", on_top], check=True)
    target.withdraw(export.id)


@pytest.mark.parametrize("inside", [False, True], ids=["here", "in a namespace of its own"])
def test_a_mounted_device_says_where(
    target: LocalTarget, volume: Path, make_loop: Callable[[Path], Path], tmp_path: Path, inside: bool
) -> None:
    need(shutil.which("mkfs.ext4") and shutil.which("unshare"), "apt-get install e2fsprogs util-linux")
    volume.write_bytes(bytes(8 * 2**20))
    subprocess.run(["mkfs.ext4", "-q", str(volume)], check=True)
    loop, where = make_loop(volume), tmp_path / "a place"
    where.mkdir()
    export = export_of(loop)
    target.export(export)
    mount = ["mount", str(loop), str(where)]
    with contextlib.ExitStack() as stack:
        if inside:
            script = f"{mount[0]} {mount[1]} '{mount[2]}' && echo mounted && read line"
            argv = ["unshare", "-m", "--propagation", "private", "sh", "-c", script]
            process = stack.enter_context(
                subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            assert process.stdout
            assert process.stdout.readline()
            stack.callback(process.communicate)
        else:
            subprocess.run(mount, check=True)
            stack.callback(subprocess.run, ["umount", str(where)], check=True)
        with pytest.raises(InUse, match=f"by mounted on {where}[.]"):
            target.withdraw(export.id)
        assert target.sessions() == {export.id: (f"mounted on {where}",)}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(holders, "find", lambda _things: {})
            with pytest.raises(InUse, match="something that this user cannot see: the kernel"):
                target.withdraw(export.id)
    target.withdraw(export.id)


def test_a_link_within_dev_to_a_device_is_taken(
    target: LocalTarget, volume: Path, make_loop: Callable[[Path], Path]
) -> None:
    """As udev makes them in /dev/mapper."""
    loop, link = make_loop(volume), Path(f"/dev/blockstore-test-{os.getpid()}")
    link.symlink_to(loop.name)
    try:
        export = export_of(link)
        assert target.export(export).data["device_path"] == str(link)
        with holding(loop) as pid, pytest.raises(InUse, match=f"PID {pid} "):
            target.withdraw(export.id)
        target.withdraw(export.id)
    finally:
        link.unlink()


def test_a_link_from_elsewhere_to_a_device_is_refused(
    target: LocalTarget, volume: Path, make_loop: Callable[[Path], Path], tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(make_loop(volume))
    with pytest.raises(BackendError, match="symbolic link"):
        target.export(export_of(tmp_path / "link"))


def test_growth_is_seen_without_a_word(target: LocalTarget, volume: Path) -> None:
    export = export_of(volume)
    path = Path(target.export(export).data["device_path"])
    os.truncate(volume, 2**21)
    target.resize(export.id)
    assert path.stat().st_size == 2**21


def test_capabilities(target: LocalTarget) -> None:
    assert dataclasses.asdict(target.capabilities()) == {
        "protocol": "local",
        "formats": frozenset({"raw"}),
        "multiattach": True,
        "online_extend": True,
        "connector_needs": (),
        "block_size": None,
    }
