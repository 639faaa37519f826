"""What the nursery's children do: prepare a pool, act until the n-th line kills them, recover and be judged.

A child is a whole service in a process of its own; it differs from ``blockstore serve`` in having no socket. The
trip-wire is the interpreter's own line trace, so that the code under test has no hook.
"""

from __future__ import annotations

import dataclasses
import functools
import gc
import importlib.metadata
import itertools
import json
import os
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from blockstore_plugins.directory import DirectoryBackend, files
from sqlalchemy import select

import blockstore.cli
import blockstore.service
from blockstore.api import create_app
from blockstore.api.endpoint import CORE
from blockstore.backends import loader
from blockstore.backends.contract import GIB
from blockstore.config import Config, SchedulerConfig, ServiceConfig, load
from blockstore.db.models import Message, Snapshot, Volume
from blockstore.manager.desk import snapshot_name, volume_name
from blockstore.scheduler import loading
from blockstore.service import Service
from tests.conftest import UNLIMITED, Answer, Client, backend_section, make_config
from tests.kill.invariants import check

DRAIN_LIMIT_S = 5.0
"""How soon a restarted service must have nothing open."""

CONFIG = os.environ.get("KILL_CONFIG")
"""A configuration file whose backend is tried instead of the directory backend; its pool must be empty."""

