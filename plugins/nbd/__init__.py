"""Volumes over NBD: one ``qemu-nbd`` for each export of a raw or qcow2 volume, for QEMU, libnbd and users.

This file implements the target plugin. ``folder.py`` stores the state of an export and ends its server. ``commands.py``
runs qemu-nbd, ``images.py`` describes its images, ``tls.py`` writes keys, and ``peers.py`` lists connections.

A server is a separate process and outlives the service. Under systemd the service's unit therefore needs
``KillMode=process``: otherwise a restart of the service disconnects the disks of all virtual machines.

*Unix socket* (``listen`` empty): permission to open the socket gives access to the volume. By default only the
service's user has it. For QEMU under another user, make a directory that its group may enter, such as
``install -d -m 2750 -o blockstore -g libvirt-qemu /run/blockstore-nbd``, and name it as ``socket_dir``.

*TCP* (``listen`` is an address): TLS with a pre-shared key is required. The identity is the export's id. The key is the
export's secret, written in key files in hexadecimal, byte by byte::

    echo "$ID:$(printf %s "$SECRET" | od -An -tx1 | tr -d ' \\n')" > keys.psk
    nbdinfo "nbds://$ID@$HOST:$PORT/$ID?tls-psk-file=keys.psk"
    qemu-img info --object tls-creds-psk,id=t,endpoint=client,dir=.,username=$ID --image-opts \\
        driver=nbd,host=$HOST,port=$PORT,export=$ID,tls-creds=t

(libnbd 1.14 does not support TLS with an IPv6 address instead of a host name; QEMU does.) A port may be reused for
another volume later; id and key are never reused.

Several exports of one raw volume are safe: all servers write through the kernel's page cache, without rounding requests
up. A second export of a qcow2 volume raises InUse, because QEMU locks the file.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from blockstore import private_files
from blockstore.backends.options import of_type
from blockstore.errors import BackendError, ConfigError, DiskFull, Unreachable
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities, TargetOptions, option

from . import commands, images, peers, tls
from .folder import Address, ExportFolder, Ports

log = logging.getLogger(__name__)

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z-]{0,35}")
_PORTS = re.compile(r"([0-9]{1,5})-([0-9]{1,5})")
_LONGEST_ID = 36
_LONGEST_SOCKET = 107
"""The kernel's limit for the path of a socket, in bytes."""


@dataclass(frozen=True, kw_only=True)
class NbdOptions(TargetOptions):
    """Options of an NBD target."""

    listen: str = option("Address of this node for TCP with TLS-PSK. If empty, each export has a unix socket.", "")
    ports: str = option("First and last TCP port. Each export uses one port.", "10809-11808")
    socket_dir: Path | None = option(  # noqa: RUF009
        "Directory for the unix sockets; its group may use them. By default a directory that the user of the "
        "service alone may enter.",
        None,
    )


