"""The conformance suite of targets: tests every promise of ``targets/contract.py`` on a backend with a target.

The cases run in two ways. With pytest: subclass ``TargetConformance`` and give it a ``pair`` fixture. On the command
line: ``blockstore backend check NAME`` calls ``run``. The helpers are in ``sandbox.py``, the initiators that use the
exports are in ``initiators.py``.
"""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest import SkipTest

from blockstore.backends.contract import GIB, Backend
from blockstore.conformance.initiators import Initiator, InitiatorRefused, Told
from blockstore.conformance.sandbox import (
    BLOCK,
    ZEROS,
    Result,
    Sandbox,
    attempt,
    cases_of,
    eventually,
    expect,
    named_after,
    pattern,
    places,
    read_at,
    refuses,
    run_cases,
    shown,
    write_at,
)
from blockstore.errors import BackendError, InUse, InvalidConnector, NotSupported, SessionAlive, VolumeMissing
from blockstore.targets.contract import Connection, Export, Target

PATIENCE_S = 10.0
"""Time within which the target must show a session."""
HOLDS_S: Sequence[float] = (4.0, 15.0, 60.0)
"""Times that an initiator waits before it uses its old session. The next one is tried if the machine is so slow that
the session was used before its export was withdrawn."""
LATE_S = 6.0
"""Time for which it then tries; a disconnected initiator would try for ever."""

MARK = 0xEE
"""The byte in the data that no old session may ever read."""
READ_MARK = f"read -P {MARK} 0 {BLOCK}"
"""A qemu-io command that succeeds only if it reads the mark."""
SCRATCH = 8 * BLOCK
"""The offset at which an old session tries to write."""

