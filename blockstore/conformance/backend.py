"""The conformance suite of backends: tests every promise of ``backends/contract.py`` on a real backend.

The cases run in two ways. With pytest: subclass ``BackendConformance`` and give it a ``backend`` fixture. On the
command line: ``blockstore backend check NAME`` calls ``run``. The helpers are in ``blockstore.conformance.sandbox``.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, BinaryIO
from unittest import SkipTest

from blockstore.backends.contract import GIB, Backend
from blockstore.conformance.sandbox import (
    BLOCK,
    Result,
    Sandbox,
    cases_of,
    eventually,
    expect,
    holds,
    named_after,
    pattern,
    places,
    read_at,
    refuses,
    run_cases,
    write_at,
)
from blockstore.errors import (
    BackendError,
    InUse,
    NameTaken,
    NoSpace,
    NotSupported,
    OperationCancelled,
    Unreachable,
    VolumeMissing,
)

_IDENTITY = re.compile(r"[!-~]{1,200}")
PATIENCE_S = 10.0
"""Time within which a pool's capacity must follow a change."""
WRITES_WITHIN_S = 30.0
"""Time within which two writes must end during a snapshot."""

HOSTILE_NAMES = (
    "", ".", "..", "../up", "a/b", "/etc/passwd", "-f", "--config=x", "@tag", "a b", "a\nb", "a\n", "a\0b", "a;reboot",
    "$(id)", "a*", "a.raw", "json:{}", "nbd:x", "a@b", "1st", "_x", "ünicode", "a" * 64,
)  # fmt: skip


# --- helpers of the cases ----------------------------------------------------------------------------------


