"""What the nursery's children do: prepare a pool, act until the n-th line kills them, recover and be judged.

A child is a whole service in a process of its own; it differs from ``blockstore serve`` in having no socket. The
trip-wire is the interpreter's own line trace, so that the code under test has no hook.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import shlex
import shutil
import signal
import socket
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from blockstore_plugins.directory import DirectoryBackend, files
from blockstore_plugins.local import LocalTarget
from blockstore_plugins.tgt.management import Tgtd
from sqlalchemy import select

import blockstore.app.service
import blockstore.cli
from blockstore import private_files
from blockstore.api import equipped, routed
from blockstore.app import wiring
from blockstore.app.service import Service
from blockstore.backends import loader
from blockstore.backends.contract import GIB
from blockstore.config import Config, SchedulerConfig, ServiceConfig, load
from blockstore.db.models import Attachment, Message, Snapshot, Volume
from blockstore.manager.context import name_of, snapshot_name, volume_name
from blockstore.scheduler import loading
from blockstore.targets import loader as target_loader
from blockstore.targets.contract import Export
from tests.conftest import UNLIMITED, Answer, Client, backend_section, make_config, target_section
from tests.crash.invariants import FOREIGN, check

DRAIN_LIMIT_S = 60.0
"""How soon a restarted service must have nothing open, on a machine that does much else."""

CONFIG = os.environ.get("KILL_CONFIG")
"""A configuration file whose backend is tried instead of the directory backend; its pool must be empty."""

PLACES = (0, GIB // 2, GIB - 4096)
TRACED = (
    "blockstore.api.http.body",
    "blockstore.api.http.call",
    "blockstore.api.http.pipeline",
    "blockstore.operations.bus",
    "blockstore.accounting.reservations",
    "blockstore.db.session",
    "blockstore.manager",
    "blockstore.operations.messages",
    "blockstore.accounting.quotas",
    "blockstore.operations.recovery",
    "blockstore.scheduler.placement",
    "blockstore.operations.runner",
    "blockstore.operations.journal",
    "blockstore.operations.transitions",
    "blockstore.backends.process",
    "blockstore.keys.keyring",
    "blockstore.targets",
    "blockstore_plugins",
)
"""Modules, with what is below them, whose lines count as steps."""


# --- scenarios ---------------------------------------------------------------------------------------------

State = dict[str, tuple[str, int, str | None] | None]
"""By name: status, size and bytes, of an attachment how it is exported; None for what is gone."""

BASE: State = {
    "V": ("available", 1, "now"),
    "S1": ("available", 1, "old"),
    "S2": ("available", 1, "mid"),
    "P": ("available", 1, "plain"),
    "Q": ("in-use", 1, "disk"),
    "R": ("reserved", 1, "kept"),
    "Q-use": ("attached", 0, "served"),
    "Q-old": ("attaching", 0, "served"),
    "R-use": ("reserved", 0, None),
}
HUGE = 10**7
CONNECTOR = {"host": socket.gethostname(), "ip": "127.0.0.1", "initiator": "iqn.1993-08.org.debian:01:killed"}
R_CONNECTED: State = {"R": ("attaching", 1, "kept"), "R-use": ("attaching", 0, "served")}
Q_DETACHED: State = {"Q": ("available", 1, "disk"), "Q-use": None, "Q-old": None}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """One request, and what is different when it has been carried out."""

    act: Callable[[World], Answer]
    goal: State
    before: Callable[[World], Answer] | None = None
    """What is asked, and carried out, before."""
    begin: State = dataclasses.field(default_factory=dict)
    """What is different then."""
    files_operation: bool = True
    """Else the request is carried out by the time it is answered."""
    at_start: bool = False
    """The request is there already, never handed to a component; what is killed is the start that resumes it."""
    spoils: bool = False
    """The first pool fails while the request is carried out."""
    moved: frozenset[str] = frozenset()
    """What is on another pool when it has been carried out."""
    given: frozenset[str] = frozenset()
    """What is another project's when it has been carried out."""
    lets_go: str = ""
    """What is on its pool still when its row is gone."""


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
    "retype": Scenario(lambda w: w.retype("V"), {"V": ("available", 1, "now")}),
    "retype that nothing can take": Scenario(lambda w: w.retype("V", volume_backend_name="none"), {}),
    "move": Scenario(lambda w: w.move("P"), {}, moved=frozenset({"P"})),
    "retype by moving": Scenario(
        lambda w: w.retype("P", volume_backend_name=w.elsewhere("P").partition("@")[2]), {}, moved=frozenset({"P"})
    ),
    "drain": Scenario(
        lambda w: w.drain("P"),
        {},
        before=lambda w: w.volume(size=1, source_volid=w.ids["P"]),
        begin={"N": ("available", 1, "plain")},
        moved=frozenset({"P", "N"}),
    ),
    "manage": Scenario(
        lambda w: w.manage(), {"new": ("available", 1, "theirs")}, before=lambda w: w.foreign("foreign", "theirs")
    ),
    "manage that nothing can take": Scenario(lambda w: w.manage(), {"new": ("error_managing", 0, None)}),
    "manage a snapshot": Scenario(
        lambda w: w.ask(
            "POST", "/manageable_snapshots", {"snapshot": {"volume_id": w.ids["V"], "ref": "foreign-shot.raw"}}
        ),
        {"new": ("available", 1, "now")},
        before=lambda w: w.foreign_snapshot("V", "foreign-shot"),
    ),
    "unmanage": Scenario(lambda w: w.action("P", "os-unmanage", {}), {"P": None}, files_operation=False, lets_go="P"),
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
    "reserve": Scenario(
        lambda w: w.attach("P"),
        {"P": ("reserved", 1, "plain"), "new": ("reserved", 0, None)},
        files_operation=False,
    ),
    "attach at once": Scenario(
        lambda w: w.attach("P", connector=CONNECTOR),
        {"P": ("attaching", 1, "plain"), "new": ("attaching", 0, "served")},
    ),
    "connect": Scenario(lambda w: w.connect(), R_CONNECTED),
    "connect by another target": Scenario(
        lambda w: w.connect(attach_local=True),
        {"R-use": ("attaching", 0, "served by local")},
        before=lambda w: w.connect(),
        begin=R_CONNECTED,
    ),
    "complete": Scenario(
        lambda w: w.ask("POST", f"/attachments/{w.ids['R-use']}/action", {"os-complete": {}}),
        {"R": ("in-use", 1, "kept"), "R-use": ("attached", 0, "served")},
        before=lambda w: w.connect(),
        begin=R_CONNECTED,
        files_operation=False,
    ),
    # With what os-initialize_connection left.
    "detach": Scenario(lambda w: w.ask("DELETE", f"/attachments/{w.ids['Q-use']}"), Q_DETACHED),
    "detach the older way": Scenario(lambda w: w.action("Q", "os-detach", {}), Q_DETACHED),
    "offer": Scenario(lambda w: w.offer("P"), {"P": ("awaiting-transfer", 1, "plain")}, files_operation=False),
    "accept": Scenario(
        lambda w: w.accept(),
        {"V": ("available", 1, "now")},
        before=lambda w: w.offer("V"),
        begin={"V": ("awaiting-transfer", 1, "now")},
        files_operation=False,
        given=frozenset({"V", "S1", "S2"}),
    ),
    # What its former owner has connected is gone before it can be offered.
    "accept what was connected": Scenario(
        lambda w: w.accept(),
        {"P": ("available", 1, "plain")},
        before=lambda w: w.connect_disconnect_offer(),
        begin={"P": ("awaiting-transfer", 1, "plain")},
        files_operation=False,
        given=frozenset({"P"}),
    ),
    "connect the older way": Scenario(
        lambda w: w.action("P", "os-initialize_connection", {"connector": CONNECTOR}),
        {"new": ("attaching", 0, "served")},
    ),
    "disconnect the older way": Scenario(
        lambda w: w.action("Q", "os-terminate_connection", {"connector": CONNECTOR}), {"Q-old": None}
    ),
    "reset to detached": Scenario(
        lambda w: w.action("Q", "os-reset_status", {"status": "available", "attach_status": "detached"}), Q_DETACHED
    ),
    "delete what is reserved": Scenario(lambda w: w.action("R", "os-force_delete", {}), {"R": None, "R-use": None}),
    "delete what is connected": Scenario(
        lambda w: w.action("R", "os-force_delete", {}),
        {"R": None, "R-use": None},
        before=lambda w: w.connect(),
        begin=R_CONNECTED,
    ),
    "extend what is attached": Scenario(
        lambda w: w.action("Q", "os-extend", {"new_size": 3}), {"Q": ("in-use", 3, "disk")}
    ),
    # What was exported is gone, as after a reboot, but for one export that has no attachment.
    "restore": Scenario(
        lambda w: w.connect_and_disconnect(),
        {**R_CONNECTED, "P": ("available", 1, "plain"), "P-use": None},
        before=lambda w: w.attach("P", connector=CONNECTOR),
        begin={"P": ("attaching", 1, "plain"), "P-use": ("attaching", 0, "served")},
        at_start=True,
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
    target: str = "local"
    """What the backends export by."""

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        return Client(self.service)(method, path, body)

    def volume(self, **fields: Any) -> Answer:
        return self.ask("POST", "/volumes", {"volume": fields})

    def action(self, name: str, action: str, arguments: Any) -> Answer:
        return self.ask("POST", f"/volumes/{self.ids[name]}/action", {action: arguments})

    def retype(self, name: str, **specs: str) -> Answer:
        kind = self.ask("POST", "/types", {"volume_type": {"name": "another", "extra_specs": specs}})
        return self.action(
            name, "os-retype", {"new_type": kind.json["volume_type"]["id"], "migration_policy": "on-demand"}
        )

    def elsewhere(self, name: str) -> str:
        """Return the backend that a volume is not on."""
        with self.service.db.read() as session:
            host = session.get_one(Volume, self.ids[name]).host
        return next(pool.partition("#")[0] for pool in sorted(self.service.backends) if pool != host)

    def move(self, name: str) -> Answer:
        return self.action(name, "os-migrate_volume", {"host": self.elsewhere(name)})

    def offer(self, name: str) -> Answer:
        """Offer a volume to whoever has the key, which ``accept`` finds."""
        answer = self.ask("POST", "/volume-transfers", {"transfer": {"volume_id": self.ids[name]}})
        if answer.status == 202:
            self.ids |= {"offer": answer.json["transfer"]["id"], "key": answer.json["transfer"]["auth_key"]}
        return answer

    def connect_disconnect_offer(self) -> Answer:
        """Offer a volume as soon as what was connected is not any more; not before."""
        for action in ("os-initialize_connection", "os-terminate_connection"):
            assert self.action("P", action, {"connector": CONNECTOR}).status in (200, 202)
            if action == "os-initialize_connection":
                assert self.offer("P").status == 400
        return self.offer("P")

    def accept(self) -> Answer:
        """Take what was offered into another project."""
        taker = Client(self.service).as_("taker")
        return taker("POST", f"/volume-transfers/{self.ids['offer']}/accept", {"accept": {"auth_key": self.ids["key"]}})

    def given(self) -> frozenset[str]:
        """Return what is another project's."""
        rows = {name: self.row(name) for name in self.ids}
        return frozenset(name for name, row in rows.items() if row is not None and row.project_id == "taker")

    def drain(self, name: str) -> Answer:
        """Move away whatever is on the backend of a volume."""
        return self.ask("POST", "/os-services/drain", {"drain": {"host": self.row(name).host.partition("#")[0]}})

    def moved(self) -> frozenset[str]:
        """Return what has come from another pool."""
        rows = {name: self.row(name) for name in self.ids}
        return frozenset(
            name for name, row in rows.items() if isinstance(row, Volume) and row.migration_status == "success"
        )

    def take_away(self, name: str) -> None:
        """Remove from its pool a volume that was let go, and whose bytes are there."""
        stem = f"volume-{self.ids[name]}"
        (pool,) = (pool for pool, backend in self.service.backends.items() if stem in dict(backend.list_volumes()))
        assert self._text(Volume(id=self.ids[name], host=pool)) == BASE[name][2]
        self.service.backends[pool].delete_volume(stem)

    def foreign(self, name: str, text: str) -> Answer:
        """Make a volume on the first pool behind the service's back."""
        backend = self.service.backends[min(self.service.backends)]
        backend.create_volume(name, 1)
        with backend.open_volume(name, "r+b") as file:
            for place in PLACES:
                file.seek(place)
                file.write(text.encode().ljust(4096, b"\0"))
        return self.ask("GET", f"/manageable_volumes?host={self._first()}")

    def foreign_snapshot(self, volume: str, name: str) -> Answer:
        """Make a snapshot behind the service's back."""
        row = self.row(volume)
        self.service.backends[row.host].create_snapshot(volume_name(row), name)
        return self.ask("GET", f"/manageable_snapshots?host={row.host.partition('#')[0]}")

    def manage(self) -> Answer:
        return self.ask("POST", "/manageable_volumes", {"volume": {"host": self._first(), "ref": "foreign.raw"}})

    def _first(self) -> str:
        return min(self.service.backends).partition("#")[0]

    def attach(self, name: str, **fields: Any) -> Answer:
        return self.ask("POST", "/attachments", {"attachment": {"volume_uuid": self.ids[name], **fields}})

    def connect(self, **also: Any) -> Answer:
        body = {"attachment": {"connector": {**CONNECTOR, **also}}}
        return self.ask("PUT", f"/attachments/{self.ids['R-use']}", body)

    def several(self) -> Answer:
        """Ask for three things on three resources."""
        answers = [SCENARIOS[name].act(self) for name in ("create from a snapshot", "extend", "revert")]
        return next((answer for answer in answers if answer.status != 202), answers[0])

    def connect_and_disconnect(self) -> Answer:
        """Ask for a connection, and for the end of another."""
        answer = self.connect()
        assert answer.status == 503, answer.body  # nothing carries it out
        return self.ask("DELETE", f"/attachments/{self.ids['P-use']}")

    def write(self, name: str, text: str) -> None:
        """Write a word at the beginning, in the middle and at the end of the first GiB."""
        row = self.row(name)
        with self.service.backends[row.host].open_volume(volume_name(row), "r+b") as file:
            for place in PLACES:
                file.seek(place)
                file.write(text.encode().ljust(4096, b"\0"))

    def row(self, name: str) -> Any:
        """Return the row of what was prepared, or of the one thing that is ``new``."""
        with self.service.db.read() as session:
            rows = [row for model in (Volume, Snapshot, Attachment) for row in session.scalars(select(model))]
        known = set(self.ids.values())
        found = [row for row in rows if (row.id not in known if name == "new" else row.id == self.ids[name])]
        assert len(found) <= 1, found
        return found[0] if found else None

    def learn(self, name: str) -> None:
        """Give what is new a name."""
        self.ids[name] = self.row("new").id

    def state(self) -> State:
        """Return what there is, in rows and on the backend."""
        found: State = {}
        for name in (*self.ids, "new"):
            row = self.row(name)
            if isinstance(row, Attachment):
                found[name] = (row.status, 0, self._served(row))
            elif row is not None:
                found[name] = (row.status, row.size if isinstance(row, Volume) else row.volume_size, self._text(row))
        return found

    def _served(self, attachment: Attachment) -> str | None:
        """Say by what an attachment is exported, and that it is its own volume which is reached as it was told."""
        if attachment.connection is None:
            return None
        with self.service.db.read() as session:
            volume = session.get_one(Volume, attachment.volume_id)
        backend, data = self.service.backends[str(volume.host)], attachment.connection["data"]
        if attachment.target is None:  # the initiator reaches the storage itself
            direct = backend.direct(volume_name(volume))
            assert direct is not None
            assert data == {**direct.data, "access_mode": "rw"}
            return "served"
        located = backend.locate(volume_name(volume))
        assert located is not None
        target = self.service.exports.targets[attachment.target]
        if attachment.target == "nbd":
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(data["socket"])
        elif attachment.target == "tgt":
            # type: ignore[attr-defined]
            (shown,) = (one for one in Tgtd.find(target.options.control_socket).targets() if attachment.id in one.name)
            assert (shown.name, shown.path) == (data["target_iqn"], str(located.path)), (shown, data)
            assert shown.admitted == {CONNECTOR["initiator"]}, shown
        else:
            assert data["device_path"] == str(located.path), (data, located)
        return "served" if attachment.target == self.target else f"served by {attachment.target}"

    def _text(self, row: Any) -> str | None:
        if row.host is None:
            return None
        backend = self.service.backends[row.host]
        opened = (
            backend.open_volume(volume_name(row), "rb")
            if isinstance(row, Volume)
            else backend.open_snapshot(name_of(self.service.db, row.volume_id), snapshot_name(row.id))
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

OUTSIDE = ("backends/process.py", "tgt/management.py")
"""Files whose lines change what the disk does not show."""


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
        """Trace the threads that start from now on."""
        threading.settrace(self._call)

    def arm(self) -> None:
        """Trace this thread, too, which costs a start dear, and count from here."""
        self._shm = os.open(self._state_dir / "blockstore.db-shm", os.O_RDONLY) if self._is_survey else -1
        self._armed = True
        sys.settrace(self._call)

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
                self.prints.append((self._print(), frame.f_code.co_filename.endswith(OUTSIDE)))
        elif next(self._count) == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def _print(self) -> Any:
        """Return what tells one state of the disk from another: SQLite's commit counter, names, sizes, inodes."""
        files = [
            (where, name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_mode)
            for where, dirs, names in os.walk(self._state_dir)
            for name in (*dirs, *names)
            if not name.startswith(("blockstore.db", "log", "answered"))
            for found in _stat(Path(where, name))
        ]
        return hash((os.pread(self._shm, 48, 0), *sorted(files)))


def _stat(path: Path) -> Iterator[os.stat_result]:
    try:
        yield path.lstat()
    except FileNotFoundError:  # a server that was started has renamed its file just now
        return


# --- what children do --------------------------------------------------------------------------------------

# What is the same in every child is done once, before the forks: routes, and the look through installed packages.
_app = routed()
for _backend in ("directory", "lvm"):
    loader.plugin(_backend, "")
for _target in ("local", "tgt", "nbd"):
    target_loader.plugin(_target, "")
loading.load_filters(wiring.words(SchedulerConfig.filters))
loading.load_weighers(wiring.words(SchedulerConfig.weighers), SchedulerConfig().multiplier)
gc.freeze()


def _service(state_dir: Path, target: str) -> Service:
    """Return a service on this state directory; the routes, which know nothing of it, are made before the fork."""

    def app(core: Any, _login: Any) -> Any:
        return equipped(_app, core, None)

    blockstore.app.service.create_app = app  # type: ignore[assignment]
    return Service(_config(state_dir, target))


def _config(state_dir: Path, target: str) -> Config:
    """Return the configuration; ``target`` is a name, with options if it has any: ``tgt portals=...``."""
    service = ServiceConfig(drain_timeout_s=1, auth="none")
    if CONFIG:
        config = load(Path(CONFIG))
        return dataclasses.replace(config, service=dataclasses.replace(service, state_dir=state_dir), quota=UNLIMITED)
    backends = (
        backend_section("first", "directory", {"max_over_subscription_ratio": "1000", "target": _kind(target)}),
        backend_section("spare", "directory", {"max_over_subscription_ratio": "900", "target": _kind(target)}),
    )
    options = dict(word.split("=", 1) for word in shlex.split(target)[1:])
    return make_config(
        state_dir, backends=backends, service=service, targets=(target_section(_kind(target), **options),)
    )


def _kind(target: str) -> str:
    return target.partition(" ")[0]


def _world(state_dir: Path, target: str) -> World:
    return World(_service(state_dir, target), json.loads((state_dir / "ids").read_text()), _kind(target))


def prepare(state_dir: str, name: str, target: str) -> None:
    """Make what a scenario starts from; for one that is killed at its start, file its operations too and die."""
    world = _prepared(Path(state_dir), SCENARIOS[name], target)
    if SCENARIOS[name].at_start:
        world.service.bus.drain(0)  # operations are left to the next start, and nobody waits for them
        answer = SCENARIOS[name].act(world)
        assert answer.status in (202, 503), answer.body
        os.kill(os.getpid(), signal.SIGKILL)
    world.service.stop()


def _prepared(state_dir: Path, scenario: Scenario, target: str) -> World:
    if CONFIG:  # storage that outlives the state directory: else it would be another installation's
        private_files.prepare_state_dir(state_dir)
        private_files.write(state_dir / "attachments.key", b"5e" * 32 + b"\n")
    service = _service(state_dir, target)
    service.start()
    world, api = World(service, {}, _kind(target)), Client(service)
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
    world.learn("Q-old")
    for text, shot in (("old", "S1"), ("mid", "S2")):
        world.write("V", text)
        world.ids[shot] = api.snapshot(world.ids["V"])["id"]
    world.write("V", "now")
    if scenario.before:
        answer = scenario.before(world)
        assert answer.status in (200, 202), answer.body
        assert service.bus.wait_idle(60)
        for name in scenario.begin:
            if name not in world.ids:
                world.learn(name)
    assert world.state() == {**BASE, **scenario.begin}, world.state()
    (state_dir / "ids").write_text(json.dumps(world.ids))
    (state_dir / "operations").write_text(str(_operations_in(state_dir)))
    check(service.db, service.backends, targets=service.exports.targets)
    return world


def _operations_in(state_dir: Path) -> int:
    with sqlite3.connect(state_dir / "blockstore.db") as db:
        return int(db.execute("SELECT count(*) FROM operations").fetchone()[0])


def victim(template: str, place: str, name: str, target: str, fatal: int | None) -> None:
    """Carry out a scenario and be killed at the fatal step; when that never comes, note what every step looked like."""
    state_dir, scenario = Path(place), SCENARIOS[name]
    wire = Tripwire(state_dir, fatal)
    wire.install()
    if CONFIG:
        world = _prepared(state_dir, scenario, target)
    else:
        copy_sparse(Path(template), state_dir)
        world = _world(state_dir, target)
        if name == "restore":
            _reboot(world)
        if not scenario.at_start:
            world.service.start()
    if scenario.spoils:
        _pool(state_dir).rename(state_dir / "elsewhere")
    wire.arm()
    if scenario.at_start:
        world.service.start()
    else:
        answer = scenario.act(world)
        assert answer.status in (200, 202, 204), answer.body
    os.close(os.open(state_dir / "answered", os.O_CREAT, 0o600))
    assert world.service.bus.wait_idle(60)
    wire.disarm()
    (state_dir / "prints").write_text(json.dumps(wire.prints))
    os._exit(0)


def _reboot(world: World) -> None:
    """Take every export away, and make one that has no attachment."""
    for target in world.service.exports.targets.values():
        for export_id in target.list_exports():
            target.withdraw(export_id)
        if isinstance(target, LocalTarget):
            assert not any(target.state_dir.iterdir())
    volume = world.row("P")
    located = world.service.backends[volume.host].locate(volume_name(volume))
    assert located is not None
    world.service.exports.targets[world.target].export(
        Export(
            id=str(uuid.uuid4()),
            volume=volume_name(volume),
            path=located.path,
            connector=CONNECTOR,
            secret="nobodyknowsthis1",
        )
    )


def recover(place: str, name: str, target: str, purge: bool) -> None:
    """Start again after a kill; whatever was accepted must be carried out, whatever was not must have left no trace."""
    state_dir, scenario = Path(place), SCENARIOS[name]
    if (state_dir / "elsewhere").exists():
        (state_dir / "elsewhere").rename(_pool(state_dir))
    filed = _operations_in(state_dir) > int((state_dir / "operations").read_text())
    started = time.monotonic()
    world = _world(state_dir, target)
    service = world.service
    service.start()
    assert service.bus.wait_idle(DRAIN_LIMIT_S if not CONFIG else 600), service.bus.running()
    (state_dir / "drained").write_text(f"{time.monotonic() - started}")
    if scenario.lets_go and world.row(scenario.lets_go) is None:
        world.take_away(scenario.lets_go)
    check(service.db, service.backends, targets=service.exports.targets)
    state, begin = world.state(), {**BASE, **scenario.begin}
    goal = {name: what for name, what in {**begin, **scenario.goal}.items() if what is not None}
    accepted = filed if scenario.files_operation else state == goal
    assert accepted or not (state_dir / "answered").exists(), ("what was answered was forgotten", state)
    expected = goal if accepted else begin
    assert state == expected, (state, expected)
    assert world.moved() == (scenario.moved if accepted else frozenset())
    assert world.given() == (scenario.given if accepted else frozenset())
    with service.db.read() as session:
        told = [message.user_message for message in session.scalars(select(Message))]
    assert bool(told) == (accepted and "nothing can take" in name), told
    if purge or CONFIG:
        _purge(service)
    service.stop()


def _purge(service: Service) -> None:
    """Delete everything: nothing that a kill left stands in the way, and nothing remains."""
    api = Client(service)
    for backend in service.backends.values():  # what others made, and a killed request has not taken over
        for name, origin in dict(backend.list_snapshots()).items():
            if name.startswith(FOREIGN):
                backend.delete_snapshot(origin, name)
        for name in list(backend.list_volumes()):
            if name.startswith(FOREIGN):
                backend.delete_volume(name)
    for volume in api.get("/volumes?all_tenants=1")["volumes"]:
        reset = {"status": "available", "attach_status": "detached"}
        assert api("POST", f"/volumes/{volume['id']}/action", {"os-reset_status": reset}).status == 202
    api.wait_idle(600)
    for volume in api.get("/volumes?all_tenants=1")["volumes"]:
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
            while not Path(state_dir, "may-die").exists():
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, name, size_gib)

    DirectoryBackend.create_volume = create_volume  # type: ignore[method-assign]
    return serve(state_dir, config)


def serve_slow(state_dir: str, config: str) -> int:
    """Be ``blockstore serve`` on a disk that takes five minutes to copy a volume."""

    def copy(_source: int, _target: int, progress: Callable[[int], None], _prove_space: Any) -> None:
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