PLACES = (0, GIB // 2, GIB - 4096)
TRACED = (
    "blockstore.api.endpoint",
    "blockstore.bus",
    "blockstore.claims",
    "blockstore.db.session",
    "blockstore.manager",
    "blockstore.messages",
    "blockstore.quotas",
    "blockstore.recovery",
    "blockstore.scheduler.placing",
    "blockstore.settling",
    "blockstore.states",
    "blockstore.backends.process",
    "blockstore.keyring",
    "blockstore_plugins",
)
"""Modules, with what is below them, whose lines count as steps."""


# --- scenarios ---------------------------------------------------------------------------------------------

State = dict[str, tuple[str, int, str | None] | None]
"""By name: status, size and bytes; None for what is gone."""

BASE: State = {
    "V": ("available", 1, "now"),
    "S1": ("available", 1, "old"),
    "S2": ("available", 1, "mid"),
    "P": ("available", 1, "plain"),
    "Q": ("in-use", 1, "disk"),
    "R": ("reserved", 1, "kept"),
}
HUGE = 10**7
CONNECTOR = {"host": socket.gethostname(), "ip": "127.0.0.1"}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One request, and what is different when it has been carried out."""

    act: Callable[[World], Answer]
    goal: State
    at_start: bool = False
    """The request is there already, never handed to a room; what is killed is the start that resumes it."""
    spoils: bool = False
    """The first pool fails while the request is carried out."""


SCENARIOS: Mapping[str, Scenario] = {
    "create": Scenario(lambda w: w.volume(size=1), {"new": ("available", 1, "")}),
    "create from a snapshot": Scenario(
        lambda w: w.volume(size=2, snapshot_id=w.ids["S1"]), {"new": ("available", 2, "old")}
    ),
    "clone": Scenario(lambda w: w.volume(size=2, source_volid=w.ids["V"]), {"new": ("available", 2, "now")}),
    "create on the next pool": Scenario(lambda w: w.volume(size=1), {"new": ("available", 1, "")}, spoils=True),
    "create that nothing can take": Scenario(lambda w: w.volume(size=HUGE), {"new": ("error", HUGE, None)}),
    "extend": Scenario(lambda w: w.action("P", "os-extend", {"new_size": 3}), {"P": ("available", 3, "plain")}),
    "extend that nothing can take": Scenario(lambda w: w.action("P", "os-extend", {"new_size": HUGE}), {}),
    "first snapshot": Scenario(
        lambda w: w.ask("POST", "/snapshots", {"snapshot": {"volume_id": w.ids["P"]}}),
        {"new": ("available", 1, "plain")},
    ),
    "third snapshot": Scenario(
        lambda w: w.ask("POST", "/snapshots", {"snapshot": {"volume_id": w.ids["V"]}}),
        {"new": ("available", 1, "now")},
    ),
    "delete a snapshot": Scenario(lambda w: w.ask("DELETE", f"/snapshots/{w.ids['S1']}"), {"S1": None}),
    "delete": Scenario(lambda w: w.ask("DELETE", f"/volumes/{w.ids['P']}"), {"P": None}),
    "delete with cascade": Scenario(
        lambda w: w.ask("DELETE", f"/volumes/{w.ids['V']}?cascade=true"), {"V": None, "S1": None, "S2": None}
    ),
    "revert": Scenario(lambda w: w.action("V", "revert", {"snapshot_id": w.ids["S2"]}), {"V": ("available", 1, "mid")}),
    "attach at once": Scenario(
        lambda w: w.ask("POST", "/attachments", {"attachment": {"volume_uuid": w.ids["P"], "connector": CONNECTOR}}),
        {"P": ("attaching", 1, "plain")},
    ),
    "connect": Scenario(
        lambda w: w.ask("PUT", f"/attachments/{w.ids['R-use']}", {"attachment": {"connector": CONNECTOR}}),
        {"R": ("attaching", 1, "kept")},
    ),
    # With what os-initialize_connection left.
    "detach": Scenario(lambda w: w.ask("DELETE", f"/attachments/{w.ids['Q-use']}"), {"Q": ("available", 1, "disk")}),
    "connect the older way": Scenario(
        lambda w: w.action("P", "os-initialize_connection", {"connector": CONNECTOR}), {}
    ),
    "disconnect the older way": Scenario(
        lambda w: w.action("Q", "os-terminate_connection", {"connector": CONNECTOR}), {}
    ),
    "reset to detached": Scenario(
        lambda w: w.action("Q", "os-reset_status", {"status": "available", "attach_status": "detached"}),
        {"Q": ("available", 1, "disk")},
    ),
    "delete what is reserved": Scenario(lambda w: w.action("R", "os-force_delete", {}), {"R": None}),
    "extend what is attached": Scenario(
        lambda w: w.action("Q", "os-extend", {"new_size": 3}), {"Q": ("in-use", 3, "disk")}
    ),
    "resume": Scenario(
        lambda w: w.several(),
        {"new": ("available", 2, "old"), "P": ("available", 3, "plain"), "V": ("available", 1, "mid")},
        at_start=True,
    ),
}


@dataclasses.dataclass
class World:
    """A service, and the ids of what was prepared in it."""

    service: Service
    ids: dict[str, str]

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return Client(self.service)(method, path, body)

    def volume(self, **fields: Any) -> Answer:
        return self.ask("POST", "/volumes", {"volume": fields})

    def action(self, name: str, action: str, arguments: Any) -> Answer:
        return self.ask("POST", f"/volumes/{self.ids[name]}/action", {action: arguments})

    def several(self) -> Answer:
        """Ask for three things on three resources."""
        answers = [SCENARIOS[name].act(self) for name in ("create from a snapshot", "extend", "revert")]
        return next((answer for answer in answers if answer.status != 202), answers[0])

    def write(self, name: str, text: str) -> None:
        """Write a word at the beginning, in the middle and at the end of the first GiB."""
        row = self.row(name)
        with self.service.backends[row.host].open_volume(volume_name(row.id), "r+b") as file:
            for place in PLACES:
                file.seek(place)
                file.write(text.encode().ljust(4096, b"\0"))

    def row(self, name: str) -> Any:
        """Return the row of what was prepared, or of the one thing that is ``new``."""
        with self.service.db.read() as session:
            rows = [*session.scalars(select(Volume)), *session.scalars(select(Snapshot))]
        known = set(self.ids.values())
        found = [row for row in rows if (row.id not in known if name == "new" else row.id == self.ids[name])]
        assert len(found) <= 1, found
        return found[0] if found else None

    def state(self) -> State:
        """Return what there is, in rows and on the backend."""
        found: State = {}
        for name in (*BASE, "new"):
            row = self.row(name)
            if row is not None:
                found[name] = (row.status, row.size if isinstance(row, Volume) else row.volume_size, self._text(row))
        return found

    def _text(self, row: Any) -> str | None:
        if row.host is None:
            return None
        backend = self.service.backends[row.host]
        opened = (
            backend.open_volume(volume_name(row.id), "rb")
            if isinstance(row, Volume)
            else backend.open_snapshot(volume_name(row.volume_id), snapshot_name(row.id))
        )
        words = []
        with opened as file:
            size = file.seek(0, os.SEEK_END)
            for place in PLACES:
                file.seek(place)
                words.append(file.read(4096).rstrip(b"\0").decode())
            for place in (GIB, size - 4096) if size > GIB else ():
                file.seek(place)
                assert not file.read(4096).strip(b"\0"), f"what was added is not zero at {place}"
        assert len(set(words)) == 1, f"a mixture: {words}"
        return words[0]


# --- the trip-wire -----------------------------------------------------------------------------------------


class Tripwire:
    """Counts the lines of the traced modules, in all threads; at the fatal one the process is killed."""

    def __init__(self, state_dir: Path, fatal: int | None) -> None:
        self._fatal, self._state_dir = fatal, state_dir
        self._count = itertools.count(1)
        self._armed = False
        self._codes: dict[Any, bool] = {}
        self._files = {
            module.__file__
            for name, module in sys.modules.items()
            if any(name == traced or name.startswith(f"{traced}.") for traced in TRACED)
        }
        self._lock = threading.Lock()
        self.prints: list[Any] = []
        """When nothing is fatal: what the disk looked like at each step."""

    def install(self) -> None:
        """Trace this thread and those that start from now on."""
        threading.settrace(self._call)
        sys.settrace(self._call)

    def arm(self) -> None:
        """Count from here."""
        self._shm = os.open(self._state_dir / "blockstore.db-shm", os.O_RDONLY) if self._is_survey else -1
        self._armed = True

    def disarm(self) -> None:
        """Stop counting."""
        self._armed = False

    @property
    def _is_survey(self) -> bool:
        return self._fatal is None

    def _call(self, frame: FrameType, _event: str, _arg: Any) -> Any:
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = code.co_filename in self._files
        if not self._codes[code]:
            return None
        self._step(frame)
        return self._line

    def _line(self, frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "line":
            self._step(frame)
        return self._line

    def _step(self, frame: FrameType) -> None:
        if not self._armed:
            return
        if self._is_survey:
            with self._lock:
                self.prints.append((self._print(), frame.f_code.co_filename.endswith("process.py")))
        elif next(self._count) == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _print(self) -> Any:
        """Return what tells one state of the disk from another: SQLite's commit counter, names, sizes, inodes."""
        files = [
            (where, name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
            for where, dirs, names in os.walk(self._state_dir)
            for name in (*dirs, *names)
            if not name.startswith(("blockstore.db", "log", "answered"))
            for found in [Path(where, name).stat()]
        ]
        return hash((os.pread(self._shm, 48, 0), *sorted(files)))


# --- what children do --------------------------------------------------------------------------------------

# What is the same in every child is done once, before the forks: routes, and the look through installed packages.
_app = create_app(None)  # type: ignore[arg-type]
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # type: ignore[assignment]
for _backend in ("directory", "lvm"):
    loader.plugin(_backend, "")
loading.entry_points = importlib.metadata.entry_points
loading.load_filters(blockstore.service.words(SchedulerConfig.filters))
loading.load_weighers(blockstore.service.words(SchedulerConfig.weighers), SchedulerConfig().multiplier)
gc.freeze()


def _service(state_dir: Path) -> Service:
    """Return a service on this state directory; the routes, which know nothing of it, are made before the fork."""

    def app(core: Any) -> Any:
        _app.extensions[CORE] = core
        return _app

    blockstore.service.create_app = app  # type: ignore[assignment]
    return Service(_config(state_dir))


def _config(state_dir: Path) -> Config:
    service = ServiceConfig(drain_timeout_s=1)
    if CONFIG:
        config = load(Path(CONFIG))
        return dataclasses.replace(config, service=dataclasses.replace(service, state_dir=state_dir), quota=UNLIMITED)
    backends = (
        backend_section("first", "directory", {"max_over_subscription_ratio": "1000"}),
        backend_section("spare", "directory", {"max_over_subscription_ratio": "900"}),
    )
    return make_config(state_dir, backends=backends, service=service)


def prepare(state_dir: str, name: str) -> None:
    """Make what every scenario starts from; for one that is killed at its start, file its orders too and die."""
    world = _prepared(Path(state_dir))
    if SCENARIOS[name].at_start:
        world.service.db.cast = lambda _order: None
        answer = SCENARIOS[name].act(world)
        assert answer.status == 202, answer.body
        os.kill(os.getpid(), signal.SIGKILL)
    world.service.stop()


def _prepared(state_dir: Path) -> World:
    service = _service(state_dir)
    service.start()
    world, api = World(service, {}), Client(service)
    world.ids["P"] = api.volume()["id"]
    world.write("P", "plain")
    world.ids["V"] = api.volume()["id"]
    world.ids["Q"], world.ids["R"] = api.volume()["id"], api.volume()["id"]
    world.write("Q", "disk")
    world.write("R", "kept")
    for name in ("Q", "R"):
        made = api("POST", "/attachments", {"attachment": {"volume_uuid": world.ids[name]}})
        world.ids[f"{name}-use"] = made.json["attachment"]["id"]
    use = f"/attachments/{world.ids['Q-use']}"
    assert api("PUT", use, {"attachment": {"connector": CONNECTOR}}).status == 200
    assert api("POST", f"{use}/action", {"os-complete": {}}).status == 204
    assert world.action("Q", "os-initialize_connection", {"connector": CONNECTOR}).status == 200
    for text, shot in (("old", "S1"), ("mid", "S2")):
        world.write("V", text)
        world.ids[shot] = api.snapshot(world.ids["V"])["id"]
    world.write("V", "now")
    (state_dir / "ids").write_text(json.dumps(world.ids))
    (state_dir / "orders").write_text(str(_orders_in(state_dir)))
    check(service.db, service.backends, targets=service.exports.targets)
    return world


def _orders_in(state_dir: Path) -> int:
    with sqlite3.connect(state_dir / "blockstore.db") as db:
        return int(db.execute("SELECT count(*) FROM orders").fetchone()[0])


def victim(template: str, place: str, name: str, fatal: int | None) -> None:
    """Carry out a scenario and be killed at the fatal step; when that never comes, note what every step looked like."""
    state_dir, scenario = Path(place), SCENARIOS[name]
    wire = Tripwire(state_dir, fatal)
    wire.install()
    if CONFIG:
        sys.settrace(None)
        world = _prepared(state_dir)
        wire.install()
    else:
        copy_sparse(Path(template), state_dir)
        world = World(_service(state_dir), json.loads((state_dir / "ids").read_text()))
        if not scenario.at_start:
            world.service.start()
    if scenario.spoils:
        _pool(state_dir).rename(state_dir / "elsewhere")
    wire.arm()
    if scenario.at_start:
        world.service.start()
    else:
        answer = scenario.act(world)
        assert answer.status in (200, 202), answer.body
    os.close(os.open(state_dir / "answered", os.O_CREAT, 0o600))
    assert world.service.bus.wait_idle(60)
    wire.disarm()
    (state_dir / "prints").write_text(json.dumps(wire.prints))
    os._exit(0)


def recover(place: str, name: str, purge: bool) -> None:
    """Start again after a kill; whatever was accepted must be carried out, whatever was not must have left no trace."""
    state_dir, scenario = Path(place), SCENARIOS[name]
    if (state_dir / "elsewhere").exists():
        (state_dir / "elsewhere").rename(_pool(state_dir))
    accepted = _orders_in(state_dir) > int((state_dir / "orders").read_text())
    assert accepted or not (state_dir / "answered").exists(), "what was answered was forgotten"
    started = time.monotonic()
    service = _service(state_dir)
    service.start()
    assert service.bus.wait_idle(DRAIN_LIMIT_S if not CONFIG else 600), service.bus.running()
    (state_dir / "drained").write_text(f"{time.monotonic() - started}")
    check(service.db, service.backends, targets=service.exports.targets)
    world = World(service, json.loads((state_dir / "ids").read_text()))
    expected = {k: v for k, v in {**BASE, **(scenario.goal if accepted else {})}.items() if v is not None}
    assert world.state() == expected, (world.state(), expected)
    with service.db.read() as session:
        told = [message.user_message for message in session.scalars(select(Message))]
    assert bool(told) == (accepted and "nothing can take" in name), told
    if purge or CONFIG:
        _purge(service)
    service.stop()


def _purge(service: Service) -> None:
    """Delete everything: nothing that a kill left stands in the way, and nothing remains."""
    api = Client(service)
    for volume in api.get("/volumes")["volumes"]:
        reset = {"status": "available", "attach_status": "detached"}
        assert api("POST", f"/volumes/{volume['id']}/action", {"os-reset_status": reset}).status == 202
    api.wait_idle(600)
    for volume in api.get("/volumes")["volumes"]:
        assert api("DELETE", f"/volumes/{volume['id']}?cascade=true").status == 202
    api.wait_idle(600)
    check(service.db, service.backends, targets=service.exports.targets)
    for backend in service.backends.values():
        assert (dict(backend.list_volumes()), dict(backend.list_snapshots())) == ({}, {})


def _pool(state_dir: Path) -> Path:
    return state_dir / "first" / "volumes"


def serve(state_dir: str, config: str) -> int:
    """Be ``blockstore serve``, but for the imports, which are done."""
    sys.argv[0] = "blockstore"
    blockstore.cli.main(
        ["serve", "--listen", "127.0.0.1:0", "--state-dir", state_dir, "--config", config], standalone_mode=False
    )
    return 0


def serve_deadly(state_dir: str, config: str) -> int:
    """Be ``blockstore serve`` with a backend that kills the process whenever it makes a volume of 13 GiB."""
    real = DirectoryBackend.create_volume

    def create_volume(self: Any, name: str, size_gib: int) -> None:
        if size_gib == 13:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, name, size_gib)

    DirectoryBackend.create_volume = create_volume  # type: ignore[method-assign]
    return serve(state_dir, config)


def serve_slow(state_dir: str, config: str) -> int:
    """Be ``blockstore serve`` on a disk that takes five minutes to copy a volume."""

    def copy(_source: int, _target: int, progress: Callable[[int], None]) -> None:
        for step in range(1000):
            progress(step // 10)
            time.sleep(0.3)

    files._reflink = lambda _source, _target: False
    files._copy_sparse = copy
    return serve(state_dir, config)


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a directory, holes as holes."""
    shutil.copytree(source, target, copy_function=_copy_file)


def _copy_file(source: str, target: str) -> None:
    size = Path(source).stat().st_size
    with (
        Path(source).open("rb") as reader,
        Path(target).open("wb") as writer,
    ):
        os.fchmod(writer.fileno(), 0o600)
        os.ftruncate(writer.fileno(), size)
        for start, end in _data(reader.fileno(), size):
            os.pwrite(writer.fileno(), os.pread(reader.fileno(), end - start, start), start)


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end
