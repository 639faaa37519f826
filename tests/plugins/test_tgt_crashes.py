"""The tgt plugin when somebody is killed: the service between any two calls, or tgtd; and with 500 exports."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from blockstore_plugins import tgt
from blockstore_plugins.tgt import TgtTarget
from blockstore_plugins.tgt.management import Code, TgtRefused

from blockstore.conformance.target import ExportedVolume
from blockstore.errors import Unreachable
from blockstore.targets.contract import Export
from tests.crash.steps import Steps

from ..targets import damages
from .initiators import Raw, tool
from .tgt_rig import INITIATOR, MIB, Rig


class Calls(Steps):
    """Calls of tgtd, which are the steps of the service; or one of them loses its answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.made: list[str] = []
        self.answers = 1 << 30
        call = tgt.Tgtd._call

        def counted(tgtd: tgt.Tgtd, what: str, *args: object, **kw: object) -> str:
            self.take()
            self.made.append(what)
            text = call(tgtd, what, *args, **kw)
            self.answers -= 1
            if not self.answers:
                raise Unreachable("The answer was lost.")
            return text

        monkeypatch.setattr(tgt.Tgtd, "_call", counted)

    def count(self, work: Callable[[], object]) -> list[str]:
        """Return what a piece of work says to tgtd."""
        self.made.clear()
        work()
        return list(self.made)


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Rig(tmp_path) as rig:
        yield rig


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def usable(rig: Rig, target: TgtTarget, export: Export) -> None:
    """Prove that an export is whole, and that it is one."""
    rig.target = target
    with Raw(rig.login_of(export)).login().ready() as raw:
        assert raw.read(0) == b"x" * 512
    assert target.list_exports() == {export.id}


@pytest.mark.parametrize("again", ["by the same service", "by a new one"])
@pytest.mark.parametrize("what", ["export", "withdraw"])
def test_an_export_that_was_killed_anywhere_can_be_completed_or_withdrawn(
    rig: Rig, calls: Calls, what: str, again: str
) -> None:
    path = rig.volume(b"x")
    step = 1
    while True:
        export, target = rig.export_of(path), rig.new_target()
        if not calls.crashed(step, lambda target=target, export=export: target.export(export)):
            break
        after = rig.new_target() if again == "by a new one" else target
        assert after.list_exports() <= {export.id}
        if what == "export":
            usable(rig, after, export)
        after.withdraw(export.id)
        assert rig.is_empty(), step
        assert not rig.holds(path)
        step += 1
    assert step > 10


@pytest.mark.parametrize("again", ["by the same service", "by a new one"])
@pytest.mark.parametrize("what", ["export", "withdraw"])
@pytest.mark.parametrize("work", ["withdraw", "resize"])
def test_what_was_killed_anywhere_can_be_repeated_or_undone(
    rig: Rig, calls: Calls, work: str, what: str, again: str
) -> None:
    path = rig.volume(b"x")
    step = 1
    while True:
        export, target = rig.export_of(path), rig.new_target()
        rig.target = target
        with Raw(rig.login_of(export)).login().ready():
            method = getattr(target, work)
            if not calls.crashed(step, lambda method=method, export=export: method(export.id)):
                break
        after = rig.new_target() if again == "by a new one" else target
        if what == "export":
            if work == "resize":
                after.resize(export.id)
            usable(rig, after, export)
        after.withdraw(export.id)
        assert rig.is_empty(), step
        assert not rig.holds(path)
        step += 1
    assert step > 5


@pytest.mark.parametrize("how", list(damages.TGTADM))
def test_a_service_that_is_killed_while_it_mends_leaves_it_to_the_next_look(rig: Rig, calls: Calls, how: str) -> None:
    """However far it came, the next service makes it whole."""
    path = rig.volume(b"x")
    for step in range(1, 101):
        export, target = rig.export_of(path), rig.new_target()
        made = ExportedVolume(export, target.export(export))
        damages.of_tgt(rig.tgtd)[how](made)
        assert made.id in target.faults() or made.id not in target.list_exports()
        is_killed = calls.crashed(step, lambda target=target, export=export: target.export(export))
        after = rig.new_target()
        usable(rig, after, export)
        assert after.faults() == {}
        after.withdraw(export.id)
        assert rig.is_empty(), step
        if not is_killed:
            assert step > 5
            return
    raise AssertionError("It never ended.")


