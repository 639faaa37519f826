"""iSCSI initiators for tests, none of which needs the kernel: libiscsi's tools, qemu-io, and one that can misbehave.

``Raw`` speaks iSCSI itself, so that it can stop in the middle of a login, keep a session for years, or not read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from ..conftest import need

PACKAGES = {"iscsi": "libiscsi-bin", "qemu-": "qemu-utils qemu-block-extra"}


@dataclass(frozen=True)
class Login:
    """What an initiator needs to be let in."""

    portal: str
    iqn: str
    initiator: str
    user: str
    password: str

    def environment(self) -> dict[str, str]:
        """Return libiscsi's variables: unlike a URL, only root and the user can read them."""
        chap = {"LIBISCSI_CHAP_USERNAME": self.user, "LIBISCSI_CHAP_PASSWORD": self.password} if self.user else {}
        return {"PATH": os.environ["PATH"], **chap}

    @property
    def url(self) -> str:
        return f"iscsi://{self.portal}/{self.iqn}/1"


def tool(login: Login, name: str, *arguments: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run one of libiscsi's tools on the LUN."""
    _need(name)
    argv = [name, "-i", login.initiator, *arguments, login.url]
    return subprocess.run(argv, env=login.environment(), capture_output=True, encoding="latin-1", timeout=timeout_s)


def qemu_image(login: Login) -> str:
    """Return the argument by which QEMU opens the LUN; raw, so that it probes for no format."""
    lun = {"driver": "iscsi", "transport": "tcp", "portal": login.portal, "target": login.iqn, "lun": 1}
    chap = {"user": login.user, "password-secret": "chap", "initiator-name": login.initiator}
    return "json:" + json.dumps({"driver": "raw", "file": {**lun, **chap}})


def qemu_io(login: Login, *commands: str, read_only: bool = False) -> subprocess.CompletedProcess[str]:
    """Run commands of qemu-io on the LUN; the output says 'failed' of each that fails."""
    with start_qemu_io(login, read_only=read_only) as process:
        out, err = process.communicate("".join(f"{command}\n" for command in commands) + "quit\n", timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def start_qemu_io(login: Login, *, read_only: bool = False) -> subprocess.Popen[str]:
    """Start qemu-io, which holds its session until its standard input ends."""
    _need("qemu-io")
    # The secret comes from a pipe: neither argv nor the disk has it.
    reading, writing = os.pipe()
    os.write(writing, login.password.encode())
    os.close(writing)
    # Line by line, so that what it read is known though it is killed.
    argv = [
        "stdbuf",
        "-oL",
        "qemu-io",
        "--object",
        f"secret,id=chap,file=/dev/fd/{reading}",
        *(["-r"] if read_only else []),
    ]
    process = subprocess.Popen(
        [*argv, qemu_image(login)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        pass_fds=(reading,),
    )
    os.close(reading)
    return process


def _need(name: str) -> None:
    need(shutil.which(name), next(text for start, text in PACKAGES.items() if name.startswith(start)))


# --- iSCSI by hand -----------------------------------------------------------------------------------------


class LoginRefused(Exception):
    """The target said no: status class and detail."""


class CommandFailed(Exception):
    """A SCSI command ended with a status other than GOOD."""

    def __init__(self, status: int, sense: bytes):
        self.status = status
        self.sense_key = sense[4] & 15 if len(sense) > 4 else 0
        super().__init__(f"status {status:#x}, sense key {self.sense_key}")


class Raw:
    """One iSCSI connection, one command at a time."""

    def __init__(self, login: Login, *, timeout_s: float = 60, receive_buffer: int = 0):
        self.login_data = login
        host, _, port = login.portal.rpartition(":")
        host = host.strip("[]")
        self.socket = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect((host, int(port)))
        self._tag = self._command_number = 1
        self._status_number = 0

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exc: object) -> None:
        self.socket.close()

    # --- login: three calls, so that a test can stop between them -------------------------------------------

    def login(self) -> Raw:
        """Log in, as an honest initiator does."""
        self.authenticate()
        self.finish_login()
        return self

    def authenticate(self, method: str = "CHAP") -> None:
        """Pass the security stage, and stay in the next."""
        who = {"InitiatorName": self.login_data.initiator, "TargetName": self.login_data.iqn, "SessionType": "Normal"}
        answer = self._login(0x00, {**who, "AuthMethod": method})
        if answer.get("AuthMethod") == "CHAP":
            challenge = self._login(0x00, {"CHAP_A": "5"})
            secret = self.login_data.password.encode() + bytes.fromhex(challenge["CHAP_C"][2:])
            response = hashlib.md5(bytes([int(challenge["CHAP_I"])]) + secret).hexdigest()
            self._login(0x81, {"CHAP_N": self.login_data.user, "CHAP_R": f"0x{response}"})
        else:
            self._login(0x81, {})

    def finish_login(self) -> None:
        """Enter the full feature phase: from here on there is a session."""
        self._login(0x87, {"HeaderDigest": "None", "DataDigest": "None"})

    def login_without_security(self) -> None:
        """Skip the security stage, which the protocol allows."""
        who = {"InitiatorName": self.login_data.initiator, "TargetName": self.login_data.iqn, "SessionType": "Normal"}
        self._login(0x87, who)

    def _login(self, flags: int, keys: dict[str, str]) -> dict[str, str]:
        text = b"".join(f"{key}={value}\0".encode() for key, value in keys.items())
        head = struct.pack(">BBBBI6sHIHHII16x", 0x43, flags, 0, 0, len(text), b"\x80tst\0\1", 0, 1, 0, 0, 1, 0)
        self._send(head, text)
        head, data = self._receive()
        if head[36]:
            raise LoginRefused(f"{head[36]}.{head[37]}")
        return dict(pair.split("=", 1) for pair in data.decode().split("\0") if "=" in pair)

    # --- commands -------------------------------------------------------------------------------------------

    def send_command(self, cdb: bytes, *, out: bytes = b"", expect: int = 0) -> None:
        """Send a command, and do not wait for its answer."""
        direction = 0x20 if out else 0x40 if expect else 0
        lun = b"\0\1" + bytes(6)
        head = struct.pack(">BBHI8sIIII", 0x01, 0x81 | direction, 0, len(out), lun, self._tag, len(out) or expect,
                           self._command_number, self._status_number) + cdb.ljust(16, b"\0")  # fmt: skip
        self._tag += 1
        self._command_number += 1
        self._send(head, out)

    def command(self, cdb: bytes, *, out: bytes = b"", expect: int = 0) -> bytes:
        """Run a command. Raises: CommandFailed; OSError when the connection is cut."""
        self.send_command(cdb, out=out, expect=expect)
        answer = bytearray()
        while True:
            head, data = self._receive()
            opcode = head[0] & 0x3F
            if opcode == 0x25:  # Data-In
                answer += data
                if not head[1] & 1:
                    continue
                status = head[3]
            elif opcode == 0x21:  # SCSI Response
                status = head[3]
            elif opcode == 0x20:  # a ping of the target
                self._send(struct.pack(">BB2xI8sI", 0x40, 0x80, 0, head[8:16], 0xFFFFFFFF) + head[20:24]
                           + struct.pack(">II16x", self._command_number, 0), b"")  # fmt: skip
                continue
            else:
                raise AssertionError(f"unexpected PDU {opcode:#x}")
            if status:
                raise CommandFailed(status, data)
            return bytes(answer)

    def ready(self) -> Raw:
        """Take the unit attention that each session begins with."""
        for _ in range(3):
            try:
                self.command(bytes(6))
                break
            except CommandFailed as exc:
                if exc.sense_key != 6:
                    raise
        return self

    def read(self, block: int, blocks: int = 1) -> bytes:
        return self.command(struct.pack(">BBIBHB", 0x28, 0, block, 0, blocks, 0), expect=blocks * 512)

    def write(self, block: int, data: bytes) -> None:
        self.command(struct.pack(">BBIBHB", 0x2A, 0, block, 0, len(data) // 512, 0), out=data)

    def _send(self, head: bytes, data: bytes) -> None:
        assert len(head) == 48, len(head)
        self.socket.sendall(head + data + bytes(-len(data) % 4))

    def _receive(self) -> tuple[bytes, bytes]:
        head = self._exactly(48)
        length = int.from_bytes(head[5:8], "big")
        return head, self._exactly(length + -length % 4)[:length]

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the target closed the connection")
            data += part
        return data


def failures(done: subprocess.CompletedProcess[str]) -> Iterator[str]:
    """Return the lines in which qemu-io or a libiscsi tool complains."""
    yield from (line for line in done.stdout.splitlines() if "fail" in line.lower() or "error" in line.lower())