HOSTILE_VALUES = (
    "", "a\0b", "a\nb", "\n", "x" * 10_000, "../../etc/passwd", "a/b", "a b", "a,b", "a;b", "*", "ALL", "ünicode",
    7, True, None, ["x"], {"x": "y"},
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """An export, and the connection that its initiator was given."""

    export: Export
    connection: Connection

    @property
    def id(self) -> str:
        """Return the export's id."""
        return self.export.id

    @property
    def told(self) -> Told:
        """Return all that the initiator knows of the export."""
        return Told.of(self.connection, self.export.secret)


class Pair(NamedTuple):
    """A configured backend, and a configured target with an owner and state directory of its own."""

    backend: Backend
    target: Target
    damages: Mapping[str, Callable[[Made], object]] = {}
    """Ways in which an administrator's tool, or a fault, breaks one export of this target; set only by tests."""


# --- helpers of the cases ----------------------------------------------------------------------------------


class PairSandbox(Sandbox):
    """A sandbox with a target and two initiators. Its exit withdraws every export and checks for leftovers."""

    def __init__(self, pair: Pair):
        super().__init__(pair.backend)
        self.target = pair.target
        self.damages = pair.damages
        self._ids: list[str] = []
        self._exports_before = pair.target.list_exports()
        self._directory = Path(tempfile.mkdtemp(prefix="blockstore-check-"))
        self.host = Initiator(f"{self.prefix}a", self._directory)
        self.other_host = Initiator(f"{self.prefix}b", self._directory)

    @property
    def has_doors(self) -> bool:
        """Return True if the target can refuse an initiator; a path cannot."""
        return self.target.capabilities().protocol != "local"

    def needs_doors(self) -> None:
        """Skip the case if the target cannot refuse an initiator."""
        if not self.has_doors:
            raise SkipTest(f"{self.target.name} gives paths, and who has a path cannot be refused.")

    # exports

    def asks(self, volume: str, host: Initiator | None = None, **fields: Any) -> Export:
        """Return a request to export a volume to an initiator, and remember to withdraw it."""
        located = self.backend.locate(volume)
        if located is None:
            raise SkipTest(f"{self.backend.name} has no file or device that could be exported.")
        connector = (host or self.host).connector
        secret = secrets.token_hex(8)
        self._ids.append(str(uuid.uuid4()))
        made = Export(
            id=self._ids[-1],
            volume=volume,
            path=located.path,
            format=located.format,
            layers=located.layers,
            connector=connector,
            secret=secret,
        )
        return replace(made, **fields)

    def makes(self, export: Export) -> Made:
        """Make an export."""
        return Made(export, self.target.export(export))

    def exported(self, volume: str, host: Initiator | None = None, **fields: Any) -> Made:
        """Export a volume to an initiator."""
        return self.makes(self.asks(volume, host, **fields))

    def lists_exports(self, *made: Made) -> None:
        """Fail unless exactly these exports were added since the case began."""
        there, wanted = self.target.list_exports() - self._exports_before, {one.id for one in made}
        expect(there == wanted, f"list_exports must add exactly {sorted(wanted)}, but adds {sorted(there)}.")

    def refuses_export(self, error: type[BackendError], export: Export, *there: Made) -> None:
        """Fail unless the target refuses to export, without a trace and without telling the secret."""
        _keeps_secret(refuses(error, self.target.export, export), export.secret)
        self.lists_exports(*there)

    def again(self) -> Target:
        """Return a new instance of the target, as a restarted service makes it."""
        return type(self.target)(self.target.name, self.target.options, self.target.state_dir, self.target.owner)

    def stranger(self) -> Target:
        """Return an instance of the target that belongs to another installation."""
        directory, owner = self._directory / "stranger", f"x{secrets.token_hex(4)}"
        return type(self.target)(self.target.name, self.target.options, directory, owner)

    def broken(self, made: Made, target: Target | None = None) -> bool:
        """Return True if a health check notices that an export does not work: it is not listed, or has a fault."""
        asked = target or self.target
        fault = asked.faults().get(made.id)
        expect(fault is None or fault.strip(), "A fault must say in words what is wrong.")
        return fault is not None or made.id not in asked.list_exports()

    def serves(self, *made: Made) -> None:
        """Fail unless these exports are listed, and have no fault."""
        faults, there = self.target.faults(), self.target.list_exports()
        for one in made:
            expect(one.id in there and one.id not in faults, f"A whole export has a fault: {faults.get(one.id)}.")

    # bytes

    def reads(self, made: Made, tag: str, size_gib: int = 1, *, host: Initiator | None = None) -> None:
        """Fail unless the initiator sees this size and tag, and zeros beside the tag."""
        size = (host or self.host).size(made.told)
        expect(size == size_gib * GIB, f"The initiator must see {size_gib * GIB} bytes, but sees {size}.")
        offsets = places(0, size)
        found = (host or self.host).read(made.told, *offsets, BLOCK, length=BLOCK)
        for offset, got in zip(offsets, found, strict=False):
            wanted = pattern(f"{tag} at {offset}") if tag else ZEROS
            expect(got == wanted, f"The initiator must read the bytes of {tag!r} at {offset}, but reads {shown(got)}.")
        expect(found[-1] == ZEROS, f"The initiator must read zeros at {BLOCK}, but reads {shown(found[-1])}.")

    def writes(self, made: Made, tag: str, size_gib: int = 1, *, host: Initiator | None = None) -> None:
        """Have the initiator fill its disk with a tag, as ``fill`` does through the backend."""
        offsets = places(0, size_gib * GIB)
        (host or self.host).write(made.told, {offset: pattern(f"{tag} at {offset}") for offset in offsets})

    def keeps_out(self, told: Told, who: str, *, host: Initiator | None = None) -> None:
        """Fail if an initiator that knows ``told`` can read."""
        try:
            (host or self.host).read(told, 0, length=BLOCK)
        except InitiatorRefused:
            return
        raise AssertionError(f"{who} must be refused, but can read.")

    def marks(self, volume: str) -> None:
        """Fill the first block with the mark, through the backend."""
        with self.backend.open_volume(volume, "r+b") as file:
            write_at(file, 0, bytes([MARK]) * BLOCK)

    def scratch_is_clean(self, volume: str) -> bool:
        """Return True if the place where an old session tries to write is unwritten."""
        with self.backend.open_volume(volume, "rb") as file:
            return read_at(file, SCRATCH) == ZEROS

    # sessions

    def connected(self, made: Made, target: Target | None = None) -> None:
        """Fail unless the target soon reports a session of this export."""
        asked = target or self.target
        eventually(lambda: bool(asked.sessions().get(made.id)), "sessions() must tell who is connected.", PATIENCE_S)

    def gone(self, made: Made) -> None:
        """Fail unless the target soon reports no session of this export."""
        eventually(lambda: not self.target.sessions().get(made.id), "sessions() must tell who has left.", PATIENCE_S)

    def held_over(
        self, command: str, meanwhile: Callable[[Made], object], *, marked: bool = False, write: bool = False
    ) -> tuple[bool, Made]:
        """Hold a session of a new volume while ``meanwhile`` runs; return True if it can then still run ``command``."""
        for seconds in HOLDS_S:
            volume = self.volume()
            if marked:
                self.marks(volume)
            made = self.exported(volume)
            began = time.monotonic()
            do = partial(self.host.do, made.told, f"sleep {seconds * 1000:.0f}", command, write=write)
            with ThreadPoolExecutor(1) as threads:
                session = threads.submit(do, timeout_s=seconds + LATE_S)
                try:
                    self.connected(made)
                    meanwhile(made)
                except (AssertionError, BackendError):
                    if time.monotonic() < began + seconds:
                        raise  # else the session ended before: repeat with a longer one
                in_time = time.monotonic() < began + seconds
                refusal = session.exception()
            if refusal is not None and not isinstance(refusal, InitiatorRefused):
                raise refusal
            if in_time:
                return refusal is None, made
            for export_id in self._ids:  # repeat from the beginning
                self.target.withdraw(export_id)
        raise AssertionError(f"What happened while a session was held took longer than {HOLDS_S[-1]:g} s.")

    # cleaning up

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        try:
            super().__exit__(kind, exc, tb)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)

    def clean(self) -> list[str]:
        problems: list[str] = []
        for export_id in self._ids:
            attempt(problems, partial(self.target.withdraw, export_id))
        attempt(problems, self.lists_exports)
        return [*problems, *super().clean()]


