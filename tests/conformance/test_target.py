"""The suite of targets can fail: each way to break the contract is found by the case that is there for it."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.directory import DirectoryBackend, DirectoryOptions
from blockstore_plugins.local import LocalOptions, LocalTarget
from blockstore_plugins.nbd import NbdOptions, NbdTarget

from blockstore.backends.contract import GIB
from blockstore.backends.memory import MemoryBackend, MemoryOptions
from blockstore.conformance.sandbox import BLOCK, Result
from blockstore.conformance.target import Pair, cases, run
from blockstore.errors import BackendError, InUse
from blockstore.targets.contract import Connection, Export, Target, TargetCapabilities
from tests.conftest import need
from tests.targets import damages

pytestmark = pytest.mark.slow

log = logging.getLogger("blockstore_plugins.sabotaged")


# --- paths that are wrong ----------------------------------------------------------------------------------


class CheckExports(LocalTarget):
    def check(self) -> None:
        super().check()
        (volume := self.state_dir.parent / "volume").touch()
        super().export(Export(id=f"probe-{time.monotonic_ns()}", volume="v", path=volume))


class CapabilitiesChange(LocalTarget):
    multiattach = False

    def capabilities(self) -> TargetCapabilities:
        self.multiattach = not self.multiattach
        return replace(super().capabilities(), multiattach=self.multiattach)


class ConnectionHasTheSecret(LocalTarget):
    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        return replace(connection, data={**connection.data, "auth_password": export.secret})


class LogsTheSecret(LocalTarget):
    def export(self, export: Export) -> Connection:
        log.debug("exporting with %s", export.secret)
        return super().export(export)


class LeavesTheSecretOpen(LocalTarget):
    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        file = self.state_dir / ".secret"
        file.write_text(export.secret)
        file.chmod(0o644)
        return connection


class GivesAnotherFile(LocalTarget):
    """Of the volume's first size, and empty."""

    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        other = self.state_dir.parent / f"{export.volume}.other"
        if not other.exists():
            other.touch()
            os.truncate(other, GIB)
        return replace(connection, data={**connection.data, "device_path": str(other)})


class LooksIntoTheVolume(GivesAnotherFile):
    """Takes a raw volume with the magic of qcow2 for something else."""

    def export(self, export: Export) -> Connection:
        with export.path.open("rb") as file:
            is_taken = file.read(4) == b"QFI\xfb"
        return super().export(export) if is_taken else LocalTarget.export(self, export)


class EachAnswerIsAnother(LocalTarget):
    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        return replace(connection, data={**connection.data, "at": time.monotonic_ns()})


class EachCallIsAnotherExport(LocalTarget):
    def export(self, export: Export) -> Connection:
        if export.id in self.list_exports():
            super().export(replace(export, id=f"{export.id}-{time.monotonic_ns() % 10**6}"))
        return super().export(export)


class WithdrawsOnlyOnce(LocalTarget):
    def withdraw(self, export_id: str) -> None:
        if export_id not in self.list_exports():
            raise BackendError("There is no such export.")
        super().withdraw(export_id)