class Cancelled:
    """A progress callback that cancels the operation at its first call."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, _percent: int) -> None:
        self.called = True
        raise OperationCancelled("The conformance suite cancelled this.")


def case(
    *needs: str, lacks: str = ""
) -> Callable[[Callable[[Any, Sandbox], None]], Callable[[BackendConformance, Backend], None]]:
    """Turn a method that takes a Sandbox into one that takes a backend.

    Skip the case if the backend lacks a capability of ``needs``, or has the capability ``lacks``.
    """

    def wrap(body: Callable[[Any, Sandbox], None]) -> Callable[[BackendConformance, Backend], None]:
        def test(self: BackendConformance, backend: Backend) -> None:
            backend.check()
            for flag in needs:
                if not getattr(backend.capabilities(), flag):
                    raise SkipTest(f"{backend.name} does not declare {flag}.")
            if lacks and getattr(backend.capabilities(), lacks):
                raise SkipTest(f"{backend.name} declares {lacks}.")
            with Sandbox(backend) as sandbox:
                body(self, sandbox)

        return named_after(body, test)

    return wrap


# --- the cases ---------------------------------------------------------------------------------------------


class BackendConformance:
    """Every promise of contract.py, as a case with its sentence."""

    # health and capacity

    @case()
    def test_check_twice(self, sandbox: Sandbox) -> None:
        """check() succeeds, again and again, and changes nothing."""
        sandbox.backend.check()
        sandbox.backend.check()
        sandbox.lists({})

    @case()
    def test_capabilities_are_steady_and_whole(self, sandbox: Sandbox) -> None:
        """Capabilities stay the same and say whether space is taken when written or when created."""
        has = sandbox.backend.capabilities()
        expect(has == sandbox.has, "capabilities() must answer the same each time.")
        expect(has.thin or has.thick, "capabilities() must declare thin, thick or both.")
        expect(has.storage_protocol, "capabilities() must name a storage_protocol.")
        expect(has.snapshots or not has.revert, "revert is declared without snapshots, which it needs.")
        expect(has.snapshots or not has.group_snapshots, "group_snapshots is declared without snapshots.")

    @case()
    def test_capacity_is_plausible(self, sandbox: Sandbox) -> None:
        """The pool's figures make sense: 0 <= free <= total, and the total is not nothing."""
        now = sandbox.backend.capacity()
        expect(now.total_gib > 0, f"total_gib must be more than 0, but is {now.total_gib}.")
        expect(0 <= now.free_gib <= now.total_gib, f"free_gib must be within 0 and total_gib: {now}.")
        expect(now.provisioned_gib is None or now.provisioned_gib >= 0, f"provisioned_gib is negative: {now}.")

    @case()
    def test_capacity_moves_with_volumes(self, sandbox: Sandbox) -> None:
        """A new volume takes its space at once when thick, and next to none when thin; deleting gives it back."""
        before = sandbox.backend.capacity()
        name = sandbox.volume(size_gib=2)
        if sandbox.has.thin is not sandbox.has.thick:

            def taken() -> float:
                return before.free_gib - sandbox.backend.capacity().free_gib

            if sandbox.has.thick:
                eventually(lambda: taken() > 1.5, "free_gib must fall by the size of a new thick volume.", PATIENCE_S)
            else:
                eventually(lambda: taken() < 1, "free_gib must not fall by the size of a new thin volume.", PATIENCE_S)
        if before.provisioned_gib is not None:
            was = before.provisioned_gib
            eventually(
                lambda: (sandbox.backend.capacity().provisioned_gib or 0) - was > 1.9,
                "provisioned_gib must grow by a new volume's size.",
                PATIENCE_S,
            )
        sandbox.backend.delete_volume(name)
        eventually(
            lambda: sandbox.backend.capacity().free_gib > before.free_gib - 1,
            "free_gib must come back when a volume is deleted.",
            PATIENCE_S,
        )

    # owner and identity

    @case(lacks="owner_mark")
    def test_undeclared_owner_mark_refuses(self, sandbox: Sandbox) -> None:
        """Without owner_mark, asking for it and changing it raise NotSupported."""
        refuses(NotSupported, sandbox.backend.owner)
        refuses(NotSupported, sandbox.backend.change_owner, None, "somebody")

    @case("owner_mark")
    def test_declared_owner_mark_works(self, sandbox: Sandbox) -> None:
        """The mark of an installation stays when another one comes, unless that one names it as the former."""
        backend = sandbox.backend
        before = backend.owner()
        first = before or sandbox.name()
        try:
            backend.change_owner(None, first)
            expect(backend.owner() == first, "owner() must tell the mark that change_owner() made.")
            identity = backend.identity()
            expect(
                _IDENTITY.fullmatch(identity) is not None,
                f"identity() must be 1 to 200 printable characters: {identity!r}.",
            )
            backend.change_owner(None, sandbox.name())
            backend.change_owner("somebody-else", sandbox.name())
            backend.change_owner("somebody-else", None)
            expect(backend.owner() == first, "A mark must stay when its owner is not named as the former one.")
            sandbox.lists({})
            if before is None:  # else a running service would notice the change
                second = sandbox.name()
                backend.change_owner(first, second)
                expect(backend.owner() == second, "A mark must change when its owner is named as the former one.")
                name = sandbox.volume()
                backend.delete_volume(name)
                expect(backend.owner() == second, "A mark must stay when volumes go.")
                backend.change_owner(second, second)
            expect(backend.identity() == identity, "identity() must stay the same, whoever owns the storage.")
        finally:
            if before is None:
                backend.change_owner(backend.owner(), None)
        expect(backend.owner() == before, "change_owner(FORMER, None) must remove the mark.")

    @case("owner_mark")
    def test_storage_that_is_not_recognised_is_not_touched(self, sandbox: Sandbox) -> None:
        """Where another storage is recorded, that is proved, and a missing volume is not taken for a deleted one."""
        backend = sandbox.backend
        name, missing = sandbox.volume(), sandbox.name()
        before = backend.recognised
        backend.recognise(f"{backend.identity()}-not")
        try:
            refuses(Unreachable, backend.prove_identity)
            refuses(Unreachable, backend.delete_volume, missing)
        finally:
            backend.recognise(before)
        backend.prove_identity()
        backend.delete_volume(missing)
        sandbox.lists({name: 1})

    # create

    @case()
    def test_create_makes_a_volume_of_zeros(self, sandbox: Sandbox) -> None:
        """A new volume is listed, has exactly its size and reads as zeros."""
        one, three = sandbox.volume(), sandbox.volume(size_gib=3)
        sandbox.lists({one: 1, three: 3})
        sandbox.volume_is_zero(one)
        sandbox.volume_is_zero(three, 3)

    @case()
    def test_create_never_shows_old_bytes(self, sandbox: Sandbox) -> None:
        """A volume made where a written one was deleted reads as zeros."""
        for _ in range(2):
            sandbox.dirty()
        sandbox.volume_is_zero(sandbox.volume())

    @case()
    def test_create_twice_is_one_volume(self, sandbox: Sandbox) -> None:
        """Creating what is there succeeds and keeps its bytes."""
        name = sandbox.volume("kept")
        sandbox.backend.create_volume(name, 1)
        sandbox.lists({name: 1})
        sandbox.volume_holds(name, "kept")

    @case()
    def test_create_same_name_other_size_is_refused(self, sandbox: Sandbox) -> None:
        """Creating a name that exists with another size raises NameTaken and changes nothing."""
        name = sandbox.volume("kept", 2)
        refuses(NameTaken, sandbox.backend.create_volume, name, 1)
        refuses(NameTaken, sandbox.backend.create_volume, name, 3)
        sandbox.lists({name: 2})
        sandbox.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_no_space_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A volume of a thousand times the pool is refused without a trace; a thin pool may take it, and removes it."""
        name = sandbox.name()
        try:
            sandbox.backend.create_volume(name, _absurd(sandbox.backend))
        except BackendError as exc:
            sandbox.lists({})
            if sandbox.has.thick and not sandbox.has.thin:
                expect(isinstance(exc, NoSpace), f"A full pool must raise NoSpace, not {type(exc).__name__}: {exc}")
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse a volume larger than itself.")
            sandbox.lists({name: _absurd(sandbox.backend)})
            sandbox.backend.delete_volume(name)
        sandbox.lists({})
        sandbox.backend.create_volume(name, 1)
        sandbox.volume_is_zero(name)

    @case()
    def test_parallel_creates_of_different_names(self, sandbox: Sandbox) -> None:
        """Several threads create, write, freeze and delete different volumes at once."""
        names = [sandbox.name() for _ in range(8)]
        shots = {name: sandbox.snapshot_name(name) for name in names} if sandbox.has.snapshots else {}

        def work(name: str) -> None:
            sandbox.backend.create_volume(name, 1)
            sandbox.fill(name, name)
            if shots:
                sandbox.backend.create_snapshot(name, shots[name])

        def remove(name: str) -> None:
            if shots:
                sandbox.backend.delete_snapshot(name, shots[name])
            sandbox.backend.delete_volume(name)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, names))
            sandbox.lists(dict.fromkeys(names, 1), {shot: name for name, shot in shots.items()})
            for name in names:
                sandbox.volume_holds(name, name)
            list(threads.map(remove, names))
        sandbox.lists({})

    # delete

    @case()
    def test_delete_twice(self, sandbox: Sandbox) -> None:
        """Deleting removes a volume; deleting again, or what never was, succeeds."""
        name, other = sandbox.volume("gone"), sandbox.volume("kept")
        sandbox.backend.delete_volume(name)
        sandbox.backend.delete_volume(name)
        sandbox.backend.delete_volume(sandbox.name())
        sandbox.lists({other: 1})
        sandbox.volume_holds(other, "kept")

    @case()
    def test_delete_while_open_is_refused(self, sandbox: Sandbox) -> None:
        """Deleting a volume that is open raises InUse and keeps its bytes."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "rb"):
            refuses(InUse, sandbox.backend.delete_volume, name)
        sandbox.volume_holds(name, "kept")
        sandbox.backend.delete_volume(name)

    @case()
    def test_delete_reports_progress_and_can_be_cancelled(self, sandbox: Sandbox) -> None:
        """Deleting passes a cancellation on, and can be asked again."""
        name = sandbox.volume("gone")
        _cancelled(sandbox.backend.delete_volume, name)
        sandbox.backend.delete_volume(name)
        sandbox.lists({})

    # open

    @case()
    def test_bytes_survive(self, sandbox: Sandbox) -> None:
        """What was written is read back, also across block borders and at odd offsets, and nothing else is."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b") as file:
            write_at(file, 3 * BLOCK - 3, b"odd bytes")
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes just written must be read back.")
        with sandbox.backend.open_volume(name, "rb") as file:
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes must survive closing the volume.")
        sandbox.volume_holds(name, "kept")

    @case()
    def test_writing_past_the_end_is_impossible(self, sandbox: Sandbox) -> None:
        """A write that crosses the end fails or is cut; the size stays exact."""
        name = sandbox.volume()
        for offset in (GIB - 5, GIB, GIB + 4096):
            try:
                with sandbox.backend.open_volume(name, "r+b") as file:
                    file.seek(offset)
                    file.write(b"0123456789")
            except (OSError, ValueError, BackendError):
                pass
            with sandbox.backend.open_volume(name, "rb") as file:
                size = file.seek(0, os.SEEK_END)
            expect(size == GIB, f"The volume must stay {GIB} bytes long, but is {size}.")
        sandbox.lists({name: 1})

    @case()
    def test_open_for_reading_does_not_write(self, sandbox: Sandbox) -> None:
        """A volume opened for reading cannot be changed."""
        name = sandbox.volume("kept")
        try:
            with sandbox.backend.open_volume(name, "rb") as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        sandbox.volume_holds(name, "kept")

    @case()
    def test_open_missing_is_refused(self, sandbox: Sandbox) -> None:
        """Opening a volume that is not there raises VolumeMissing and makes nothing."""
        name = sandbox.name()
        refuses(VolumeMissing, _enter, sandbox.backend.open_volume, name, "rb")
        refuses(VolumeMissing, _enter, sandbox.backend.open_volume, name, "r+b")
        sandbox.lists({})

    @case()
    def test_an_error_inside_open_comes_out(self, sandbox: Sandbox) -> None:
        """An exception raised while a volume is open comes out unchanged, and the volume is closed."""
        name = sandbox.volume()
        refuses(_Thrown, _throw_inside, sandbox.backend.open_volume(name, "r+b"))
        sandbox.backend.delete_volume(name)

    @case()
    def test_the_located_file_has_the_same_bytes(self, sandbox: Sandbox) -> None:
        """Where a volume lies on this node in raw form, the file or device has exactly the volume's bytes."""
        name = sandbox.volume("kept")
        located = sandbox.backend.locate(name)
        if located is None or located.format != "raw":
            raise SkipTest(f"{sandbox.backend.name} gives no raw file or device.")
        with located.path.open("rb", buffering=0) as file:
            holds(file, f"path {located.path}", "kept", 1, 1)

    # extend

    @case()
    def test_extend_keeps_bytes_and_grows_zeros(self, sandbox: Sandbox) -> None:
        """Extending, once or twice, keeps the bytes; the grown part reads as zeros, also on a used pool."""
        sandbox.dirty(2)
        name = sandbox.volume("kept")
        for _ in range(2):
            sandbox.backend.extend_volume(name, 3)
            sandbox.lists({name: 3})
            sandbox.volume_holds(name, "kept", 3, of_gib=1)
        sandbox.backend.create_volume(name, 3)

    @case()
    def test_extend_to_less_is_refused(self, sandbox: Sandbox) -> None:
        """Extending to less than the present size raises and cuts nothing."""
        name = sandbox.volume("kept", 2)
        refuses(BackendError, sandbox.backend.extend_volume, name, 1)
        sandbox.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_extend_missing_is_refused(self, sandbox: Sandbox) -> None:
        """Extending a volume that is not there raises VolumeMissing and makes nothing."""
        refuses(VolumeMissing, sandbox.backend.extend_volume, sandbox.name(), 2)
        sandbox.lists({})

    @case()
    def test_extend_without_space_changes_nothing(self, sandbox: Sandbox) -> None:
        """Extending to a thousand times the pool is refused and keeps size and bytes; a thin pool may do it."""
        name = sandbox.volume("kept")
        try:
            sandbox.backend.extend_volume(name, _absurd(sandbox.backend))
        except BackendError:
            sandbox.lists({name: 1})
            sandbox.volume_holds(name, "kept")
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse to extend a volume beyond itself.")

    @case("online_extend")
    def test_declared_online_extend_works(self, sandbox: Sandbox) -> None:
        """A volume grows while it is open, and what has it open goes on."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b") as file:
            sandbox.backend.extend_volume(name, 2)
            expect(read_at(file, 0) == pattern("kept at 0"), "An open volume must stay readable when it grows.")
            write_at(file, 0, pattern("kept at 0"))
        sandbox.volume_holds(name, "kept", 2, of_gib=1)

    @case(lacks="online_extend")
    def test_undeclared_online_extend_refuses(self, sandbox: Sandbox) -> None:
        """Without online_extend, extending a volume that is open raises InUse and changes nothing."""
        name = sandbox.volume("kept")
        with sandbox.backend.open_volume(name, "r+b"):
            refuses(InUse, sandbox.backend.extend_volume, name, 2)
        sandbox.volume_holds(name, "kept")
        sandbox.backend.extend_volume(name, 2)

    @case("multiattach")
    def test_declared_multiattach_works(self, sandbox: Sandbox) -> None:
        """A volume is open twice at once, and each sees what the other wrote."""
        name = sandbox.volume()
        with sandbox.backend.open_volume(name, "r+b") as one, sandbox.backend.open_volume(name, "r+b") as two:
            write_at(one, 0, pattern("one"))
            write_at(two, GIB // 2, pattern("two"))
            one.flush()
            two.flush()
            expect(read_at(two, 0) == pattern("one"), "The second opener must see what the first wrote.")
            expect(read_at(one, GIB // 2) == pattern("two"), "The first opener must see what the second wrote.")

    # names

    @case()
    def test_hostile_names_are_refused(self, sandbox: Sandbox) -> None:
        """A name that is a path, an option, a pattern or too long is refused by every method with BackendError."""
        good = sandbox.volume("kept")
        for bad in HOSTILE_NAMES:
            refuses(BackendError, sandbox.backend.create_volume, bad, 1)
            refuses(BackendError, sandbox.backend.delete_volume, bad)
            refuses(BackendError, sandbox.backend.extend_volume, bad, 2)
            refuses(BackendError, _enter, sandbox.backend.open_volume, bad, "r+b")
            if sandbox.has.snapshots:
                refuses(BackendError, sandbox.backend.create_snapshot, good, bad)
                refuses(BackendError, sandbox.backend.create_snapshot, bad, "good")
                refuses(BackendError, sandbox.backend.delete_snapshot, good, bad)
                refuses(BackendError, sandbox.backend.delete_snapshot, bad, "good")
                refuses(BackendError, _enter, sandbox.backend.open_snapshot, good, bad)
            if sandbox.has.group_snapshots:
                refuses(BackendError, sandbox.backend.create_group_snapshot, {good: sandbox.prefix + "s", bad: "good"})
                refuses(BackendError, sandbox.backend.create_group_snapshot, {good: bad})
            if sandbox.has.clone:
                refuses(BackendError, sandbox.backend.clone_volume, bad, 1, good)
                refuses(BackendError, sandbox.backend.clone_volume, sandbox.prefix + "x", 1, bad)
                refuses(BackendError, sandbox.backend.create_volume_from_snapshot, bad, 1, good, "good")
                refuses(BackendError, sandbox.backend.create_volume_from_snapshot, sandbox.prefix + "x", 1, good, bad)
            if sandbox.has.revert:
                refuses(BackendError, sandbox.backend.revert_volume, good, bad)
                refuses(BackendError, sandbox.backend.revert_volume, bad, "good")
        sandbox.lists({good: 1})
        sandbox.volume_holds(good, "kept")

    @case()
    def test_names_may_be_long(self, sandbox: Sandbox) -> None:
        """Names of 63 characters work, and differ in their last one."""
        one, two = ((sandbox.name() + "-" + "x" * 63)[:62] + end for end in "ab")
        sandbox.made_volumes += [one, two]
        sandbox.backend.create_volume(one, 1)
        sandbox.backend.create_volume(two, 2)
        sandbox.lists({one: 1, two: 2})

    # snapshots

    @case(lacks="snapshots")
    def test_undeclared_snapshots_refuse(self, sandbox: Sandbox) -> None:
        """Without snapshots, each of their methods raises NotSupported."""
        name = sandbox.volume("kept")
        refuses(NotSupported, sandbox.backend.create_snapshot, name, sandbox.prefix + "s")
        refuses(NotSupported, sandbox.backend.delete_snapshot, name, sandbox.prefix + "s")
        refuses(NotSupported, _enter, sandbox.backend.open_snapshot, name, sandbox.prefix + "s")
        sandbox.lists({name: 1})
        sandbox.volume_holds(name, "kept")

    @case("snapshots")
    def test_declared_snapshots_work(self, sandbox: Sandbox) -> None:
        """A snapshot stays as it was while its volume is overwritten and extended; made twice, it is one."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "second")
        sandbox.backend.create_snapshot(name, shot)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.snapshot_holds(name, shot, "first")
        sandbox.volume_holds(name, "second")
        sandbox.backend.extend_volume(name, 2)
        sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_snapshot_of_an_open_volume(self, sandbox: Sandbox) -> None:
        """A volume in use can be frozen; what is written afterwards stays out."""
        name = sandbox.volume("first")
        with sandbox.backend.open_volume(name, "r+b") as file:
            shot = sandbox.snapshot(name)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"second at {offset}"))
        sandbox.snapshot_holds(name, shot, "first")
        sandbox.volume_holds(name, "second")

    @case("snapshots")
    def test_a_snapshot_cannot_be_written(self, sandbox: Sandbox) -> None:
        """A snapshot is opened for reading only."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        try:
            with sandbox.backend.open_snapshot(name, shot) as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_delete_snapshot_twice(self, sandbox: Sandbox) -> None:
        """Deleting a snapshot keeps the volume; deleting again, or what never was, succeeds."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        for _ in range(2):
            sandbox.backend.delete_snapshot(name, shot)
            sandbox.lists({name: 1})
        sandbox.backend.delete_snapshot(name, sandbox.snapshot_name(name))
        sandbox.backend.delete_snapshot(sandbox.name(), sandbox.snapshot_name(name))
        sandbox.volume_holds(name, "kept")

    @case("snapshots")
    def test_delete_snapshot_can_be_cancelled(self, sandbox: Sandbox) -> None:
        """Deleting a snapshot passes a cancellation on, and can be asked again."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        _cancelled(sandbox.backend.delete_snapshot, name, shot)
        sandbox.backend.delete_snapshot(name, shot)
        sandbox.lists({name: 1})

    @case("snapshots")
    def test_delete_volume_with_snapshots_is_refused(self, sandbox: Sandbox) -> None:
        """Deleting a volume that has snapshots raises InUse and keeps both."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name)
        for _ in range(2):
            refuses(InUse, sandbox.backend.delete_volume, name)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.snapshot_holds(name, shot, "kept")
        sandbox.volume_holds(name, "kept")
        sandbox.backend.delete_snapshot(name, shot)
        sandbox.backend.delete_volume(name)

    @case("snapshots")
    def test_snapshot_names_are_not_shared(self, sandbox: Sandbox) -> None:
        """One name is one thing: taken by another volume's snapshot, by a volume, or by a snapshot, it is refused."""
        one, two = sandbox.volume("one"), sandbox.volume("two")
        shot = sandbox.snapshot_name(one, two)
        sandbox.backend.create_snapshot(one, shot)
        refuses(NameTaken, sandbox.backend.create_snapshot, two, shot)
        refuses(NameTaken, sandbox.backend.create_snapshot, one, two)
        refuses(NameTaken, sandbox.backend.create_volume, shot, 1)
        if sandbox.has.clone:
            refuses(NameTaken, sandbox.backend.clone_volume, shot, 1, two)
            refuses(NameTaken, sandbox.backend.create_volume_from_snapshot, shot, 1, one, shot)
        sandbox.lists({one: 1, two: 1}, {shot: one})
        sandbox.snapshot_holds(one, shot, "one")
        sandbox.backend.delete_snapshot(one, shot)
        sandbox.backend.create_snapshot(two, shot)
        sandbox.lists({one: 1, two: 1}, {shot: two})
        sandbox.snapshot_holds(two, shot, "two")

    @case("snapshots")
    def test_missing_sources_of_snapshots(self, sandbox: Sandbox) -> None:
        """A snapshot of a volume that is not there, or the bytes of one that is not there, raise VolumeMissing."""
        name = sandbox.volume()
        refuses(VolumeMissing, sandbox.backend.create_snapshot, sandbox.name(), sandbox.prefix + "s")
        refuses(VolumeMissing, _enter, sandbox.backend.open_snapshot, name, sandbox.prefix + "s")
        refuses(VolumeMissing, _enter, sandbox.backend.open_snapshot, sandbox.name(), sandbox.prefix + "s")
        sandbox.lists({name: 1})

    @case("snapshots")
    def test_several_snapshots_go_in_any_order(self, sandbox: Sandbox) -> None:
        """Of five snapshots the middle, the oldest and the newest are deleted; the others keep their bytes."""
        name = sandbox.volume()
        shots = {}
        for tag in "abcde":
            sandbox.fill(name, tag)
            shots[tag] = sandbox.snapshot(name)
        sandbox.fill(name, "now")
        for tag in "cae":
            sandbox.backend.delete_snapshot(name, shots.pop(tag))
            sandbox.lists({name: 1}, dict.fromkeys(shots.values(), name))
            for left, shot in shots.items():
                sandbox.snapshot_holds(name, shot, left)
        sandbox.volume_holds(name, "now")

    # clones

    @case(lacks="clone")
    def test_undeclared_clone_refuses(self, sandbox: Sandbox) -> None:
        """Without clone, volumes from volumes and from snapshots raise NotSupported and make nothing."""
        source = sandbox.volume("kept")
        target = sandbox.name()
        refuses(NotSupported, sandbox.backend.clone_volume, target, 1, source)
        shot = sandbox.snapshot(source) if sandbox.has.snapshots else sandbox.prefix + "s"
        refuses(NotSupported, sandbox.backend.create_volume_from_snapshot, target, 1, source, shot)
        sandbox.lists({source: 1}, {shot: source} if sandbox.has.snapshots else {})

    @case("clone")
    def test_declared_clone_works(self, sandbox: Sandbox) -> None:
        """A clone has its source's bytes and is independent of it: each changes, either goes; no helper stays."""
        source, clone = sandbox.volume("source"), sandbox.name()
        sandbox.backend.clone_volume(clone, 1, source)
        sandbox.lists({source: 1, clone: 1})
        sandbox.volume_holds(clone, "source")
        sandbox.fill(source, "changed")
        sandbox.volume_holds(clone, "source")
        sandbox.fill(clone, "mine")
        sandbox.volume_holds(source, "changed")
        sandbox.backend.clone_volume(clone, 1, source)
        sandbox.volume_holds(clone, "mine")
        sandbox.backend.delete_volume(source)
        sandbox.lists({clone: 1})
        sandbox.volume_holds(clone, "mine")

    @case("clone")
    def test_clone_of_a_clone(self, sandbox: Sandbox) -> None:
        """A clone can be cloned, and the first two can go."""
        first, second, third = sandbox.volume("bytes"), sandbox.name(), sandbox.name()
        sandbox.backend.clone_volume(second, 1, first)
        sandbox.backend.clone_volume(third, 1, second)
        sandbox.backend.delete_volume(second)
        sandbox.backend.delete_volume(first)
        sandbox.lists({third: 1})
        sandbox.volume_holds(third, "bytes")

    @case("clone")
    def test_clone_larger(self, sandbox: Sandbox) -> None:
        """A clone may be larger than its source, and reads as zeros beyond it, also on a used pool."""
        sandbox.dirty(3)
        source, clone = sandbox.volume("source"), sandbox.name()
        sandbox.backend.clone_volume(clone, 3, source)
        sandbox.lists({source: 1, clone: 3})
        sandbox.volume_holds(clone, "source", 3, of_gib=1)

    @case("clone")
    def test_clone_of_an_open_volume(self, sandbox: Sandbox) -> None:
        """A volume in use can be cloned; what is written afterwards stays out."""
        source, clone = sandbox.volume("source"), sandbox.name()
        with sandbox.backend.open_volume(source, "r+b") as file:
            sandbox.backend.clone_volume(clone, 1, source)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"changed at {offset}"))
        sandbox.volume_holds(clone, "source")
        sandbox.volume_holds(source, "changed")

    @case("clone")
    def test_clone_refusals_make_nothing(self, sandbox: Sandbox) -> None:
        """A source that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = sandbox.volume("source", 2), sandbox.volume("taken"), sandbox.name()
        refuses(VolumeMissing, sandbox.backend.clone_volume, target, 1, sandbox.name())
        refuses(BackendError, sandbox.backend.clone_volume, target, 1, source)
        refuses(NameTaken, sandbox.backend.clone_volume, taken, 2, source)
        sandbox.lists({source: 2, taken: 1})
        sandbox.volume_holds(taken, "taken")
        sandbox.volume_holds(source, "source", 2, of_gib=2)

    @case("clone")
    def test_clone_without_space_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A clone of a thousand times the pool is refused without a trace; a thin pool may make it."""
        source, target = sandbox.volume("source"), sandbox.name()
        try:
            sandbox.backend.clone_volume(target, _absurd(sandbox.backend), source)
        except BackendError:
            sandbox.lists({source: 1})
        else:
            expect(sandbox.has.thin, "A pool that is not thin must refuse a clone larger than itself.")
            sandbox.backend.delete_volume(target)
        sandbox.volume_holds(source, "source")

    @case("clone")
    def test_clone_cancelled_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A cancelled clone passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = sandbox.volume("source"), sandbox.name()
        if _cancelled(sandbox.backend.clone_volume, target, 1, source):
            sandbox.lists({source: 1})
        _steady_progress(sandbox.backend.clone_volume, target, 1, source)
        sandbox.lists({source: 1, target: 1})
        sandbox.volume_holds(target, "source")

    @case("snapshots", "clone")
    def test_volume_from_snapshot(self, sandbox: Sandbox) -> None:
        """A volume made from a snapshot has its bytes and is independent of snapshot and source, whatever changes."""
        source = sandbox.volume("first")
        shot = sandbox.snapshot(source)
        sandbox.fill(source, "second")
        made, other = sandbox.name(), sandbox.name()
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.backend.create_volume_from_snapshot(other, 1, source, shot)
        sandbox.lists({source: 1, made: 1, other: 1}, {shot: source})
        sandbox.volume_holds(made, "first")
        sandbox.fill(made, "mine")
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.volume_holds(made, "mine")
        sandbox.volume_holds(other, "first")
        sandbox.snapshot_holds(source, shot, "first")
        sandbox.volume_holds(source, "second")
        sandbox.backend.delete_snapshot(source, shot)
        sandbox.volume_holds(other, "first")
        sandbox.backend.delete_volume(source)
        sandbox.lists({made: 1, other: 1})
        sandbox.volume_holds(other, "first")
        sandbox.volume_holds(made, "mine")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_larger(self, sandbox: Sandbox) -> None:
        """A volume may be larger than its snapshot, and reads as zeros beyond it, though the source grew and wrote."""
        sandbox.dirty(3)
        source = sandbox.volume("first")
        shot = sandbox.snapshot(source)
        sandbox.backend.extend_volume(source, 2)
        sandbox.fill(source, "second")
        made = sandbox.name()
        sandbox.backend.create_volume_from_snapshot(made, 3, source, shot)
        sandbox.lists({source: 2, made: 3}, {shot: source})
        sandbox.volume_holds(made, "first", 3, of_gib=1)

    @case("snapshots", "clone")
    def test_volume_from_snapshot_refusals_make_nothing(self, sandbox: Sandbox) -> None:
        """A snapshot that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = sandbox.volume("first", 2), sandbox.volume("taken"), sandbox.name()
        shot = sandbox.snapshot(source)
        create = sandbox.backend.create_volume_from_snapshot
        refuses(VolumeMissing, create, target, 2, source, sandbox.prefix + "none")
        refuses(BackendError, create, target, 1, source, shot)
        refuses(NameTaken, create, taken, 2, source, shot)
        sandbox.lists({source: 2, taken: 1}, {shot: source})
        sandbox.volume_holds(taken, "taken")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_cancelled_leaves_nothing(self, sandbox: Sandbox) -> None:
        """A cancelled copy passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = sandbox.volume("first"), sandbox.name()
        shot = sandbox.snapshot(source)
        if _cancelled(sandbox.backend.create_volume_from_snapshot, target, 1, source, shot):
            sandbox.lists({source: 1}, {shot: source})
        _steady_progress(sandbox.backend.create_volume_from_snapshot, target, 1, source, shot)
        sandbox.lists({source: 1, target: 1}, {shot: source})
        sandbox.volume_holds(target, "first")

    # snapshots of several volumes

    @case(lacks="group_snapshots")
    def test_undeclared_group_snapshots_refuse(self, sandbox: Sandbox) -> None:
        """Without group_snapshots, it raises NotSupported and freezes nothing."""
        one, two = sandbox.volume("one"), sandbox.volume("two")
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        refuses(NotSupported, sandbox.backend.create_group_snapshot, group)
        sandbox.lists({one: 1, two: 1})

    @case("group_snapshots")
    def test_declared_group_snapshots_work(self, sandbox: Sandbox) -> None:
        """Several volumes are frozen; taken twice it is one, and each is a snapshot like any other."""
        one, two = sandbox.volume("one"), sandbox.volume("two", 2)
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        sandbox.backend.create_group_snapshot(group)
        for name in (one, two):
            sandbox.fill(name, "later")
        sandbox.backend.create_group_snapshot(group)
        sandbox.lists({one: 1, two: 2}, {shot: name for name, shot in group.items()})
        sandbox.snapshot_holds(one, group[one], "one")
        sandbox.snapshot_holds(two, group[two], "two", 2)
        sandbox.backend.delete_snapshot(one, group[one])
        sandbox.lists({one: 1, two: 2}, {group[two]: two})
        sandbox.snapshot_holds(two, group[two], "two", 2)

    @case("group_snapshots")
    def test_half_a_group_snapshot_is_taken_anew(self, sandbox: Sandbox) -> None:
        """Where some of the snapshots are there, of a call that was cut short, all are of the new instant."""
        one, two = sandbox.volume("first"), sandbox.volume("first")
        group = {one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)}
        sandbox.backend.create_snapshot(one, group[one])
        for name in (one, two):
            sandbox.fill(name, "second")
        sandbox.backend.create_group_snapshot(group)
        for name, shot in group.items():
            sandbox.snapshot_holds(name, shot, "second")

    @case("group_snapshots")
    def test_group_snapshots_are_of_one_instant(self, sandbox: Sandbox) -> None:
        """What is written to one volume after another was written is in no snapshot without the other's."""
        one, two = sandbox.volume(), sandbox.volume()
        groups = [{one: sandbox.snapshot_name(one), two: sandbox.snapshot_name(two)} for _ in range(5)]
        ended, count = threading.Event(), 0

        def write() -> None:
            nonlocal count
            with sandbox.backend.open_volume(one, "r+b") as first, sandbox.backend.open_volume(two, "r+b") as second:
                while not ended.is_set():
                    count += 1
                    for file in (first, second):
                        write_at(file, 0, count.to_bytes(8, "big"))
                        file.flush()

        def seen(volume: str, shot: str) -> int:
            with sandbox.backend.open_snapshot(volume, shot) as file:
                return int.from_bytes(read_at(file, 0, 8), "big")

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write)
            try:
                for group in groups:
                    _goes_on(lambda: count, writing.done)
                    sandbox.backend.create_group_snapshot(group)
            finally:
                ended.set()
            writing.result()  # raises if a write has failed
        for group in groups:
            first, second = (seen(name, shot) for name, shot in group.items())
            expect(
                first - second in (0, 1),
                f"Writes {first} and {second} are in snapshots of two volumes that were written in turns.",
            )
        expect(seen(one, groups[-1][one]) > 1, "Snapshots must hold what was written before.")

    @case("group_snapshots")
    def test_group_snapshot_refusals_freeze_nothing(self, sandbox: Sandbox) -> None:
        """A volume that is not there, or a name that is taken, and none of the group is frozen."""
        one, two, other = sandbox.volume("one"), sandbox.volume("two"), sandbox.volume("other")
        taken, shot = sandbox.snapshot(other), sandbox.snapshot_name(one)
        create = sandbox.backend.create_group_snapshot
        refuses(VolumeMissing, create, {one: shot, sandbox.name(): sandbox.prefix + "none"})
        refuses(NameTaken, create, {one: shot, two: taken})
        refuses(NameTaken, create, {one: shot, two: other})
        refuses(BackendError, create, {one: shot, two: shot})
        sandbox.lists({one: 1, two: 1, other: 1}, {taken: other})
        sandbox.snapshot_holds(other, taken, "other")

    # revert

    @case(lacks="revert")
    def test_undeclared_revert_refuses(self, sandbox: Sandbox) -> None:
        """Without revert, it raises NotSupported and changes nothing."""
        name = sandbox.volume("kept")
        shot = sandbox.snapshot(name) if sandbox.has.snapshots else sandbox.prefix + "s"
        sandbox.fill(name, "second")
        refuses(NotSupported, sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "second")

    @case("snapshots", "revert")
    def test_declared_revert_works(self, sandbox: Sandbox) -> None:
        """Reverting, also twice, gives the volume its snapshot's bytes; the snapshot stays and can serve again."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        for tag in ("second", "third"):
            sandbox.fill(name, tag)
            for _ in range(2):
                sandbox.backend.revert_volume(name, shot)
                sandbox.lists({name: 1}, {shot: name})
                sandbox.volume_holds(name, "first")
                sandbox.snapshot_holds(name, shot, "first")

    @case("snapshots", "revert")
    def test_revert_removes_what_was_written_elsewhere(self, sandbox: Sandbox) -> None:
        """Reverting also brings back zeros where the snapshot had none of the bytes written since."""
        name = sandbox.volume()
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "written")
        sandbox.backend.revert_volume(name, shot)
        sandbox.volume_is_zero(name)

    @case("snapshots", "revert")
    def test_revert_after_extend_restores_the_size(self, sandbox: Sandbox) -> None:
        """Reverting gives back the snapshot's size; extended again, the grown part reads as zeros, not as it was."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.backend.extend_volume(name, 3)
        sandbox.fill(name, "second")
        sandbox.fill(name, "grown", GIB, 3 * GIB)
        sandbox.backend.revert_volume(name, shot)
        sandbox.lists({name: 1}, {shot: name})
        sandbox.volume_holds(name, "first")
        sandbox.backend.extend_volume(name, 3)
        sandbox.volume_holds(name, "first", 3, of_gib=1)

    @case("snapshots", "revert")
    def test_snapshots_around_a_revert_stay_usable(self, sandbox: Sandbox) -> None:
        """Snapshots taken before, after and since the one reverted to keep their bytes and can be deleted."""
        name = sandbox.volume()
        shots = {}
        for tag in "abc":
            sandbox.fill(name, tag)
            shots[tag] = sandbox.snapshot(name)
        sandbox.backend.revert_volume(name, shots["b"])
        sandbox.volume_holds(name, "b")
        sandbox.fill(name, "d")
        shots["d"] = sandbox.snapshot(name)
        for tag, shot in shots.items():
            sandbox.snapshot_holds(name, shot, tag)
        sandbox.backend.revert_volume(name, shots["a"])
        sandbox.backend.revert_volume(name, shots["c"])
        sandbox.volume_holds(name, "c")
        sandbox.lists({name: 1}, dict.fromkeys(shots.values(), name))
        for tag in "bdac":
            sandbox.backend.delete_snapshot(name, shots.pop(tag))
        sandbox.volume_holds(name, "c")
        sandbox.backend.delete_volume(name)

    @case("snapshots", "revert", "clone")
    def test_clones_survive_a_revert(self, sandbox: Sandbox) -> None:
        """A volume made from a snapshot keeps its bytes when the source is reverted to that snapshot."""
        source, made = sandbox.volume("first"), sandbox.name()
        shot = sandbox.snapshot(source)
        sandbox.backend.create_volume_from_snapshot(made, 1, source, shot)
        sandbox.fill(made, "mine")
        sandbox.fill(source, "second")
        sandbox.backend.revert_volume(source, shot)
        sandbox.volume_holds(source, "first")
        sandbox.volume_holds(made, "mine")

    @case("snapshots", "revert")
    def test_revert_refusals(self, sandbox: Sandbox) -> None:
        """Reverting to what is not there raises VolumeMissing and changes nothing."""
        name, other = sandbox.volume("kept"), sandbox.volume("other")
        shot = sandbox.snapshot(other)
        refuses(VolumeMissing, sandbox.backend.revert_volume, name, sandbox.prefix + "none")
        refuses(BackendError, sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "kept")
        sandbox.lists({name: 1, other: 1}, {shot: other})

    @case("snapshots", "revert")
    def test_revert_cancelled_can_be_completed(self, sandbox: Sandbox) -> None:
        """A cancelled revert passes the cancellation on; asked again, the volume equals the snapshot."""
        name = sandbox.volume("first")
        shot = sandbox.snapshot(name)
        sandbox.fill(name, "second")
        _cancelled(sandbox.backend.revert_volume, name, shot)
        _steady_progress(sandbox.backend.revert_volume, name, shot)
        sandbox.volume_holds(name, "first")
        sandbox.lists({name: 1}, {shot: name})

    # --- managing

    @case(lacks="manage")
    def test_undeclared_manage_refuses(self, sandbox: Sandbox) -> None:
        """A backend that does not declare manage raises NotSupported and changes nothing."""
        name = sandbox.volume("kept")
        refuses(NotSupported, sandbox.backend.list_manageable)
        refuses(NotSupported, sandbox.backend.list_manageable_snapshots)
        refuses(NotSupported, sandbox.backend.manage_volume, name, sandbox.prefix + "ours")
        refuses(NotSupported, sandbox.backend.manage_snapshot, name, "s", sandbox.prefix + "shot")
        sandbox.lists({name: 1}, {})

    @case("manage")
    def test_declared_manage_works(self, sandbox: Sandbox) -> None:
        """A volume is listed, and managed under a new name with its bytes; twice is once."""
        name, ours = sandbox.volume("theirs"), sandbox.name()
        found = {one.name: one for one in sandbox.backend.list_manageable()}
        expect(name in found, "list_manageable must name every volume.")
        expect(found[name].size_bytes == GIB, "list_manageable must tell the size in bytes.")
        expect(
            sandbox.backend.manage_volume(found[name].reference, ours) == 1, "manage_volume returns the size in GiB."
        )
        expect(sandbox.backend.manage_volume(found[name].reference, ours) == 1, "Managed twice is managed once.")
        sandbox.lists({ours: 1}, {})
        sandbox.volume_holds(ours, "theirs")
        sandbox.backend.extend_volume(ours, 2)
        sandbox.lists({ours: 2}, {})

    @case("manage")
    def test_manage_refusals_change_nothing(self, sandbox: Sandbox) -> None:
        """What is not there, a name that is taken and names that are none are refused."""
        name, other = sandbox.volume("one"), sandbox.volume("two")
        reference = {one.name: one for one in sandbox.backend.list_manageable()}[name].reference
        missing = reference.replace(name, sandbox.prefix + "none")
        refuses(VolumeMissing, sandbox.backend.manage_volume, missing, sandbox.prefix + "ours")
        refuses(NameTaken, sandbox.backend.manage_volume, reference, other)
        for bad in ("", "..", "../up", "-f", "a/b", "/etc/passwd", "a@b"):
            refuses(BackendError, sandbox.backend.manage_volume, bad, sandbox.prefix + "ours")
        refuses(BackendError, sandbox.backend.manage_volume, reference, "../up")
        sandbox.lists({name: 1, other: 1}, {})
        sandbox.volume_holds(name, "one")
        sandbox.volume_holds(other, "two")

    @case("manage")
    def test_manage_of_an_open_volume_is_refused(self, sandbox: Sandbox) -> None:
        """What somebody writes to is not renamed."""
        name = sandbox.volume("theirs")
        reference = {one.name: one for one in sandbox.backend.list_manageable()}[name].reference
        with sandbox.backend.open_volume(name, "r+b"):
            refuses(InUse, sandbox.backend.manage_volume, reference, sandbox.prefix + "ours")
        sandbox.lists({name: 1}, {})

    @case("manage", "snapshots")
    def test_snapshots_are_taken_over(self, sandbox: Sandbox) -> None:
        """A snapshot of a volume of ours gets a new name and keeps its bytes; twice is once."""
        name = sandbox.volume("before")
        theirs, ours = sandbox.snapshot(name), sandbox.snapshot_name(name)
        sandbox.fill(name, "after")
        found = {one.name: one for one in sandbox.backend.list_manageable_snapshots()}
        expect(theirs in found, "list_manageable_snapshots must name every snapshot.")
        expect(found[theirs].size_bytes == GIB, "list_manageable_snapshots must tell the size in bytes.")
        volumes = {one.reference for one in sandbox.backend.list_manageable()}
        expect(found[theirs].volume in volumes, "A snapshot must name its volume as list_manageable does.")
        for _ in range(2):
            sandbox.backend.manage_snapshot(name, found[theirs].reference, ours)
        sandbox.lists({name: 1}, {ours: name})
        sandbox.snapshot_holds(name, ours, "before")
        other = sandbox.volume("other")
        refuses(BackendError, sandbox.backend.manage_snapshot, other, ours, sandbox.prefix + "third")
        sandbox.lists({name: 1, other: 1}, {ours: name})