def _keeps_secret(said: object, secret: str) -> None:
    expect(secret not in f"{said} {said!r}", "A secret stands in what may be logged.")


def case(
    *needs: str, lacks: str = ""
) -> Callable[[Callable[[Any, PairSandbox], None]], Callable[[TargetConformance, Pair], None]]:
    """Turn a method that takes a PairSandbox into one that takes a pair.

    Skip the case if the backend or the target lacks a capability of ``needs``, or the target has ``lacks``.
    """

    def wrap(body: Callable[[Any, PairSandbox], None]) -> Callable[[TargetConformance, Pair], None]:
        def test(self: TargetConformance, pair: Pair) -> None:
            pair.backend.check()
            pair.target.check()
            can = pair.target.capabilities()
            expect(
                pair.backend.file_format in can.formats,
                f"The volumes of {pair.backend.name} are {pair.backend.file_format}, which {pair.target.name} does not"
                " export; the configuration must not join them.",
            )
            for flag in needs:
                for one, has in ((pair.backend, pair.backend.capabilities()), (pair.target, can)):
                    if not getattr(has, flag):
                        raise SkipTest(f"{one.name} does not declare {flag}.")
            if lacks and getattr(can, lacks):
                raise SkipTest(f"{pair.target.name} declares {lacks}.")
            with PairSandbox(pair) as sandbox:
                body(self, sandbox)

        return named_after(body, test)

    return wrap


# --- the cases ---------------------------------------------------------------------------------------------