def test_a_target_of_ours_that_somebody_removed_takes_no_other_with_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another thread makes, while all that tgtd has is asked for anew, can be withdrawn afterwards."""
    removed, other = rig.export_of(rig.volume()), rig.export_of(rig.volume(b"x"))
    made = ExportedVolume(removed, rig.target.export(removed))
    damages.of_tgt(rig.tgtd)["the target is deleted"](made)
    create = tgt.Tgtd.create_target

    def meanwhile(self: tgt.Tgtd, tid: int, name: str) -> None:
        monkeypatch.undo()
        assert rig.target.export(removed) == made.connection
        create(self, tid, name)

    monkeypatch.setattr(tgt.Tgtd, "create_target", meanwhile)
    rig.target.export(other)
    assert rig.target.faults() == {}
    for export in (removed, other):
        rig.target.withdraw(export.id)
    assert rig.is_empty()


def test_an_answer_that_is_lost_leaves_nothing_that_cannot_be_withdrawn(rig: Rig, calls: Calls) -> None:
    path = rig.volume(b"x")
    for step in range(1, 12):
        export = rig.export_of(path)
        calls.answers = step
        with pytest.raises(Unreachable, match="lost"):
            rig.new_target().export(export)
        # What it could undo, it undid; tgtd was there.
        assert rig.is_empty(), step
        usable(rig, rig.target, export)
        rig.target.withdraw(export.id)


def test_after_tgtd_was_killed_the_list_is_empty_and_the_export_is_restored_as_it_was(rig: Rig) -> None:
    export, path = rig.export_of(rig.volume(b"x")), rig.volume(b"x")
    others = [rig.export_of(path) for _ in range(3)]
    before = rig.target.export(export)
    login = rig.login_of(export)
    for other in others:
        rig.target.export(other)
    rig.tgtd.restart()
    assert rig.target.list_exports() == frozenset()
    assert rig.target.sessions() == {}
    assert tool(login, "iscsi-inq").returncode != 0
    assert rig.target.export(export) == before
    with Raw(login).login().ready() as raw:
        assert raw.read(0) == b"x" * 512
    # What went with the old tgtd is withdrawn, whatever its tid means now.
    for other in others:
        rig.target.withdraw(other.id)
    assert rig.target.list_exports() == {export.id}


def test_a_tid_of_the_tgtd_before_is_never_used(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its first target has the tid that the old one's had: nothing may be taken for the other."""
    monkeypatch.setattr(tgt.secrets, "choice", lambda tids: tids[0])
    first, second = rig.export_of(rig.volume()), rig.export_of(rig.volume(b"x"))
    rig.target.export(first)
    rig.tgtd.restart()
    neighbour = rig.new_target(owner="ffffffff")
    neighbour.export(second)
    rig.target.withdraw(first.id)
    assert neighbour.list_exports() == {second.id}


def test_tgtd_that_is_restarted_between_two_calls_is_noticed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    create = tgt.Tgtd.create_lun

    def restart_first(self: tgt.Tgtd, tid: int, params: str) -> None:
        monkeypatch.undo()
        rig.tgtd.restart()
        create(self, tid, params)

    monkeypatch.setattr(tgt.Tgtd, "create_lun", restart_first)
    usable(rig, rig.target, rig.export_of(rig.volume(b"x")))


def test_a_tid_that_somebody_else_has_is_left_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    tids = iter((70000, 70000, 70000, 70001))
    monkeypatch.setattr(tgt.secrets, "choice", lambda _tids: next(tids))
    tgtd = tgt.Tgtd.find(rig.tgtd.socket)
    tgtd.create_target(70000, "iqn.2000-01.com.example:the-administrators")
    export = rig.export_of(rig.volume(b"x"))
    with pytest.raises(Unreachable, match="another program"):
        rig.target.export(export)
    rig.target.withdraw(export.id)
    usable(rig, rig.target, export)
    assert "iqn.2000-01.com.example:the-administrators" in [shown.name for shown in tgtd.targets()]


def test_a_target_that_somebody_else_removed_is_made_again_or_is_gone(rig: Rig) -> None:
    export = rig.export_of(rig.volume(b"x"))
    for work in (rig.target.export, lambda export: rig.target.withdraw(export.id)):
        rig.target.export(export)
        tgtd, tid = tgt.Tgtd.find(rig.tgtd.socket), rig.target._made[export.id].tid
        tgtd.delete_target(tid)
        work(export)
    assert rig.is_empty()


def test_an_error_number_has_a_name_and_is_a_sentence() -> None:
    assert str(TgtRefused("open a LUN", Code.LUN_EXISTS)) == "tgtd did not open a LUN: the LUN exists already."
    assert str(TgtRefused("open a LUN", 99)) == "tgtd did not open a LUN: its error 99."


@pytest.mark.slow
def test_the_cost_does_not_grow_with_the_number_of_exports(rig: Rig, calls: Calls) -> None:
    path = rig.volume(b"x", MIB)
    rig.target.export(rig.export_of(path))

    def cost() -> tuple[list[str], list[str], float, float]:
        took: list[tuple[float, float]] = []
        for _ in range(9):
            export = rig.export_of(path)
            began = time.perf_counter()
            exporting = calls.count(lambda export=export: rig.target.export(export))
            between = time.perf_counter()
            withdrawing = calls.count(lambda export=export: rig.target.withdraw(export.id))
            took.append((between - began, time.perf_counter() - between))
        medians = [statistics.median(times) * 1000 for times in zip(*took, strict=True)]
        return exporting, withdrawing, medians[0], medians[1]

    few = cost()
    for _ in range(499):
        rig.target.export(rig.export_of(path))
    many = cost()
    print(f"\nexport {few[2]:.1f} ms with 1, {many[2]:.1f} ms with 500; withdraw {few[3]:.1f} and {many[3]:.1f} ms")
    for one, other in zip(few[:2], many[:2], strict=True):
        assert len(one) == len(other) <= 11
        assert "list its targets" not in (*one, *other)
    listed = calls.count(rig.target.list_exports)
    assert listed == ["list its targets"]
    assert len(rig.target.list_exports()) == 500
    assert calls.count(rig.target.sessions) == listed
    # A service that has just been started lists once.
    fresh, export = rig.new_target(), rig.export_of(path, connector={"initiator": INITIATOR})
    assert calls.count(lambda: fresh.export(export)).count("list its targets") == 1
    assert calls.count(lambda: fresh.withdraw(export.id)).count("list its targets") == 0
