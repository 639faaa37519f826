"""A client that costs little: keep-alive on a raw socket, just enough HTTP, and several at once as threads."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, ClassVar


class Client:
    """One connection to the service."""

    tokens: ClassVar[dict[int, str]] = {}
    """What to show at a port, where the service asks who one is."""

    def __init__(self, port: int, token: str = "") -> None:
        """``token``: that of another user than the administrator."""
        token = token or self.tokens.get(port, "")
        self._token = f"X-Auth-Token: {token}\r\n" if token else ""
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def __call__(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        """Send one request and return status and body of its answer; ``path`` is below /v3, or /identity."""
        data = b"" if body is None else json.dumps(body).encode()
        root = "" if path.startswith("/identity") else "/v3"
        head = f"{method} {root}{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nOpenStack-API-Version: volume 3.71\r\n"
        head += self._token
        if data:
            head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        self._socket.sendall(f"{head}\r\n".encode() + data)
        return self._answer()

    def _answer(self) -> tuple[int, bytes]:
        while (end := self._rest.find(b"\r\n\r\n")) < 0:
            self._read()
        head = self._rest[:end].lower()
        status = int(head[9:12])
        at = head.find(b"\r\ncontent-length:")
        length = 0 if at < 0 else int(head[at + 17 :].split(b"\r\n", 1)[0])
        while len(self._rest) < end + 4 + length:
            self._read()
        body, self._rest = self._rest[end + 4 : end + 4 + length], self._rest[end + 4 + length :]
        return status, body

    def _read(self) -> None:
        data = self._socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the service closed the connection")
        self._rest += data

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def get(self, path: str) -> bytes:
        """GET that must succeed."""
        status, body = self("GET", path)
        if status != 200:
            raise RuntimeError(f"GET {path}: {status} {body!r}")
        return body

    def create(self) -> str:
        """Ask for a volume of 1 GiB and return its id."""
        status, body = self("POST", "/volumes", {"volume": {"size": 1, "name": "bench"}})
        if status != 202:
            raise RuntimeError(f"create: {status} {body!r}")
        return str(json.loads(body)["volume"]["id"])

    def wait_available(self, volume_id: str, pause_s: float) -> None:
        """Ask for the volume until it is available."""
        while True:
            time.sleep(pause_s)
            status = json.loads(self.get(f"/volumes/{volume_id}"))["volume"]["status"]
            if status == "available":
                return
            if status != "creating":
                raise RuntimeError(f"volume {volume_id} is {status}")

    def delete_and_wait(self, volume_id: str, pause_s: float) -> None:
        """Remove a volume and ask for it until it is gone."""
        status, body = self("DELETE", f"/volumes/{volume_id}")
        if status != 202:
            raise RuntimeError(f"delete: {status} {body!r}")
        while True:
            time.sleep(pause_s)
            if self("GET", f"/volumes/{volume_id}")[0] == 404:
                return


def closed_loop(port: int, clients: int, work: Callable[[Client], bool], token: str = "") -> tuple[list[float], float]:
    """Let so many clients repeat ``work`` until it says False; return the durations and how many were done a second."""
    done: list[float] = []
    failures: list[BaseException] = []

    def run() -> None:
        client = Client(port, token)
        try:
            while True:
                started = time.perf_counter()
                if not work(client):
                    return
                done.append(time.perf_counter() - started)
        except BaseException as exc:
            failures.append(exc)
        finally:
            client.close()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return done, len(done) / (time.perf_counter() - started)