class NbdTarget(Target):
    """A set of NBD exports in one directory of unix sockets or on one TCP address."""

    Options = NbdOptions

    def __init__(self, name: str, options: TargetOptions, state_dir: Path, owner: str):
        super().__init__(name, options, state_dir, owner)
        where = f"[target:{name}]"
        options = of_type(NbdOptions, options, where)
        self._host = _address(options.listen, f"{where} listen")
        self._range = _ports(options.ports, f"{where} ports")
        self._socket_dir = options.socket_dir
        if self._socket_dir and not self._socket_dir.is_absolute():
            raise ConfigError(f"{where} socket_dir is {self._socket_dir}; an absolute path is expected.")
        longest = len(str(self._socket("x" * _LONGEST_ID)).encode())
        if not self._host and longest > _LONGEST_SOCKET:
            raise ConfigError(
                f"{where} socket_dir must be set to a shorter path: the sockets' paths would have {longest} bytes, and"
                f" the kernel allows {_LONGEST_SOCKET}."
            )

    def check(self) -> None:
        """Check that a suitable qemu-nbd is installed, and that sockets can be made or the address can be used."""
        commands.prove(tls=bool(self._host))
        with self._explained():
            private_files.make_directory(self.state_dir)
            if self._host:
                self._prove_address()
            elif self._socket_dir:
                self._prove_socket_dir(self._socket_dir)

    def _prove_address(self) -> None:
        try:
            with socket.socket(socket.AF_INET6 if ":" in self._host else socket.AF_INET) as probe:
                probe.bind((self._host, 0))
        except OSError as exc:
            raise Unreachable(
                f"Nothing can listen on {self._host}: {exc.strerror}. Correct the option listen."
            ) from exc

    def _prove_socket_dir(self, path: Path) -> None:
        if not path.is_dir():
            raise Unreachable(
                f"The directory {path} for the sockets does not exist. Create it: install -d -m 2750 {path}"
            )
        if not os.access(path, os.W_OK | os.X_OK):
            raise Unreachable(f"No sockets can be created in {path}: chown {os.geteuid()} {path}; chmod u+rwx {path}")
        if path.stat().st_mode & 0o022:
            raise Unreachable(f"Other users could replace the sockets in {path}: chmod go-w {path}")

    def capabilities(self) -> TargetCapabilities:
        """Return the capabilities of NBD. A server's size is fixed at its start, so growth needs a new export."""
        return TargetCapabilities(protocol="nbd", formats=frozenset({"raw", "qcow2"}), multiattach=True, block_size=512)

    # --- exports --------------------------------------------------------------------------------------------

    def export(self, export: Export) -> Connection:
        """Start the export's server, unless it is running and can be reached."""
        with self._explained():
            folder = self._folder(export.id)
            folder.make()
            if not folder.serves():
                try:
                    self._serve(folder, export)
                except BaseException:
                    with suppress(BackendError, OSError):
                        self._remove(folder)
                    raise
            address = folder.address()
            if address is None:
                raise Unreachable(f"{folder.path} was removed while it was in use.")
            if self._socket_dir and Path(address.socket).parent == self._socket_dir:
                Path(address.socket).chmod(0o660)
            return _connection(export, address)

    def _serve(self, folder: ExportFolder, export: Export) -> None:
        folder.stop()  # a server that cannot be reached, or was not ready in time
        image = images.blockdev(export.path, export.format, export.layers)
        if self._host:
            tls.write_keys(folder.path, export.id, export.secret)
            self._serve_tcp(folder, export, image)
            return
        self._release(folder)
        address = Address(socket=str(self._socket(export.id)))
        folder.remember(address)
        self._start(folder, export, image, address)

    def _serve_tcp(self, folder: ExportFolder, export: Export, image: str) -> None:
        old = folder.address()
        remembered = old.port if old and old.host == self._host and old.port in self._range else 0
        if not remembered:
            self._release(folder)
        for port in self._ports.candidates(export.id, remembered):
            address = Address(host=self._host, port=port)
            folder.remember(address)  # before the claim, so that a claimed port is known
            if not self._ports.claim(port, export.id):
                continue
            try:
                self._start(folder, export, image, address)
            except commands.PortTaken:
                log.warning("target %s: something else listens on port %d of %s", self.name, port, self._host)
                self._ports.release(port, export.id)
            else:
                return
        raise Unreachable(
            f"All ports of {self._host} from {self._range[0]} to {self._range[-1]} are taken. Widen the option ports."
        )

    def _start(self, folder: ExportFolder, export: Export, image: str, address: Address) -> None:
        with folder.locked() as lock:
            commands.serve(
                image,
                export=export.id,
                socket=address.socket,
                host=address.host,
                port=address.port,
                keys=folder.path,
                pid_file=folder.pid_file,
                read_only=export.read_only,
                lock=lock,
            )

    def withdraw(self, export_id: str) -> None:
        """End the export's server and verify that it is gone; then remove the export."""
        with self._explained():
            folder = self._folder(export_id)
            if folder.path.exists():
                self._remove(folder)

    def _remove(self, folder: ExportFolder) -> None:
        address = folder.address()
        if address and address.socket:
            Path(address.socket).unlink(missing_ok=True)
        folder.stop()
        self._release(folder)
        folder.remove()

    def _release(self, folder: ExportFolder) -> None:
        """Remove the socket or release the port of an address that is not used any more."""
        address = folder.address()
        if address and address.socket:
            Path(address.socket).unlink(missing_ok=True)
        if address and address.port:
            self._ports.release(address.port, folder.id)

    def list_exports(self) -> frozenset[str]:
        """Return the ids of exports that have a directory, even if their server has ended."""
        with self._explained():
            try:
                return frozenset(path.name for path in self.state_dir.iterdir() if _ID.fullmatch(path.name))
            except FileNotFoundError:
                return frozenset()

    def faults(self) -> Mapping[str, str]:
        """Return the exports whose server has ended, or lost its socket or keys; the kernel's locks identify the
        servers."""
        with self._explained():
            found = {export_id: self._folder(export_id).fault() for export_id in self.list_exports()}
            return {export_id: fault for export_id, fault in found.items() if fault}

    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        """Return the connections listed by the kernel; a TCP connection is listed even before it has proved its key."""
        with self._explained():
            by_socket, by_port = peers.of_sockets(), peers.of_ports()
            found = {}
            for export_id in self.list_exports():
                address = self._folder(export_id).address()
                if address is None:
                    continue
                who = by_port.get((address.host, address.port), ()) or by_socket.get(address.socket, ())
                if who:
                    found[export_id] = tuple(who)
            return found

    # --- names ----------------------------------------------------------------------------------------------

    @property
    def _ports(self) -> Ports:
        return Ports(self.state_dir / ".ports", self._range)

    def _folder(self, export_id: str) -> ExportFolder:
        if not _ID.fullmatch(export_id):
            raise BackendError(f"{export_id!r} is not an export's id: letters, digits and - are expected.")
        return ExportFolder(self.state_dir / export_id)

    def _socket(self, export_id: str) -> Path:
        return self._socket_dir / export_id if self._socket_dir else self.state_dir / export_id / "nbd"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Translate an OSError to an error of the service."""
        try:
            yield
        except OSError as exc:
            if exc.errno in private_files.DISK_FULL:
                raise DiskFull(f"The disk of {self.state_dir} is full: {exc.strerror}. Make space on it.") from exc
            raise Unreachable(f"The target {self.name} cannot keep its files in {self.state_dir}: {exc}.") from exc


def _connection(export: Export, address: Address) -> Connection:
    data: dict[str, Any] = {
        "export": export.id,
        "format": "raw",  # the initiator sees raw bytes; must be passed to QEMU, which else probes the guest's bytes
        "read_only": export.read_only,
        "discard": not export.read_only,
    }
    if address.socket:
        data |= {"uri": f"nbd+unix:///{export.id}?socket={quote(address.socket)}", "socket": address.socket}
        return Connection(driver_volume_type="nbd", data=data)
    host = f"[{address.host}]" if ":" in address.host else address.host
    data |= {
        "uri": f"nbds://{export.id}@{host}:{address.port}/{export.id}",
        "host": address.host,
        "port": address.port,
        "auth_method": "TLS-PSK",
        "auth_username": export.id,
    }
    return Connection(driver_volume_type="nbd", data=data, secret_as="auth_password")  # noqa: S106 - the key's name


def _address(text: str, where: str) -> str:
    """Return an address in its shortest form; empty for empty text. Raise ConfigError if it is invalid."""
    if not text:
        return ""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        raise ConfigError(f"{where} is {text!r}; an IPv4 or IPv6 address is expected, or nothing.") from None
    if found.is_unspecified or "%" in text:
        raise ConfigError(f"{where} is {text!r}; the one address by which initiators reach this node is expected.")
    return str(found)


def _ports(text: str, where: str) -> range:
    match = _PORTS.fullmatch(text.replace(" ", ""))
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= 65535:
        raise ConfigError(f"{where} is {text!r}; a range of ports such as 10809-11808 is expected.")
    return range(first, last + 1)
