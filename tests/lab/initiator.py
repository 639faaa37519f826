"""A host that attaches volumes with os-brick, as Nova does, under a name of its own.

For every test that has a connection and wants a disk: of the plugins lio and tgt, and of journeys through the service.
Needs the lab's iscsid (``lab-run --with iscsi``); starts a udevd where there is none, for os-brick waits ten seconds
for links in /dev/disk that nobody makes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import socket
import subprocess
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.contents import read_file

from .conftest import run

HOSTS_OWN = "iqn.1993-08.org.debian:01:lab"
"""The name in the lab's /etc/iscsi/initiatorname.iscsi."""


class Initiator:
    """A host, real in all but its name; a context, which detaches what is still attached."""

    def __init__(self, name: str = HOSTS_OWN):
        self.name = name
        self._brick = _brick(_interface(name))
        self._attached: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}

    @property
    def connector(self) -> dict[str, Any]:
        """What the host says of itself when it asks for a volume."""
        return {"initiator": self.name, "host": "lab", "ip": "127.0.0.1", "multipath": False, "os_type": "linux"}

    def connect(self, connection: Mapping[str, Any]) -> str:
        """Attach; return the path of the disk. ``connection``: the data of connection info, with the password."""
        properties = {"volume_id": connection["target_iqn"], "access_mode": "rw", **connection}
        device = self._brick.connect_volume(properties)
        path = str(device["path"])
        self._attached[path] = (properties, device)
        return path

    def extend(self, path: str) -> int:
        """Look at the size again, and return it in bytes."""
        return int(self._brick.extend_volume(self._attached[path][0]))

    def disconnect(self, path: str) -> None:
        """Detach."""
        self._brick.disconnect_volume(*self._attached.pop(path))

    def __enter__(self) -> Initiator:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        for path in list(self._attached):
            self.disconnect(path)


class NfsHost:
    """A host that mounts exports by os-brick, below a directory of its own; a context that unmounts.

    It has a network and a name of its own, without which the kernel would be one NFS client for it and for blockstore,
    to whom the server need not tell what the other has written.
    """

    SERVER = "10.9.0.1"
    """The address by which hosts reach the lab's NFS server, and blockstore must, too."""
    connector: Mapping[str, Any] = {"host": "elsewhere", "ip": "10.9.1.2", "os_type": "linux"}

    def __init__(self, base: Path, number: int = 1):
        _set_up()
        from os_brick.initiator import connector

        self.base, self._number = base, number
        base.mkdir()
        self._brick = connector.InitiatorConnector.factory("NFS", "", nfs_mount_point_base=str(base), conn={})
        self._inside = ThreadPoolExecutor(1)

    def connect(self, connection: Mapping[str, Any]) -> Path:
        """Mount what must be mounted; return the path of the file."""
        return Path(self._inside.submit(self._brick.connect_volume, dict(connection)).result()["path"])

    def disconnect(self, connection: Mapping[str, Any], path: Path) -> None:
        """Detach, which leaves the export mounted for others."""
        self._inside.submit(self._brick.disconnect_volume, dict(connection), {"path": str(path)}).result()

    def __enter__(self) -> NfsHost:
        thread = self._inside.submit(_leave, f"host{self._number}").result()
        outer, inner, net = f"lab{self._number}", f"eth{self._number}", f"10.9.{self._number}"
        run("modprobe", "veth")
        run("ip", "link", "add", outer, "type", "veth", "peer", "name", inner, "netns", str(thread))
        run("ip", "address", "add", f"{net}.1/24", "dev", outer)
        run("ip", "link", "set", outer, "up")
        for words in (f"link set {inner} up", f"address add {net}.2/24 dev {inner}", f"route add default via {net}.1"):
            self._inside.submit(run, "ip", *words.split()).result()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        for path in self.base.iterdir():
            run("umount", str(path))
        # With the thread go its network and, in a moment of their own, both ends of the cable.
        subprocess.run(["ip", "link", "delete", f"lab{self._number}"], capture_output=True, check=False)
        self._inside.shutdown()