class Forgetful(LocalTarget):
    """Knows only what this instance exported."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: set[str] = set()

    def export(self, export: Export) -> Connection:
        self.known.add(export.id)
        return super().export(export)

    def list_exports(self) -> frozenset[str]:
        return super().list_exports() & self.known

    def withdraw(self, export_id: str) -> None:
        if export_id in self.known:
            super().withdraw(export_id)


class KnowsNoOwner(LocalTarget):
    def __init__(self, name: str, options: Any, state_dir: Path, owner: str):
        super().__init__(name, options, Path(tempfile.gettempdir()) / f"blockstore-test-{os.getpid()}", "everybody")


class NotForThreads(LocalTarget):
    busy = False

    def export(self, export: Export) -> Connection:
        if self.busy:
            raise BackendError("busy")
        self.busy = True
        time.sleep(0 if threading.current_thread() is threading.main_thread() else 0.5)
        try:
            return super().export(export)
        finally:
            self.busy = False


class CutsNobody(LocalTarget):
    def withdraw(self, export_id: str) -> None:
        if self._read(export_id):
            (self.state_dir / export_id).unlink()


class UsesOneSlot(CutsNobody):
    """Shows every volume at the same place."""

    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        slot = self.state_dir.parent / "slot"
        slot.touch()
        os.truncate(slot, GIB)
        with export.path.open("rb") as source, slot.open("r+b") as target:
            target.write(source.read(BLOCK))
        return replace(connection, data={**connection.data, "device_path": str(slot)})


class EndsSessions(LocalTarget):
    """Cuts off whoever uses the volume, whatever it is asked to do."""

    def export(self, export: Export) -> Connection:
        self._cut(export.id)
        return super().export(export)

    def withdraw(self, export_id: str) -> None:
        self._cut(export_id)
        super().withdraw(export_id)

    def _cut(self, export_id: str) -> None:
        for who in self.sessions().get(export_id, ()):
            if found := re.fullmatch(r"PID ([0-9]+) \(qemu-io\)", who):
                os.kill(int(found[1]), signal.SIGKILL)


class TakesNoSecondExport(LocalTarget):
    def export(self, export: Export) -> Connection:
        if any(record.path == str(export.path) for i, record in self._records().items() if i != export.id):
            raise InUse("It is exported already.")
        return super().export(export)


class LastExportWins(LocalTarget):
    def export(self, export: Export) -> Connection:
        for i, record in self._records().items():
            if record.path == str(export.path) and i != export.id:
                self.withdraw(i)
        return super().export(export)


class DeclaresNothing(LocalTarget):
    def capabilities(self) -> TargetCapabilities:
        return replace(super().capabilities(), multiattach=False, online_extend=False)


class LetsEverybodyIn(LocalTarget):
    def capabilities(self) -> TargetCapabilities:
        return replace(super().capabilities(), connector_needs=("initiator",))

    def check_connector(self, connector: Mapping[str, Any]) -> None:
        pass


class ChecksTooLate(LocalTarget):
    def check_connector(self, connector: Mapping[str, Any]) -> None:
        pass

    def export(self, export: Export) -> Connection:
        super().check_connector(export.connector)
        return super().export(export)


class RefusesTooLate(LocalTarget):
    """Writes the export down, and then looks."""

    def export(self, export: Export) -> Connection:
        try:
            return super().export(export)
        except BackendError:
            path = self.state_dir.parent / "volume"
            path.touch()
            super().export(replace(export, path=path, format="raw", connector={}))
            raise


class MakesWhatIsMissing(LocalTarget):
    def export(self, export: Export) -> Connection:
        export.path.touch(mode=0o600)
        return super().export(export)


class TakesAnyFormat(LocalTarget):
    def export(self, export: Export) -> Connection:
        return super().export(replace(export, format="raw"))


class SeesNobody(LocalTarget):
    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        return {}


class SeesEverybodyEverywhere(LocalTarget):
    def sessions(self) -> Mapping[str, tuple[str, ...]]:
        return dict.fromkeys(self.list_exports(), ("somebody",))


class SeesNoFault(LocalTarget):
    """Lists what it once wrote down."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.known: set[str] = set()

    def export(self, export: Export) -> Connection:
        self.known.add(export.id)
        return super().export(export)

    def withdraw(self, export_id: str) -> None:
        self.known.discard(export_id)
        super().withdraw(export_id)

    def list_exports(self) -> frozenset[str]:
        return super().list_exports() | self.known


class SeesFaultsEverywhere(LocalTarget):
    def faults(self) -> Mapping[str, str]:
        return dict.fromkeys(self.list_exports(), "it looks odd")


class NoticesOnlyItsOwnDoings(LocalTarget):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.made: set[str] = set()

    def export(self, export: Export) -> Connection:
        connection = super().export(export)
        self.made.add(export.id)
        (self.state_dir.parent / export.id).touch()
        return connection

    def withdraw(self, export_id: str) -> None:
        super().withdraw(export_id)
        (self.state_dir.parent / export_id).unlink(missing_ok=True)

    def list_exports(self) -> frozenset[str]:
        there = {path.name for path in self.state_dir.parent.iterdir() if re.fullmatch("[0-9a-f-]{36}", path.name)}
        return super().list_exports() | (there - self.made)


