"""A backend with a target, its exports, and what one case does with them."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest import SkipTest

from blockstore.backends.contract import GIB, Backend
from blockstore.conformance.initiators import ConnectionInfo, Initiator, InitiatorRefused
from blockstore.conformance.sandbox import (
    BLOCK,
    ZEROS,
    Sandbox,
    attempt,
    eventually,
    expect,
    pattern,
    places,
    read_at,
    refuses,
    shown,
    write_at,
)
from blockstore.errors import BackendError
from blockstore.targets.contract import Connection, Export, Target

PATIENCE_S = 10.0
"""Time within which the target must show a session, or a fault."""
LATE_S = 6.0
"""Time for which an initiator tries to use its old session; a disconnected one would try for ever."""

MARK = 0xEE
"""The byte in the data that no old session may ever read."""
READ_MARK = f"read -P {MARK} 0 {BLOCK}"
"""A qemu-io command that succeeds only if it reads the mark."""
SCRATCH = 8 * BLOCK
"""The offset at which an old session tries to write."""


@dataclass(frozen=True)
class ExportedVolume:
    """An export, and the connection that its initiator was given."""

    export: Export
    connection: Connection

    @property
    def id(self) -> str:
        """Return the export's id."""
        return self.export.id

    @property
    def connection_info(self) -> ConnectionInfo:
        """Return all that the initiator knows of the export."""
        return ConnectionInfo.of(self.connection, self.export.secret)


class Pair(NamedTuple):
    """A configured backend, and a configured target with an owner and state directory of its own."""

    backend: Backend
    target: Target
    damages: Mapping[str, Callable[[ExportedVolume], object]] = {}
    """Ways in which an administrator's tool, or a fault, breaks one export of this target; set only by tests."""


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
        request = Export(
            id=self._ids[-1],
            volume=volume,
            path=located.path,
            format=located.format,
            layers=located.layers,
            connector=connector,
            secret=secret,
        )
        return replace(request, **fields)

    def makes(self, export: Export) -> ExportedVolume:
        """Make an export."""
        return ExportedVolume(export, self.target.export(export))

    def exported(self, volume: str, host: Initiator | None = None, **fields: Any) -> ExportedVolume:
        """Export a volume to an initiator."""
        return self.makes(self.asks(volume, host, **fields))

    def lists_exports(self, *exported: ExportedVolume) -> None:
        """Fail unless exactly these exports were added since the case began."""
        present, wanted = self.target.list_exports() - self._exports_before, {one.id for one in exported}
        expect(present == wanted, f"list_exports must add exactly {sorted(wanted)}, but adds {sorted(present)}.")

    def refuses_export(self, error: type[BackendError], export: Export, *exported: ExportedVolume) -> None:
        """Fail unless the target refuses to export, without a trace and without telling the secret."""
        keeps_secret(refuses(error, self.target.export, export), export.secret)
        self.lists_exports(*exported)

    def again(self) -> Target:
        """Return a new instance of the target, as a restarted service makes it."""
        return type(self.target)(self.target.name, self.target.options, self.target.state_dir, self.target.owner)

    def stranger(self) -> Target:
        """Return an instance of the target that belongs to another installation."""
        directory, owner = self._directory / "stranger", f"x{secrets.token_hex(4)}"
        return type(self.target)(self.target.name, self.target.options, directory, owner)

    def broken(self, exported: ExportedVolume, target: Target | None = None) -> bool:
        """Return True if a health check notices that an export does not work: it is not listed, or has a fault."""
        instance = target or self.target
        fault = instance.faults().get(exported.id)
        expect(fault is None or fault.strip(), "A fault must say in words what is wrong.")
        return fault is not None or exported.id not in instance.list_exports()

    def soon(self, true: Callable[[], bool], sentence: str) -> None:
        """Fail unless ``true`` soon becomes true."""
        eventually(true, sentence, PATIENCE_S)

    def serves(self, *exported: ExportedVolume) -> None:
        """Fail unless these exports are listed, and have no fault."""
        faults, listed = self.target.faults(), self.target.list_exports()
        for one in exported:
            expect(one.id in listed and one.id not in faults, f"A whole export has a fault: {faults.get(one.id)}.")

    # bytes

    def reads(self, exported: ExportedVolume, tag: str, size_gib: int = 1, *, host: Initiator | None = None) -> None:
        """Fail unless the initiator sees this size and tag, and zeros beside the tag."""
        size = (host or self.host).size(exported.connection_info)
        expect(size == size_gib * GIB, f"The initiator must see {size_gib * GIB} bytes, but sees {size}.")
        offsets = places(0, size)
        found = (host or self.host).read(exported.connection_info, *offsets, BLOCK, length=BLOCK)
        for offset, got in zip(offsets, found, strict=False):
            wanted = pattern(f"{tag} at {offset}") if tag else ZEROS
            expect(got == wanted, f"The initiator must read the bytes of {tag!r} at {offset}, but reads {shown(got)}.")
        expect(found[-1] == ZEROS, f"The initiator must read zeros at {BLOCK}, but reads {shown(found[-1])}.")

    def writes(self, exported: ExportedVolume, tag: str, size_gib: int = 1, *, host: Initiator | None = None) -> None:
        """Have the initiator fill its disk with a tag, as ``fill`` does through the backend."""
        offsets = places(0, size_gib * GIB)
        (host or self.host).write(
            exported.connection_info, {offset: pattern(f"{tag} at {offset}") for offset in offsets}
        )

    def keeps_out(self, connection_info: ConnectionInfo, who: str, *, host: Initiator | None = None) -> None:
        """Fail if an initiator that knows ``connection_info`` can read."""
        try:
            (host or self.host).read(connection_info, 0, length=BLOCK)
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

    def connected(self, exported: ExportedVolume, target: Target | None = None) -> None:
        """Fail unless the target soon reports a session of this export."""
        instance = target or self.target
        self.soon(lambda: bool(instance.sessions().get(exported.id)), "sessions() must tell who is connected.")

    def gone(self, exported: ExportedVolume) -> None:
        """Fail unless the target soon reports no session of this export."""
        self.soon(lambda: not self.target.sessions().get(exported.id), "sessions() must tell who has left.")

    def held_over(
        self, command: str, meanwhile: Callable[[ExportedVolume], object], *, marked: bool = False, write: bool = False
    ) -> tuple[bool, ExportedVolume]:
        """Hold a session of a new volume while ``meanwhile`` runs; return True if it can then still run ``command``."""
        volume = self.volume()
        if marked:
            self.marks(volume)
        exported = self.exported(volume)
        with self.host.session(exported.connection_info, write=write) as session:
            self.connected(exported)
            meanwhile(exported)
            try:
                session.last(command, timeout_s=LATE_S)
            except InitiatorRefused:
                return False, exported
            return True, exported

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


def keeps_secret(said: object, secret: str) -> None:
    """Fail if a text has the secret."""
    expect(secret not in f"{said} {said!r}", "A secret stands in what may be logged.")