def read_disk(path: str, length: int, at: int = 0) -> bytes:
    """Return what the disk has, not what the page cache remembers."""
    run("blockdev", "--flushbufs", path)
    return read_file(path, length, at)


def _leave(name: str) -> int:
    """Give this thread, and what it starts, another network and host name; return its id."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network_and_names = 0x40000000 | 0x04000000  # CLONE_NEWNET | CLONE_NEWUTS
    if libc.unshare(new_network_and_names):
        raise OSError(ctypes.get_errno(), "unshare")
    socket.sethostname(name)
    return threading.get_native_id()


def traces() -> list[str]:
    """Return the sessions, records and disks that iSCSI has left on this host."""
    sessions = subprocess.run(["iscsiadm", "-m", "session"], capture_output=True, text=True, check=False).stdout
    nodes = subprocess.run(["iscsiadm", "-m", "node"], capture_output=True, text=True, check=False).stdout
    disks = [str(path) for path in Path("/sys/class/scsi_disk").glob("*")]
    return [*sessions.splitlines(), *nodes.splitlines(), *disks]


@contextmanager
def udev() -> Iterator[None]:
    """Run a udevd unless there is one: only now, since it would look at each device of the tests of LVM."""
    if Path("/run/udev/control").exists():
        yield
        return
    Path("/run/udev").mkdir(exist_ok=True)
    daemon = subprocess.Popen(["/lib/systemd/systemd-udevd"], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path("/run/udev/control").exists():
        assert daemon.poll() is None
        time.sleep(0.02)
    try:
        yield
    finally:
        daemon.terminate()
        daemon.wait(120)
        Path("/run/udev/control").unlink(missing_ok=True)


def _interface(name: str) -> str:
    """Return open-iscsi's interface that logs in under a name, made where it is not the host's own."""
    if name == HOSTS_OWN:
        return "default"
    interface = re.sub(r"[^A-Za-z0-9]", "-", name)
    if not Path(f"/etc/iscsi/ifaces/{interface}").exists():
        run("iscsiadm", "-m", "iface", "-I", interface, "-o", "new")
        for key, value in (("transport_name", "tcp"), ("initiatorname", name)):
            run("iscsiadm", "-m", "iface", "-I", interface, "-o", "update", "-n", f"iface.{key}", "-v", value)
    return interface


def _brick(interface: str) -> Any:
    """Return os-brick's connector."""
    _set_up()
    from os_brick.initiator import connector

    # Its name for open-iscsi's interface is transport.
    return connector.InitiatorConnector.factory(
        "ISCSI", "", use_multipath=False, device_scan_attempts=5, transport=interface
    )


@functools.cache
def _set_up() -> None:
    """Import os-brick, which takes seconds, and make it a guest of this process: no daemon of its own, no forks."""
    with warnings.catch_warnings():  # its own imports are deprecated
        warnings.simplefilter("ignore")
        import os_brick
        import os_brick.initiator.connector
        from os_brick import privileged
        from oslo_concurrency import lockutils, processutils
        from oslo_config import cfg

    Path("/run/lock/brick").mkdir(parents=True, exist_ok=True)
    lockutils.set_defaults("/run/lock/brick")
    cfg.CONF([], project="lab")
    os_brick.setup(cfg.CONF)
    privileged.default.set_client_mode(False)
    if os.environ.get("LAB_KIND") == "uml":
        _spawn_quickly(processutils)


def _spawn_quickly(processutils: Any) -> None:
    """Keep oslo from forking, which takes User-Mode Linux up to 0.7 s, to reset a signal that is reset anyway."""
    real = processutils.subprocess

    class Popen(real.Popen):  # type: ignore[misc, name-defined]
        def __init__(self, *args: Any, preexec_fn: Any = None, **options: Any):
            super().__init__(*args, **options)

    class Quick:
        def __getattr__(self, name: str) -> Any:
            return Popen if name == "Popen" else getattr(real, name)

    processutils.subprocess = Quick()