# --- doors that are open -----------------------------------------------------------------------------------


class IsAlwaysWritable(NbdTarget):
    def export(self, export: Export) -> Connection:
        return super().export(replace(export, read_only=False))


class OnlyForgets(NbdTarget):
    """Strikes an export off its list and lets its server live."""

    forgotten: frozenset[str] = frozenset()

    def withdraw(self, export_id: str) -> None:
        self.forgotten |= {export_id}

    def list_exports(self) -> frozenset[str]:
        return super().list_exports() - self.forgotten


class AsksForNoSecret(NbdTarget):
    def export(self, export: Export) -> Connection:
        return replace(super().export(export), secret_as="auth_password")


class KnowsNoInitiators(NbdTarget):
    def capabilities(self) -> TargetCapabilities:
        return replace(super().capabilities(), connector_needs=("initiator",))


FLAWS: dict[type[Target], tuple[str, ...]] = {
    CheckExports: ("test_check_twice",),
    CapabilitiesChange: ("test_capabilities_are_steady_and_whole",),
    ConnectionHasTheSecret: ("test_the_connection_can_be_stored",),
    LogsTheSecret: ("test_secrets_stay_secret",),
    LeavesTheSecretOpen: ("test_secrets_stay_secret",),
    GivesAnotherFile: (
        "test_what_the_initiator_writes_is_on_the_volume",
        "test_what_is_on_the_volume_is_read_by_the_initiator",
        "test_declared_online_extend_works",
    ),
    LooksIntoTheVolume: ("test_declared_formats_are_never_guessed",),
    EachAnswerIsAnother: ("test_export_twice_is_one_export",),
    EachCallIsAnotherExport: ("test_export_twice_is_one_export",),
    WithdrawsOnlyOnce: ("test_withdraw_twice",),
    Forgetful: ("test_a_restarted_service_goes_on",),
    KnowsNoOwner: ("test_another_installation_is_left_alone",),
    NotForThreads: ("test_many_at_once",),
    CutsNobody: ("test_an_old_session_reads_nothing", "test_an_old_session_writes_nothing"),
    UsesOneSlot: (
        "test_an_old_session_never_reads_another_volume",
        "test_an_old_connection_never_leads_to_another_volume",
    ),
    EndsSessions: (
        "test_exporting_again_keeps_sessions",
        "test_the_end_of_one_export_keeps_the_others_sessions",
    ),
    TakesNoSecondExport: ("test_declared_multiattach_works",),
    LastExportWins: ("test_declared_multiattach_works",),
    DeclaresNothing: ("test_undeclared_multiattach_refuses", "test_undeclared_online_extend_refuses"),
    LetsEverybodyIn: ("test_connector_needs_are_needed", "test_hostile_connectors"),
    ChecksTooLate: ("test_hostile_connectors",),
    RefusesTooLate: (
        "test_hostile_connectors",
        "test_a_missing_volume_is_refused",
        "test_undeclared_formats_are_refused",
    ),
    MakesWhatIsMissing: ("test_a_missing_volume_is_refused",),
    TakesAnyFormat: ("test_undeclared_formats_are_refused",),
    SeesNobody: ("test_sessions_tell_who_is_connected",),
    SeesNoFault: ("test_a_broken_export_is_noticed_and_made_again",),
    SeesFaultsEverywhere: ("test_what_was_exported_has_no_fault",),
    NoticesOnlyItsOwnDoings: ("test_a_service_that_was_started_anew_notices",),
    SeesEverybodyEverywhere: ("test_sessions_tell_who_is_connected",),
    IsAlwaysWritable: ("test_read_only_is_read_only",),
    OnlyForgets: ("test_after_withdraw_nobody_gets_in",),
    AsksForNoSecret: ("test_the_secret_is_needed",),
    KnowsNoInitiators: ("test_other_initiators_are_refused",),
}


