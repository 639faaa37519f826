"""The initiators of the conformance suite of targets: QEMU's own, each in a process of its own.

One ``Initiator`` is one host. It gets the same data as os-brick, and speaks the protocol in user space: qemu-io over
iSCSI (libiscsi), over NBD (TLS-PSK if there is a key), or on the path itself. Secrets reach qemu in a private file,
never on its command line. Knows no targets and no backends.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockstore.backends import process
from blockstore.errors import BackendError, ToolFailed, ToolTimeout
from blockstore.targets.contract import Connection

PACKAGE = "qemu-utils qemu-block-extra"
TIMEOUT_S = 20.0
"""Seconds after which an initiator is stopped, because a refused initiator may try for ever."""


class InitiatorRefused(BackendError):
    """The initiator was refused; keeps its output."""


@dataclass(frozen=True)
class ConnectionInfo:
    """The data that an initiator gets for an export: os-brick's connection_info."""

    type: str
    data: Mapping[str, Any]

    @classmethod
    def of(cls, connection: Connection, secret: str) -> ConnectionInfo:
        """Return the data of a connection, with the secret at the key where the initiator expects it."""
        known = {connection.secret_as: secret} if connection.secret_as else {}
        return cls(connection.driver_volume_type, {**connection.data, **known})


class Initiator:
    """One host, by its name; keeps its temporary files in a private directory."""

    def __init__(self, name: str, directory: Path):
        self.iqn = f"iqn.2010-10.org.openstack:{name}"
        self._directory = directory

    @property
    def connector(self) -> dict[str, Any]:
        """Return the connector of this host, in the form of os-brick."""
        return {
            "platform": platform.machine(),
            "os_type": "linux",
            "host": socket.gethostname(),
            "ip": "127.0.0.1",
            "initiator": self.iqn,
            "multipath": False,
            "do_local_attach": False,
        }

    def size(self, connection_info: ConnectionInfo) -> int:
        """Return the size of the disk in bytes."""
        with self._disk(connection_info) as (options, disk):
            return int(json.loads(_qemu("qemu-img", "info", "--output=json", *options, disk))["virtual-size"])

    def read(self, connection_info: ConnectionInfo, *offsets: int, length: int) -> Sequence[bytes]:
        """Return ``length`` bytes from each offset."""
        output = self.do(connection_info, *(f"read -v {offset} {length}" for offset in offsets))
        # 00010000:  f4 f5 cf 92 fa 8b 0f 21 d2 cb ef 86 6a b7 a3 f0  ............j...
        lines = (line.partition(":  ")[2][: 16 * 3] for line in output.splitlines() if line[8:11] == ":  ")
        data = bytes.fromhex("".join(lines))
        return [data[at : at + length] for at in range(0, length * len(offsets), length)]

    def write(self, connection_info: ConnectionInfo, pieces: Mapping[int, bytes]) -> None:
        """Write bytes at offsets, and flush them."""
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            commands = []
            for offset, data in pieces.items():
                source = Path(folder, str(offset))
                source.write_bytes(data)
                commands.append(f"write -s {source} {offset} {len(data)}")
            self.do(connection_info, *commands, "flush", write=True)

    def do(self, connection_info: ConnectionInfo, *commands: str, write: bool = False) -> str:
        """Have qemu-io open the disk and run commands; return its output. Raise InitiatorRefused if one fails."""
        words = [word for command in commands for word in ("-c", command)]
        with self._disk(connection_info) as (options, disk):
            return _qemu("qemu-io", *options, *_mode(write), *words, disk)

    @contextmanager
    def session(self, connection_info: ConnectionInfo, *, write: bool = False) -> Iterator[InitiatorSession]:
        """Have qemu-io open the disk, and keep it open until a command is given or the block ends."""
        with self._disk(connection_info) as (options, disk):
            tool = process.Waiting(("qemu-io", *options, *_mode(write), disk), package=PACKAGE)
            try:
                yield InitiatorSession(tool)
            finally:
                tool.stop()

    @contextmanager
    def _disk(self, connection_info: ConnectionInfo) -> Iterator[Disk]:
        with tempfile.TemporaryDirectory(dir=self._directory) as folder:
            options, node = _KINDS[connection_info.type](connection_info.data, self.iqn, Path(folder))
            yield options, "json:" + json.dumps({"driver": "raw", "file": node})


class InitiatorSession:
    """A disk that an initiator keeps open."""

    def __init__(self, tool: process.Waiting):
        """``tool`` is a qemu-io that waits for commands."""
        self._tool = tool

    def last(self, command: str, *, timeout_s: float) -> str:
        """Run a command, and close the disk; return the output. Raise InitiatorRefused if the command fails."""
        with _refusals():
            return self._tool.finish(f"{command}\n", timeout_s=timeout_s)


Disk = tuple[Sequence[str], str]
"""qemu's options, and the name of the disk."""

Described = tuple[Sequence[str], Mapping[str, Any]]
"""qemu's options, and its block node."""


def _mode(write: bool) -> Sequence[str]:
    return () if write else ("-r",)


def _local(data: Mapping[str, Any], _iqn: str, _folder: Path) -> Described:
    path = data["device_path"]
    driver = "host_device" if Path(path).is_block_device() else "file"
    return (), {"driver": driver, "filename": path, "locking": "off"}


def _iscsi(data: Mapping[str, Any], iqn: str, folder: Path) -> Described:
    node = {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": data["target_portal"],
        "target": data["target_iqn"],
        "lun": data["target_lun"],
        "initiator-name": iqn,
    }
    if not data.get("auth_password"):
        return (), node
    _write_private(folder / "secret", data["auth_password"])
    node |= {"user": data["auth_username"], "password-secret": "secret"}
    return ("--object", f"secret,id=secret,file={folder / 'secret'}"), node


def _nbd(data: Mapping[str, Any], _iqn: str, folder: Path) -> Described:
    node: dict[str, Any] = {"driver": "nbd", "export": data["export"]}
    if data.get("socket"):
        return (), node | {"server": {"type": "unix", "path": data["socket"]}}
    node["server"] = {"type": "inet", "host": data["host"], "port": str(data["port"])}
    if not data.get("auth_password"):
        return (), node
    user, key = data["auth_username"], data["auth_password"].encode().hex()
    _write_private(folder / "keys.psk", f"{user}:{key}\n")
    tls = f"tls-creds-psk,id=tls,endpoint=client,dir={folder},username={user}"
    return ("--object", tls), node | {"tls-creds": "tls"}


def _write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


_KINDS = {"local": _local, "iscsi": _iscsi, "nbd": _nbd}
"""The function that describes the disk to qemu, by driver_volume_type."""


def _qemu(tool: str, *args: str) -> str:
    with _refusals():
        return process.run((tool, *args), timeout_s=TIMEOUT_S, package=PACKAGE)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (ToolFailed, ToolTimeout) as exc:
        raise InitiatorRefused(f"The initiator was refused: {exc}") from exc