class _Thrown(BackendError):
    """The exception that a case raises while a backend has a volume open."""


def _throw_inside(opened: AbstractContextManager[BinaryIO]) -> None:
    with opened:
        raise _Thrown("thrown by the conformance suite")


def _enter(opener: Callable[..., AbstractContextManager[BinaryIO]], *args: Any) -> None:
    with opener(*args):
        pass


def _goes_on(count: Callable[[], int], has_ended: Callable[[], bool]) -> None:
    """Wait until the count has risen by at least two, or the counting has ended."""
    before = count()
    eventually(lambda: count() > before + 1 or has_ended(), "A volume must take writes.", WRITES_WITHIN_S)


def _absurd(backend: Backend) -> int:
    """Return a size in GiB that no pool has, and whose number of bytes fits in 63 bits."""
    return min(int(backend.capacity().total_gib) * 1000 + 1000, 2**32)


def _cancelled(call: Callable[..., None], *args: Any) -> bool:
    """Call with a progress that cancels; return False if the backend was done before it reported any progress."""
    cancel = Cancelled()
    try:
        call(*args, cancel)
    except OperationCancelled:
        expect(cancel.called, "OperationCancelled must come from the progress callback.")
        return True
    expect(not cancel.called, "The backend swallowed the exception its progress callback raised.")
    return False


def _steady_progress(call: Callable[..., None], *args: Any) -> None:
    """Call, and fail unless the reported percentages are whole numbers from 0 to 100 that never fall."""
    seen: list[int] = []
    call(*args, seen.append)
    good = all(isinstance(percent, int) and 0 <= percent <= 100 for percent in seen) and seen == sorted(seen)
    expect(good, f"Progress must rise from 0 to 100 in whole numbers, but was {seen}.")


# --- the command line --------------------------------------------------------------------------------------


def cases(suite: BackendConformance | None = None) -> Sequence[tuple[str, Callable[[Backend], None]]]:
    """Return name and function of every case, in the order of this file."""
    return cases_of(suite or BackendConformance())


def run(backend: Backend, report: Callable[[str], None] = print, *, only: str = "") -> Sequence[Result]:
    """Run every case whose name contains ``only`` and report a line for each; failed cases are in the results."""
    return run_cases(BackendConformance(), backend, report, only)