@pytest.fixture(autouse=True)
def _in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    need(shutil.which("qemu-io"), "apt-get install qemu-utils")
    monkeypatch.setattr("blockstore.conformance.target.pair.PATIENCE_S", 60.0)
    monkeypatch.setattr("blockstore_plugins.local.PATIENCE_S", 0.1)


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory with a short path, for sockets; what a broken target left running there is ended."""
    path = Path(tempfile.mkdtemp(prefix="conf-"))
    yield path
    sound = NbdTarget("n", NbdOptions(), path / "t", "0a1b2c3d")
    for export_id in sound.list_exports():
        if (path / "t" / export_id).is_dir():
            sound.withdraw(export_id)
    for left in (path, Path(tempfile.gettempdir()) / f"blockstore-test-{os.getpid()}"):
        shutil.rmtree(left, ignore_errors=True)


def pair_with(kind: type[Target], place: Path, file_format: str = "raw") -> Pair:
    options = NbdOptions() if issubclass(kind, NbdTarget) else LocalOptions()
    backend = DirectoryBackend("d", DirectoryOptions(path=place / "v", format=file_format), place)
    target = kind("t", options, place / "t", "0a1b2c3d")
    return Pair(backend, target, damages.of_local(target) if isinstance(target, LocalTarget) else {})


def only(pair: Pair, name: str) -> Result:
    (result,) = (result for result in run(pair, lambda _line: None, only=name) if result.case == name)
    return result


@pytest.mark.parametrize(
    ("flawed", "case"),
    [pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind in FLAWS for name in FLAWS[kind]],
)
def test_a_broken_target_fails_its_case(
    flawed: type[Target], case: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blockstore.conformance.target.pair.PATIENCE_S", 4.0)
    result = only(pair_with(flawed, place), case)
    assert result.outcome == "failed", result
    assert result.reason


def test_every_case_has_a_target_that_fails_it() -> None:
    assert {name for name, _call in cases()} - {name for names in FLAWS.values() for name in names} == set()


def test_the_sound_target_passes_through_the_second_door(place: Path) -> None:
    lines: list[str] = []
    pair = pair_with(LocalTarget, place)
    results = run(pair, lines.append)
    assert [result for result in results if result.outcome == "failed"] == []
    assert len(lines) == len(results) == len(cases()) >= 30
    assert lines[0].startswith("passed  check() succeeds, again and again, and exports nothing. (")
    assert pair.target.list_exports() == frozenset()
    assert pair.backend.list_volumes() == {}


def test_a_failed_case_cleans_up_and_says_what_is_wrong(place: Path) -> None:
    pair = pair_with(GivesAnotherFile, place)
    result = only(pair, "test_what_is_on_the_volume_is_read_by_the_initiator")
    assert "The initiator must see 2147483648 bytes, but sees 1073741824." in result.reason
    assert pair.target.list_exports() == frozenset()
    assert pair.backend.list_volumes() == {}
    assert not list(Path(tempfile.gettempdir()).glob("blockstore-check-*/stranger"))


def test_exports_that_are_there_already_are_left_alone(place: Path) -> None:
    pair = pair_with(LocalTarget, place)
    (mine := place / "mine").touch()
    pair.target.export(Export(id="mine", volume="mine", path=mine))
    assert [result for result in run(pair, lambda _line: None, only="twice") if result.outcome == "failed"] == []
    assert pair.target.list_exports() == {"mine"}


def test_a_backend_without_files_is_skipped_and_says_so(place: Path) -> None:
    pair = Pair(MemoryBackend("m", MemoryOptions(), place), LocalTarget("t", LocalOptions(), place / "t", "o"))
    results = run(pair, lambda _line: None)
    assert {result.outcome for result in results} == {"passed", "skipped"}
    assert "m has no file or device that could be exported." in {result.reason for result in results}


def test_a_pair_that_cannot_be_fails_everywhere(place: Path) -> None:
    results = run(pair_with(LocalTarget, place, "qcow2"), lambda _line: None)
    sentence = "The volumes of d are qcow2, which t does not export; the configuration must not join them."
    assert {(result.outcome, result.reason) for result in results} == {("failed", sentence)}
