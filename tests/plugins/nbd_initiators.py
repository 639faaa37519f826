"""The initiators of the tests of the nbd plugin: qemu-io and libnbd's tools, told no more than a Connection says."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from blockstore_plugins.nbd import NbdOptions, NbdTarget
from blockstore_plugins.nbd import __doc__ as plugin_says

from blockstore.targets.contract import Connection, Export

from ..conftest import need

MIB = 2**20
SECRET = "abcdefgh12345678"


def need_tools() -> None:
    """Skip without qemu-nbd, qemu-io, and libnbd's tools."""
    need(shutil.which("qemu-nbd") and shutil.which("qemu-io"), "apt-get install qemu-utils")
    need(shutil.which("nbdinfo") and shutil.which("nbdcopy"), "apt-get install libnbd-bin")


@contextmanager
def place() -> Iterator[Path]:
    """Give a directory below /tmp, because paths of sockets are short; in the end nothing lives that was born in it."""
    path = Path(mkdtemp(prefix="nbd, "))  # a name that is not to be split, neither by QEMU nor in a URI
    try:
        yield path
        assert not list(processes(path))
    finally:
        for pid in processes(path):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(path)


def processes(path: Path) -> Iterator[int]:
    """Yield the servers that name this path, or something in it, on their command line, or have it open."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if not entry.name.isdigit() or (entry / "comm").read_text() != "qemu-nbd\n":
                continue
            named = str(path).encode() in (entry / "cmdline").read_bytes()
            if named or any(str(path) in str(fd.readlink()) for fd in (entry / "fd").iterdir()):
                yield int(entry.name)


def make(path: Path, host: str = "", **options: Any) -> NbdTarget:
    """A target that keeps its state in ``path``."""
    if host and "ports" not in options:
        first = free_port(host)
        options["ports"] = f"{first}-{min(first + 200, 65535)}"
    return NbdTarget("nbd", NbdOptions(listen=host, **options), path / "s", "test")


def free_port(host: str = "127.0.0.1") -> int:
    """A port that nothing listens on, and that the kernel gives to no client.

    Else the connection of another process, or what is left of one for a minute, could take it between two exports.
    """
    end = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for _ in range(1000):
        port = random.randrange(min(10000, end - 1), end)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe, suppress(OSError):
            probe.bind((host, port))
            return port
    raise AssertionError(f"No port of {host} below {end} is free.")


def volume(path: Path, name: str = "a:b, c", image_format: str = "raw", size: int = 64 * MIB) -> Path:
    """Make a volume's file, under a name that needs care."""
    file = path / f"{name}.{image_format}"
    subprocess.run(["qemu-img", "create", "-q", "-f", image_format, file, str(size)], check=True)
    return file


def export(file: Path, **fields: Any) -> Export:
    """An export with an id of its own."""
    fields.setdefault("id", str(uuid.uuid4()))
    return Export(**{"volume": "v", "path": file, "format": file.suffix[1:], "secret": SECRET, **fields})


# --- QEMU --------------------------------------------------------------------------------------------------


def qemu_words(
    connection: Connection, keys: Path, *, secret: str = SECRET, identity: str = "", tls: bool = True, **more: Any
) -> list[str]:
    """The words that make QEMU's tools open a connection."""
    data = connection.data
    words, node = [], {"driver": "nbd", "export": data["export"], **more}
    if "socket" in data:
        node["server"] = {"type": "unix", "path": data["socket"]}
    else:
        node["server"] = {"type": "inet", "host": data["host"], "port": str(data["port"])}
        if tls:
            who = identity or data["auth_username"]
            directory = key_file(keys, who, secret).parent
            opts = f"tls-creds-psk,id=t,endpoint=client,dir={str(directory).replace(',', ',,')},username={who}"
            words, node["tls-creds"] = ["--object", opts], "t"
    image = {"driver": data["format"], "discard": "unmap", "read-only": data["read_only"], "file": node}
    return [*words, f"json:{json.dumps(image)}"]


def _mode(connection: Connection) -> tuple[str, ...]:
    return ("-r",) if connection.data["read_only"] else ()


def qemu_io(connection: Connection, keys: Path, *commands: str, **how: Any) -> str:
    """Run commands of qemu-io and return what it said; each must succeed."""
    done = qemu_io_says(connection, keys, *commands, **how)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "failed" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def qemu_io_says(connection: Connection, keys: Path, *commands: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run commands of qemu-io, whatever comes of it."""
    words = [word for command in commands for word in ("-c", command)]
    argv = ["qemu-io", *_mode(connection), *words, *qemu_words(connection, keys, **how)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)


class Session:
    """A qemu-io that keeps its connection and is told one command after the other."""

    def __init__(self, connection: Connection, keys: Path, **more: Any) -> None:
        argv = ["qemu-io", *_mode(connection), *qemu_words(connection, keys, **more)]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert "read 512/512" in self.ask("read 0 512")
        self.process.stdout.readline()  # type: ignore[union-attr]  # how fast it was

    def tell(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def ask(self, command: str) -> str:
        self.tell(command)
        assert self.process.stdout
        return self.process.stdout.readline()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()


# --- libnbd ------------------------------------------------------------------------------------------------


def key_file(keys: Path, identity: str, secret: str = SECRET) -> Path:
    """Write a key file as the plugin's docstring says."""
    directory = keys / f"k-{identity[:8]}-{secret[-4:]}"
    directory.mkdir(exist_ok=True)
    file = directory / "keys.psk"
    line = 'echo "$ID:$(printf %s "$SECRET" | od -An -tx1 | tr -d " \\n")"'
    assert line.replace('" \\n"', "' \\n'") in str(plugin_says)
    spelled = subprocess.run(
        ["sh", "-c", line], env={"ID": identity, "SECRET": secret}, capture_output=True, check=True
    )
    file.write_bytes(spelled.stdout)
    return file


def uri(connection: Connection, keys: Path, secret: str = SECRET) -> str:
    """The URI for libnbd, with the key file if there is one."""
    found = str(connection.data["uri"])
    if found.startswith("nbds"):
        file = key_file(keys, connection.data["auth_username"], secret)
        found += "?tls-psk-file=" + str(file).replace(" ", "%20").replace(",", "%2C")
    return found


def nbdinfo(connection: Connection, keys: Path) -> Mapping[str, Any]:
    """What the server says of the export."""
    done = subprocess.run(
        ["nbdinfo", "--json", uri(connection, keys)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