class TargetConformance:
    """Every promise of contract.py, as a case with its sentence."""

    # health, and answers

    @case()
    def test_check_twice(self, sandbox: PairSandbox) -> None:
        """check() succeeds, again and again, and exports nothing."""
        sandbox.target.check()
        sandbox.target.check()
        sandbox.lists_exports()

    @case()
    def test_capabilities_are_steady_and_whole(self, sandbox: PairSandbox) -> None:
        """Capabilities stay the same, and name a protocol."""
        has = sandbox.target.capabilities()
        expect(
            has == sandbox.target.capabilities() == sandbox.again().capabilities(), "capabilities() must not change."
        )
        expect(has.protocol, "capabilities() must name a protocol.")

    @case()
    def test_the_connection_can_be_stored(self, sandbox: PairSandbox) -> None:
        """A connection is JSON, and says where its secret belongs without having it."""
        made = sandbox.exported(sandbox.volume())
        data = dict(made.connection.data)
        expect(json.loads(json.dumps(data)) == data, f"A connection's data must be JSON: {data}")
        expect(made.connection.secret_as not in data, "A connection's data must not have the secret's key.")
        _keeps_secret(made.connection, made.export.secret)
        _keeps_secret(made.export, made.export.secret)

    @case()
    def test_secrets_stay_secret(self, sandbox: PairSandbox) -> None:
        """A secret is in no log, on no command line, and in no file that others may read."""
        with _logged() as lines:
            made = sandbox.exported(sandbox.volume())
            sandbox.makes(made.export)
            for line in _command_lines():
                expect(made.export.secret not in line, "The secret stands on a command line.")
            for path in sandbox.target.state_dir.rglob("*"):
                if path.is_file() and path.stat().st_mode & 0o077:
                    expect(made.export.secret.encode() not in path.read_bytes(), f"Others may read a secret: {path}")
            sandbox.target.withdraw(made.id)
        expect(not any(made.export.secret in line for line in lines), "The secret stands in the log.")

    # bytes

    @case()
    def test_what_the_initiator_writes_is_on_the_volume(self, sandbox: PairSandbox) -> None:
        """What was written through an export is read from the volume afterwards, which can be deleted then."""
        name = sandbox.volume()
        made = sandbox.exported(name)
        sandbox.writes(made, "outside")
        sandbox.reads(made, "outside")
        sandbox.target.withdraw(made.id)
        sandbox.volume_holds(name, "outside")
        sandbox.backend.delete_volume(name)

    @case()
    def test_what_is_on_the_volume_is_read_by_the_initiator(self, sandbox: PairSandbox) -> None:
        """An export has exactly the volume's size and bytes, and has them again for the next initiator."""
        name = sandbox.volume("inside", 2)
        for host in (sandbox.host, sandbox.other_host):
            made = sandbox.exported(name, host)
            sandbox.reads(made, "inside", 2, host=host)
            sandbox.target.withdraw(made.id)
        sandbox.fill(name, "changed")
        sandbox.reads(sandbox.exported(name), "changed", 2)

    @case()
    def test_read_only_is_read_only(self, sandbox: PairSandbox) -> None:
        """Nobody writes through a read-only export; the same volume can be exported for writing afterwards."""
        sandbox.needs_doors()
        name = sandbox.volume("kept")
        made = sandbox.exported(name, read_only=True)
        sandbox.reads(made, "kept")
        refuses(InitiatorRefused, sandbox.writes, made, "changed")
        sandbox.target.withdraw(made.id)
        sandbox.volume_holds(name, "kept")
        made = sandbox.exported(name)
        sandbox.writes(made, "changed")
        sandbox.reads(made, "changed")

    # idempotence

    @case()
    def test_export_twice_is_one_export(self, sandbox: PairSandbox) -> None:
        """Exporting again gives the same answer and makes nothing more, also by a restarted service."""
        made = sandbox.exported(sandbox.volume("kept"))
        for target in (sandbox.target, sandbox.again()):
            answer = target.export(made.export)
            expect(
                answer == made.connection, f"Exported again, it must answer {made.connection}, but answers {answer}."
            )
            sandbox.lists_exports(made)
        sandbox.reads(made, "kept")
        sandbox.target.withdraw(made.id)
        sandbox.lists_exports()

    @case()
    def test_exporting_again_keeps_sessions(self, sandbox: PairSandbox) -> None:
        """Exporting again leaves those who are connected alone."""
        kept, made = sandbox.held_over(READ_MARK, lambda made: sandbox.makes(made.export), marked=True)
        expect(kept, "A session must outlive that its export is asked for again.")
        sandbox.gone(made)

    @case()
    def test_withdraw_twice(self, sandbox: PairSandbox) -> None:
        """Withdrawing what is not there any more, and what never was, succeeds."""
        name = sandbox.volume()
        made, other = sandbox.exported(name), sandbox.exported(sandbox.volume("other"))
        sandbox.target.withdraw(made.id)
        sandbox.lists_exports(other)
        sandbox.target.withdraw(made.id)
        sandbox.target.withdraw(str(uuid.uuid4()))
        sandbox.lists_exports(other)
        sandbox.reads(other, "other")

    @case()
    def test_a_restarted_service_goes_on(self, sandbox: PairSandbox) -> None:
        """A new instance with the same owner and directory lists, and ends, what the former one exported."""
        made, other = sandbox.exported(sandbox.volume("kept")), sandbox.exported(sandbox.volume())
        again = sandbox.again()
        expect({made.id, other.id} <= again.list_exports(), "A restarted service must list its exports.")
        again.withdraw(other.id)
        sandbox.lists_exports(made)
        sandbox.reads(made, "kept")
        again.withdraw(made.id)
        sandbox.lists_exports()

    @case()
    def test_another_installation_is_left_alone(self, sandbox: PairSandbox) -> None:
        """An instance with another owner neither lists our exports nor ends them."""
        made, stranger = sandbox.exported(sandbox.volume("kept")), sandbox.stranger()
        expect(made.id not in stranger.list_exports(), "list_exports() must leave out what another owner exports.")
        expect(made.id not in stranger.sessions(), "sessions() must leave out what another owner exports.")
        stranger.withdraw(made.id)
        sandbox.lists_exports(made)
        sandbox.reads(made, "kept")

    @case()
    def test_many_at_once(self, sandbox: PairSandbox) -> None:
        """Different volumes are exported and withdrawn at the same time."""
        asked = [sandbox.asks(sandbox.volume()) for _ in range(6)]
        with ThreadPoolExecutor(len(asked)) as threads:
            made = list(threads.map(sandbox.makes, asked))
            sandbox.lists_exports(*made)
            expect(len({json.dumps(dict(one.connection.data)) for one in made}) == 6, "Each has its own connection.")
            list(threads.map(sandbox.target.withdraw, [one.id for one in made[1:]]))
        sandbox.lists_exports(made[0])
        sandbox.reads(made[0], "")

    # faults and repair

    @case()
    def test_what_was_exported_has_no_fault(self, sandbox: PairSandbox) -> None:
        """A look finds no fault with an export that is used or was withdrawn, and another owner sees none of it."""
        made, other = sandbox.exported(sandbox.volume("kept")), sandbox.exported(sandbox.volume(), sandbox.other_host)
        sandbox.reads(made, "kept")
        sandbox.serves(made, other)
        sandbox.target.withdraw(other.id)
        again = sandbox.again()
        again.export(made.export)
        for target in (sandbox.target, again):
            faults = target.faults()
            expect(not faults.keys() & {made.id, other.id}, f"There is no fault, but faults() tells {faults}.")
        expect(not sandbox.stranger().faults(), "faults() must leave out what another owner exports.")

    @case()
    def test_a_broken_export_is_noticed_and_made_again(self, sandbox: PairSandbox) -> None:
        """What a tool breaks is noticed by the next look and made again, with the same secret; others serve on."""
        if not sandbox.damages:
            raise SkipTest(f"{sandbox.target.name} is broken only by tests, which know how.")
        name = sandbox.volume("kept")
        other = sandbox.exported(sandbox.volume("other"))
        for what, damage in sandbox.damages.items():
            made = sandbox.exported(name)
            sandbox.serves(made, other)
            damage(made)
            eventually(partial(sandbox.broken, made), f"A look must notice: {what}.", PATIENCE_S)
            sandbox.backend.locate(name)  # this makes a device appear again
            answer = sandbox.target.export(made.export)
            expect(answer == made.connection, f"Made again, it must answer {made.connection}, but answers {answer}.")
            sandbox.serves(made, other)
            sandbox.reads(made, "kept")
            if made.connection.secret_as:
                sandbox.keeps_out(Told.of(made.connection, "w" * 16), f"A wrong secret, after: {what},")
            sandbox.target.withdraw(made.id)
        sandbox.reads(other, "other")

    @case()
    def test_a_service_that_was_started_anew_notices(self, sandbox: PairSandbox) -> None:
        """What was broken while no service ran is noticed, and can be ended, by the next one."""
        if not sandbox.damages:
            raise SkipTest(f"{sandbox.target.name} is broken only by tests, which know how.")
        name = sandbox.volume()
        for what, damage in sandbox.damages.items():
            made, again = sandbox.exported(name), sandbox.again()
            damage(made)
            noticed = partial(sandbox.broken, made, again)
            eventually(noticed, f"A service that was started anew must notice: {what}.", PATIENCE_S)
            sandbox.backend.locate(name)
            again.withdraw(made.id)
            sandbox.lists_exports()

    # after withdraw

    @case()
    def test_after_withdraw_nobody_gets_in(self, sandbox: PairSandbox) -> None:
        """After withdraw the initiator is refused."""
        sandbox.needs_doors()
        made = sandbox.exported(sandbox.volume("kept"))
        sandbox.reads(made, "kept")
        sandbox.target.withdraw(made.id)
        sandbox.keeps_out(made.told, "Whose export was withdrawn")

    @case()
    def test_an_old_session_reads_nothing(self, sandbox: PairSandbox) -> None:
        """After withdraw a session that was there before reads nothing; or withdraw says who prevents it."""
        ended: list[bool] = []

        def withdrawn_and_written(made: Made) -> None:
            ended.append(_withdrawn(sandbox, made))
            sandbox.marks(made.export.volume)

        seen, made = sandbox.held_over(READ_MARK, withdrawn_and_written)
        expect(not (seen and ended[-1]), "A session read what was written after its export had been withdrawn.")
        sandbox.gone(made)
        sandbox.target.withdraw(made.id)
        sandbox.lists_exports()

    @case()
    def test_an_old_session_writes_nothing(self, sandbox: PairSandbox) -> None:
        """After withdraw a session that was there before writes nothing; or withdraw says who prevents it."""
        ended: list[bool] = []

        def withdrawn(made: Made) -> None:
            ended.append(_withdrawn(sandbox, made))

        _written, made = sandbox.held_over(f"write -P {MARK} {SCRATCH} {BLOCK}", withdrawn, write=True)
        clean = sandbox.scratch_is_clean(made.export.volume)
        expect(clean or not ended[-1], "A session wrote after its export had been withdrawn.")
        sandbox.target.withdraw(made.id)

    @case()
    def test_an_old_session_never_reads_another_volume(self, sandbox: PairSandbox) -> None:
        """Who kept a session of one volume reads nothing of the volume that is exported next."""
        next_one = sandbox.volume()
        sandbox.marks(next_one)

        def next_volume(made: Made) -> None:
            if _withdrawn(sandbox, made):
                sandbox.exported(next_one)

        seen, _made = sandbox.held_over(READ_MARK, next_volume)
        expect(not seen, "An old session read the bytes of another volume.")

    @case()
    def test_an_old_connection_never_leads_to_another_volume(self, sandbox: PairSandbox) -> None:
        """What was told of one export is of no use for the next, whoever uses it."""
        mine, next_one = sandbox.volume("mine"), sandbox.volume()
        sandbox.marks(next_one)
        old = sandbox.exported(mine)
        sandbox.target.withdraw(old.id)
        new = sandbox.exported(next_one)
        for told in (old.told, Told.of(old.connection, new.export.secret)):
            try:
                (got,) = sandbox.host.read(told, 0, length=BLOCK)
            except InitiatorRefused:
                continue
            expect(got == pattern("mine at 0"), "An old connection led to another volume.")
            expect(not sandbox.has_doors, "An old connection must lead nowhere.")

    # access control

    @case()
    def test_the_secret_is_needed(self, sandbox: PairSandbox) -> None:
        """Without the secret, with another export's, or with a wrong one, nobody gets in."""
        sandbox.needs_doors()
        one, two = sandbox.exported(sandbox.volume("one")), sandbox.exported(sandbox.volume("two"))
        if not one.connection.secret_as:
            raise SkipTest(f"{sandbox.target.name} has no secrets: who may open its socket gets in.")
        sandbox.reads(one, "one")
        sandbox.keeps_out(Told.of(one.connection, two.export.secret), "Another export's secret")
        sandbox.keeps_out(Told.of(one.connection, "w" * 16), "A wrong secret")
        sandbox.keeps_out(Told.of(one.connection, ""), "Who has no secret")
        keys = [key for key in two.told.data if key.startswith("auth_")]
        swapped = {**one.told.data, **{key: two.told.data[key] for key in keys}}
        sandbox.keeps_out(Told(one.told.type, swapped), "Another export's name and secret")
        sandbox.reads(one, "one")

    @case()
    def test_other_initiators_are_refused(self, sandbox: PairSandbox) -> None:
        """An initiator of another name is refused, though it knows the secret."""
        if "initiator" not in sandbox.target.capabilities().connector_needs:
            raise SkipTest(f"{sandbox.target.name} does not know initiators by their names.")
        made = sandbox.exported(sandbox.volume("kept"))
        sandbox.reads(made, "kept")
        sandbox.keeps_out(made.told, "An initiator of another name", host=sandbox.other_host)

    @case()
    def test_connector_needs_are_needed(self, sandbox: PairSandbox) -> None:
        """A connector without what is needed is refused, without a trace."""
        name = sandbox.volume("kept")
        for key in sandbox.target.capabilities().connector_needs:
            connector = {k: v for k, v in sandbox.host.connector.items() if k != key}
            for poor in (connector, {}):
                refuses(InvalidConnector, sandbox.target.check_connector, poor)
                sandbox.refuses_export(InvalidConnector, sandbox.asks(name, connector=poor))
        sandbox.target.check_connector(sandbox.host.connector)
        sandbox.volume_holds(name, "kept")

    @case()
    def test_hostile_connectors(self, sandbox: PairSandbox) -> None:
        """Values that are no names, or no texts, are refused or ignored, the same before and during the export."""
        name = sandbox.volume("kept")
        needs = sandbox.target.capabilities().connector_needs
        for key in dict.fromkeys((*needs, "initiator", "host", "ip", "multipath")):
            for value in HOSTILE_VALUES:
                self._hostile(
                    sandbox, sandbox.asks(name, connector={**sandbox.host.connector, key: value}), key in needs
                )
        sandbox.volume_holds(name, "kept")

    @staticmethod
    def _hostile(sandbox: PairSandbox, export: Export, needed: bool) -> None:
        shown_as = repr(dict(export.connector))[:300]
        try:
            sandbox.target.check_connector(export.connector)
        except InvalidConnector as exc:
            expect(len(str(exc)) < 1000, "An error must not repeat ten thousand letters.")
            sandbox.refuses_export(InvalidConnector, export)
            return
        expect(not needed, f"check_connector must refuse {shown_as}")
        sandbox.lists_exports(sandbox.makes(export))
        sandbox.target.withdraw(export.id)
        sandbox.lists_exports()

    # refusals

    @case()
    def test_a_missing_volume_is_refused(self, sandbox: PairSandbox) -> None:
        """A path that is gone raises VolumeMissing and leaves nothing."""
        name = sandbox.volume()
        export = sandbox.asks(name)
        sandbox.backend.delete_volume(name)
        sandbox.refuses_export(VolumeMissing, export)

    @case()
    def test_undeclared_formats_are_refused(self, sandbox: PairSandbox) -> None:
        """Formats that are not declared are refused, without a trace."""
        name = sandbox.volume("kept")
        for undeclared in sorted({"raw", "qcow2", "vmdk", "json:{}", ""} - sandbox.target.capabilities().formats):
            sandbox.refuses_export(BackendError, sandbox.asks(name, format=undeclared))
        sandbox.volume_holds(name, "kept")

    @case()
    def test_declared_formats_are_never_guessed(self, sandbox: PairSandbox) -> None:
        """A raw volume into which somebody wrote the header of a qcow2 file is still shown as its bytes."""
        if sandbox.backend.file_format != "raw":
            raise SkipTest(f"The volumes of {sandbox.backend.name} are not raw.")
        name = sandbox.volume()
        header = (b"QFI\xfb\0\0\0\2" + bytes(16) + b"\0\0\0\x10\0\0\0\0\0\0\0\0\0").ljust(BLOCK, b"\0")
        made = sandbox.exported(name)
        sandbox.host.write(made.told, {0: header})
        sandbox.target.withdraw(made.id)
        made = sandbox.exported(name)
        expect(sandbox.host.size(made.told) == GIB, "A raw volume was taken for another format.")
        expect(sandbox.host.read(made.told, 0, length=BLOCK) == [header], "A raw volume was not shown as its bytes.")

    # several exports of one volume

    @case("multiattach")
    def test_declared_multiattach_works(self, sandbox: PairSandbox) -> None:
        """Two exports of one volume show the same bytes, and neither's end disturbs the other."""
        name = sandbox.volume("first")
        one, two = sandbox.exported(name), sandbox.exported(name, sandbox.other_host)
        sandbox.lists_exports(one, two)
        sandbox.reads(one, "first")
        sandbox.reads(two, "first", host=sandbox.other_host)
        sandbox.writes(one, "second")
        sandbox.reads(two, "second", host=sandbox.other_host)
        sandbox.target.withdraw(one.id)
        sandbox.lists_exports(two)
        if sandbox.has_doors:
            sandbox.keeps_out(one.told, "Whose export was withdrawn")
        sandbox.reads(two, "second", host=sandbox.other_host)
        sandbox.writes(two, "third", host=sandbox.other_host)
        three = sandbox.exported(name)
        sandbox.target.withdraw(two.id)
        sandbox.reads(three, "third")

    @case("multiattach")
    def test_the_end_of_one_export_keeps_the_others_sessions(self, sandbox: PairSandbox) -> None:
        """Who is connected to a volume stays so when another export of it ends."""

        def another_comes_and_goes(made: Made) -> None:
            sandbox.target.withdraw(sandbox.exported(made.export.volume, sandbox.other_host).id)

        kept, _made = sandbox.held_over(READ_MARK, another_comes_and_goes, marked=True)
        expect(kept, "A session must outlive that another export of its volume comes and goes.")

    @case(lacks="multiattach")
    def test_undeclared_multiattach_refuses(self, sandbox: PairSandbox) -> None:
        """Without multiattach, a second export of one volume is refused and the first goes on."""
        name = sandbox.volume("kept")
        made = sandbox.exported(name)
        sandbox.refuses_export(BackendError, sandbox.asks(name, sandbox.other_host), made)
        sandbox.reads(made, "kept")

    # growth

    @case("online_extend")
    def test_declared_online_extend_works(self, sandbox: PairSandbox) -> None:
        """An export shows the new size after resize, also when that is asked twice, and the new part can be used."""
        name = sandbox.volume("kept")
        made = sandbox.exported(name)
        sandbox.backend.extend_volume(name, 2)
        sandbox.target.resize(made.id)
        sandbox.target.resize(made.id)
        size = sandbox.host.size(made.told)
        expect(size == 2 * GIB, f"After resize the initiator must see {2 * GIB} bytes, but sees {size}.")
        sandbox.host.write(made.told, {2 * GIB - BLOCK: pattern("new")})
        sandbox.target.withdraw(made.id)
        with sandbox.backend.open_volume(name, "rb") as file:
            expect(read_at(file, 0) == pattern("kept at 0"), "A volume's bytes changed when it grew.")
            expect(read_at(file, 2 * GIB - BLOCK) == pattern("new"), "The new part did not keep what was written.")

    @case(lacks="online_extend")
    def test_undeclared_online_extend_refuses(self, sandbox: PairSandbox) -> None:
        """Without online_extend, resize raises NotSupported and the export goes on."""
        made = sandbox.exported(sandbox.volume("kept"))
        refuses(NotSupported, sandbox.target.resize, made.id)
        sandbox.reads(made, "kept")

    # sessions

    @case()
    def test_sessions_tell_who_is_connected(self, sandbox: PairSandbox) -> None:
        """sessions() tells who is connected to which export, also to a restarted service, and when they have left."""

        def looked_at(made: Made) -> None:
            idle = sandbox.exported(sandbox.volume())
            sandbox.connected(made, sandbox.again())
            expect(not sandbox.target.sessions().get(idle.id), "Nobody is connected to the other export.")

        _done, made = sandbox.held_over(f"read 0 {BLOCK}", looked_at)
        sandbox.gone(made)
        sandbox.target.withdraw(made.id)
        expect(made.id not in sandbox.target.sessions(), "A withdrawn export has no sessions.")


