"""Files of the database that go while a served process uses them: no write is accepted, and all say the same."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blockstore.db import outages
from tests.conftest import Served


def ask(served: Served, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    request = urllib.request.Request(
        served.url.removesuffix("/v3") + path,
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, parsed(answer.read())
    except urllib.error.HTTPError as exc:
        return exc.code, parsed(exc.read())


def parsed(body: bytes) -> Any:
    """Return what JSON says; a plain text as it is."""
    return json.loads(body) if body.startswith(b"{") else body.decode().strip()


def wait_for(question: Callable[[], bool]) -> None:
    for _ in range(1200):
        if question():
            return
        time.sleep(0.05)
    raise AssertionError


def test_no_write_is_accepted_that_would_be_lost(serve: Callable[..., Served]) -> None:
    served = serve("[backend:m]\nplugin = memory\n")
    volume = f"/v3/volumes/{ask(served, 'POST', '/v3/volumes', {'volume': {'size': 1}})[1]['volume']['id']}"
    wait_for(lambda: ask(served, "GET", volume)[1]["volume"]["status"] == "available")

    def proves_lost() -> None:
        wait_for(lambda: ask(served, "GET", "/healthcheck")[0] == 503)
        assert ask(served, "GET", "/healthcheck") == (503, outages.DAMAGED)
        for method, path, body in (
            ("POST", "/v3/volumes", {"volume": {"size": 1}}),
            ("PUT", volume, {"volume": {"name": "n"}}),
            ("DELETE", volume, None),
        ):
            status, said = ask(served, method, path, body)
            assert (status, said["serviceUnavailable"]["message"]) == (503, outages.DAMAGED), (method, path)

    file, aside = served.state_dir / "blockstore.db", Path(f"{served.state_dir}-aside")
    for lost in (file.with_name("blockstore.db-wal"), file):
        lost.rename(aside)
        if lost == file:
            lost.write_bytes(aside.read_bytes())
        proves_lost()
        aside.rename(lost)  # the very file of the start: nothing was lost
        wait_for(lambda: ask(served, "GET", "/healthcheck")[0] == 200)
        assert ask(served, "PUT", volume, {"volume": {"name": "n"}})[0] == 200
    file.write_bytes(b"")
    proves_lost()
    assert "Traceback" not in served.log.read_text()


def test_a_reader_of_another_process_takes_no_file_away(serve: Callable[..., Served]) -> None:
    """The last connection of SQLite removes the log; whoever opens and closes the file itself gives up its locks."""
    config = "[backend:m]\nplugin = memory\n"
    first = serve(config)
    first.kill()
    served = serve(config, state_dir=first.state_dir)
    for _ in range(3):
        code = (
            "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM operations'); db.close()"
        )
        subprocess.run([sys.executable, "-c", code, served.state_dir / "blockstore.db"], check=True)
        assert (served.state_dir / "blockstore.db-wal").exists()
        assert ask(served, "POST", "/v3/volumes", {"volume": {"size": 1}})[0] == 202