def _withdrawn(sandbox: PairSandbox, made: Made) -> bool:
    """Withdraw an export in use; return True if it is gone. If not, check what the contract promises for that case."""
    try:
        sandbox.target.withdraw(made.id)
    except InUse as exc:
        expect(str(exc), "InUse must name who holds the volume.")
        sandbox.lists_exports(made)
        return False
    except SessionAlive:
        sandbox.lists_exports(made)
        if sandbox.has_doors:
            sandbox.keeps_out(made.told, "Whoever comes after a withdraw that could not be finished")
        return False
    sandbox.lists_exports()
    return True


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the log messages of blockstore and its plugins, from level DEBUG."""
    lines: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("blockstore", "blockstore_plugins")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _command_lines() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                yield (process / "cmdline").read_text(errors="replace")
            except OSError:
                continue


# --- the command line --------------------------------------------------------------------------------------


def cases(suite: TargetConformance | None = None) -> Sequence[tuple[str, Callable[[Pair], None]]]:
    """Return name and function of every case, in the order of this file."""
    return cases_of(suite or TargetConformance())


def run(pair: Pair, report: Callable[[str], None] = print, *, only: str = "") -> Sequence[Result]:
    """Run every case whose name contains ``only`` and report a line for each; failed cases are in the results."""
    return run_cases(TargetConformance(), pair, report, only)
