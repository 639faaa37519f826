"""The contract as experiments: what every backend must do, tried on a real one.

Two doors, the same cases. pytest: subclass ``BackendConformance`` and give it a ``backend`` fixture. Command line:
``blockstore backend check NAME`` calls ``run``. What a case works with is in ``blockstore.conformance``.
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
from blockstore.conformance import (
    BLOCK,
    Bench,
    Result,
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
"""How long a pool's figures may take to follow."""
WRITES_WITHIN_S = 30.0
"""How long two writes may take, beside a snapshot."""

HOSTILE_NAMES = (
    "", ".", "..", "../up", "a/b", "/etc/passwd", "-f", "--config=x", "@tag", "a b", "a\nb", "a\n", "a\0b", "a;reboot",
    "$(id)", "a*", "a.raw", "json:{}", "nbd:x", "a@b", "1st", "_x", "ünicode", "a" * 64,
)  # fmt: skip


# --- what a case works with --------------------------------------------------------------------------------


class Cancelled:
    """A progress callback by which the operator cancels at once."""

    def __init__(self) -> None:
        self.called = False

    def __call__(self, _percent: int) -> None:
        self.called = True
        raise OperationCancelled("The conformance suite cancelled this.")


def case(
    *needs: str, lacks: str = ""
) -> Callable[[Callable[[Any, Bench], None]], Callable[[BackendConformance, Backend], None]]:
    """Turn a method that takes a Bench into one that takes a backend; skip it where the capabilities say so."""

    def wrap(body: Callable[[Any, Bench], None]) -> Callable[[BackendConformance, Backend], None]:
        def test(self: BackendConformance, backend: Backend) -> None:
            backend.check()
            for flag in needs:
                if not getattr(backend.capabilities(), flag):
                    raise SkipTest(f"{backend.name} does not declare {flag}.")
            if lacks and getattr(backend.capabilities(), lacks):
                raise SkipTest(f"{backend.name} declares {lacks}.")
            with Bench(backend) as bench:
                body(self, bench)

        return named_after(body, test)

    return wrap


# --- the cases ---------------------------------------------------------------------------------------------


class BackendConformance:
    """Every promise of contract.py, as a case with its sentence."""

    # health and figures

    @case()
    def test_check_twice(self, bench: Bench) -> None:
        """check() succeeds, again and again, and changes nothing."""
        bench.backend.check()
        bench.backend.check()
        bench.lists({})

    @case()
    def test_capabilities_are_steady_and_whole(self, bench: Bench) -> None:
        """Capabilities stay the same and say whether space is taken when written or when created."""
        has = bench.backend.capabilities()
        expect(has == bench.has, "capabilities() must answer the same each time.")
        expect(has.thin or has.thick, "capabilities() must declare thin, thick or both.")
        expect(has.storage_protocol, "capabilities() must name a storage_protocol.")
        expect(has.snapshots or not has.revert, "revert is declared without snapshots, which it needs.")
        expect(has.snapshots or not has.group_snapshots, "group_snapshots is declared without snapshots.")

    @case()
    def test_capacity_is_plausible(self, bench: Bench) -> None:
        """The pool's figures make sense: 0 <= free <= total, and the total is not nothing."""
        now = bench.backend.capacity()
        expect(now.total_gib > 0, f"total_gib must be more than 0, but is {now.total_gib}.")
        expect(0 <= now.free_gib <= now.total_gib, f"free_gib must be within 0 and total_gib: {now}.")
        expect(now.provisioned_gib is None or now.provisioned_gib >= 0, f"provisioned_gib is negative: {now}.")

    @case()
    def test_capacity_moves_with_volumes(self, bench: Bench) -> None:
        """A new volume takes its space at once when thick, and next to none when thin; deleting gives it back."""
        before = bench.backend.capacity()
        name = bench.volume(size_gib=2)
        if bench.has.thin is not bench.has.thick:

            def taken() -> float:
                return before.free_gib - bench.backend.capacity().free_gib

            if bench.has.thick:
                eventually(lambda: taken() > 1.5, "free_gib must fall by the size of a new thick volume.", PATIENCE_S)
            else:
                eventually(lambda: taken() < 1, "free_gib must not fall by the size of a new thin volume.", PATIENCE_S)
        if before.provisioned_gib is not None:
            was = before.provisioned_gib
            eventually(
                lambda: (bench.backend.capacity().provisioned_gib or 0) - was > 1.9,
                "provisioned_gib must grow by a new volume's size.",
                PATIENCE_S,
            )
        bench.backend.delete_volume(name)
        eventually(
            lambda: bench.backend.capacity().free_gib > before.free_gib - 1,
            "free_gib must come back when a volume is deleted.",
            PATIENCE_S,
        )

    # whose it is

    @case(lacks="owner_mark")
    def test_undeclared_owner_mark_refuses(self, bench: Bench) -> None:
        """Without owner_mark, asking for it and changing it raise NotSupported."""
        refuses(NotSupported, bench.backend.owner)
        refuses(NotSupported, bench.backend.change_owner, None, "somebody")

    @case("owner_mark")
    def test_declared_owner_mark_works(self, bench: Bench) -> None:
        """The mark of an installation stays when another one comes, unless that one names it as the former."""
        backend = bench.backend
        before = backend.owner()
        first = before or bench.name()
        try:
            backend.change_owner(None, first)
            expect(backend.owner() == first, "owner() must tell the mark that change_owner() made.")
            identity = backend.identity()
            expect(
                _IDENTITY.fullmatch(identity) is not None,
                f"identity() must be 1 to 200 printable characters: {identity!r}.",
            )
            backend.change_owner(None, bench.name())
            backend.change_owner("somebody-else", bench.name())
            backend.change_owner("somebody-else", None)
            expect(backend.owner() == first, "A mark must stay when its owner is not named as the former one.")
            bench.lists({})
            if before is None:  # else a service that runs would see it change
                second = bench.name()
                backend.change_owner(first, second)
                expect(backend.owner() == second, "A mark must change when its owner is named as the former one.")
                name = bench.volume()
                backend.delete_volume(name)
                expect(backend.owner() == second, "A mark must stay when volumes go.")
                backend.change_owner(second, second)
            expect(backend.identity() == identity, "identity() must stay the same, whoever owns the storage.")
        finally:
            if before is None:
                backend.change_owner(backend.owner(), None)
        expect(backend.owner() == before, "change_owner(FORMER, None) must remove the mark.")

    @case("owner_mark")
    def test_storage_that_is_not_recognised_is_not_touched(self, bench: Bench) -> None:
        """Where another storage is recorded, that is proved, and a missing volume is not taken for a deleted one."""
        backend = bench.backend
        name, missing = bench.volume(), bench.name()
        before = backend.recognised
        backend.recognise(f"{backend.identity()}-not")
        try:
            refuses(Unreachable, backend.prove_identity)
            refuses(Unreachable, backend.delete_volume, missing)
        finally:
            backend.recognise(before)
        backend.prove_identity()
        backend.delete_volume(missing)
        bench.lists({name: 1})

    # create

    @case()
    def test_create_makes_a_volume_of_zeros(self, bench: Bench) -> None:
        """A new volume is listed, has exactly its size and reads as zeros."""
        one, three = bench.volume(), bench.volume(size_gib=3)
        bench.lists({one: 1, three: 3})
        bench.volume_is_zero(one)
        bench.volume_is_zero(three, 3)

    @case()
    def test_create_never_shows_old_bytes(self, bench: Bench) -> None:
        """A volume made where a written one was deleted reads as zeros."""
        for _ in range(2):
            bench.dirty()
        bench.volume_is_zero(bench.volume())

    @case()
    def test_create_twice_is_one_volume(self, bench: Bench) -> None:
        """Creating what is there succeeds and keeps its bytes."""
        name = bench.volume("kept")
        bench.backend.create_volume(name, 1)
        bench.lists({name: 1})
        bench.volume_holds(name, "kept")

    @case()
    def test_create_same_name_other_size_is_refused(self, bench: Bench) -> None:
        """Creating a name that exists with another size raises NameTaken and changes nothing."""
        name = bench.volume("kept", 2)
        refuses(NameTaken, bench.backend.create_volume, name, 1)
        refuses(NameTaken, bench.backend.create_volume, name, 3)
        bench.lists({name: 2})
        bench.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_no_space_leaves_nothing(self, bench: Bench) -> None:
        """A volume of a thousand times the pool is refused without a trace; a thin pool may take it, and removes it."""
        name = bench.name()
        try:
            bench.backend.create_volume(name, _absurd(bench.backend))
        except BackendError as exc:
            bench.lists({})
            if bench.has.thick and not bench.has.thin:
                expect(isinstance(exc, NoSpace), f"A full pool must raise NoSpace, not {type(exc).__name__}: {exc}")
        else:
            expect(bench.has.thin, "A pool that is not thin must refuse a volume larger than itself.")
            bench.lists({name: _absurd(bench.backend)})
            bench.backend.delete_volume(name)
        bench.lists({})
        bench.backend.create_volume(name, 1)
        bench.volume_is_zero(name)

    @case()
    def test_parallel_creates_of_different_names(self, bench: Bench) -> None:
        """Several threads create, write, freeze and delete different volumes at once."""
        names = [bench.name() for _ in range(8)]
        shots = {name: bench.snapshot_name(name) for name in names} if bench.has.snapshots else {}

        def work(name: str) -> None:
            bench.backend.create_volume(name, 1)
            bench.fill(name, name)
            if shots:
                bench.backend.create_snapshot(name, shots[name])

        def remove(name: str) -> None:
            if shots:
                bench.backend.delete_snapshot(name, shots[name])
            bench.backend.delete_volume(name)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, names))
            bench.lists(dict.fromkeys(names, 1), {shot: name for name, shot in shots.items()})
            for name in names:
                bench.volume_holds(name, name)
            list(threads.map(remove, names))
        bench.lists({})

    # delete

    @case()
    def test_delete_twice(self, bench: Bench) -> None:
        """Deleting removes a volume; deleting again, or what never was, succeeds."""
        name, other = bench.volume("gone"), bench.volume("kept")
        bench.backend.delete_volume(name)
        bench.backend.delete_volume(name)
        bench.backend.delete_volume(bench.name())
        bench.lists({other: 1})
        bench.volume_holds(other, "kept")

    @case()
    def test_delete_while_open_is_refused(self, bench: Bench) -> None:
        """Deleting a volume that is open raises InUse and keeps its bytes."""
        name = bench.volume("kept")
        with bench.backend.open_volume(name, "rb"):
            refuses(InUse, bench.backend.delete_volume, name)
        bench.volume_holds(name, "kept")
        bench.backend.delete_volume(name)

    @case()
    def test_delete_reports_progress_and_can_be_cancelled(self, bench: Bench) -> None:
        """Deleting passes a cancellation on, and can be asked again."""
        name = bench.volume("gone")
        _cancelled(bench.backend.delete_volume, name)
        bench.backend.delete_volume(name)
        bench.lists({})

    # open

    @case()
    def test_bytes_survive(self, bench: Bench) -> None:
        """What was written is read back, also across block borders and at odd offsets, and nothing else is."""
        name = bench.volume("kept")
        with bench.backend.open_volume(name, "r+b") as file:
            write_at(file, 3 * BLOCK - 3, b"odd bytes")
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes just written must be read back.")
        with bench.backend.open_volume(name, "rb") as file:
            expect(read_at(file, 3 * BLOCK - 4, 11) == b"\0odd bytes\0", "Bytes must survive closing the volume.")
        bench.volume_holds(name, "kept")

    @case()
    def test_writing_past_the_end_is_impossible(self, bench: Bench) -> None:
        """A write that crosses the end fails or is cut; the size stays exact."""
        name = bench.volume()
        for offset in (GIB - 5, GIB, GIB + 4096):
            try:
                with bench.backend.open_volume(name, "r+b") as file:
                    file.seek(offset)
                    file.write(b"0123456789")
            except (OSError, ValueError, BackendError):
                pass
            with bench.backend.open_volume(name, "rb") as file:
                size = file.seek(0, os.SEEK_END)
            expect(size == GIB, f"The volume must stay {GIB} bytes long, but is {size}.")
        bench.lists({name: 1})

    @case()
    def test_open_for_reading_does_not_write(self, bench: Bench) -> None:
        """A volume opened for reading cannot be changed."""
        name = bench.volume("kept")
        try:
            with bench.backend.open_volume(name, "rb") as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        bench.volume_holds(name, "kept")

    @case()
    def test_open_missing_is_refused(self, bench: Bench) -> None:
        """Opening a volume that is not there raises VolumeMissing and makes nothing."""
        name = bench.name()
        refuses(VolumeMissing, _enter, bench.backend.open_volume, name, "rb")
        refuses(VolumeMissing, _enter, bench.backend.open_volume, name, "r+b")
        bench.lists({})

    @case()
    def test_an_error_inside_open_comes_out(self, bench: Bench) -> None:
        """An exception raised while a volume is open comes out unchanged, and the volume is closed."""
        name = bench.volume()
        refuses(_Thrown, _throw_inside, bench.backend.open_volume(name, "r+b"))
        bench.backend.delete_volume(name)

    @case()
    def test_the_located_file_has_the_same_bytes(self, bench: Bench) -> None:
        """Where a volume lies on this node in raw form, the file or device has exactly the volume's bytes."""
        name = bench.volume("kept")
        located = bench.backend.locate(name)
        if located is None or located.format != "raw":
            raise SkipTest(f"{bench.backend.name} gives no raw file or device.")
        with located.path.open("rb", buffering=0) as file:
            holds(file, f"path {located.path}", "kept", 1, 1)

    # extend

    @case()
    def test_extend_keeps_bytes_and_grows_zeros(self, bench: Bench) -> None:
        """Extending, once or twice, keeps the bytes; the grown part reads as zeros, also on a used pool."""
        bench.dirty(2)
        name = bench.volume("kept")
        for _ in range(2):
            bench.backend.extend_volume(name, 3)
            bench.lists({name: 3})
            bench.volume_holds(name, "kept", 3, of_gib=1)
        bench.backend.create_volume(name, 3)

    @case()
    def test_extend_to_less_is_refused(self, bench: Bench) -> None:
        """Extending to less than the present size raises and cuts nothing."""
        name = bench.volume("kept", 2)
        refuses(BackendError, bench.backend.extend_volume, name, 1)
        bench.volume_holds(name, "kept", 2, of_gib=2)

    @case()
    def test_extend_missing_is_refused(self, bench: Bench) -> None:
        """Extending a volume that is not there raises VolumeMissing and makes nothing."""
        refuses(VolumeMissing, bench.backend.extend_volume, bench.name(), 2)
        bench.lists({})

    @case()
    def test_extend_without_space_changes_nothing(self, bench: Bench) -> None:
        """Extending to a thousand times the pool is refused and keeps size and bytes; a thin pool may do it."""
        name = bench.volume("kept")
        try:
            bench.backend.extend_volume(name, _absurd(bench.backend))
        except BackendError:
            bench.lists({name: 1})
            bench.volume_holds(name, "kept")
        else:
            expect(bench.has.thin, "A pool that is not thin must refuse to extend a volume beyond itself.")

    @case("online_extend")
    def test_declared_online_extend_works(self, bench: Bench) -> None:
        """A volume grows while it is open, and what has it open goes on."""
        name = bench.volume("kept")
        with bench.backend.open_volume(name, "r+b") as file:
            bench.backend.extend_volume(name, 2)
            expect(read_at(file, 0) == pattern("kept at 0"), "An open volume must stay readable when it grows.")
            write_at(file, 0, pattern("kept at 0"))
        bench.volume_holds(name, "kept", 2, of_gib=1)

    @case(lacks="online_extend")
    def test_undeclared_online_extend_refuses(self, bench: Bench) -> None:
        """Without online_extend, extending a volume that is open raises InUse and changes nothing."""
        name = bench.volume("kept")
        with bench.backend.open_volume(name, "r+b"):
            refuses(InUse, bench.backend.extend_volume, name, 2)
        bench.volume_holds(name, "kept")
        bench.backend.extend_volume(name, 2)

    @case("multiattach")
    def test_declared_multiattach_works(self, bench: Bench) -> None:
        """A volume is open twice at once, and each sees what the other wrote."""
        name = bench.volume()
        with bench.backend.open_volume(name, "r+b") as one, bench.backend.open_volume(name, "r+b") as two:
            write_at(one, 0, pattern("one"))
            write_at(two, GIB // 2, pattern("two"))
            one.flush()
            two.flush()
            expect(read_at(two, 0) == pattern("one"), "The second opener must see what the first wrote.")
            expect(read_at(one, GIB // 2) == pattern("two"), "The first opener must see what the second wrote.")

    # names

    @case()
    def test_hostile_names_are_refused(self, bench: Bench) -> None:
        """A name that is a path, an option, a pattern or too long is refused by every method with BackendError."""
        good = bench.volume("kept")
        for bad in HOSTILE_NAMES:
            refuses(BackendError, bench.backend.create_volume, bad, 1)
            refuses(BackendError, bench.backend.delete_volume, bad)
            refuses(BackendError, bench.backend.extend_volume, bad, 2)
            refuses(BackendError, _enter, bench.backend.open_volume, bad, "r+b")
            if bench.has.snapshots:
                refuses(BackendError, bench.backend.create_snapshot, good, bad)
                refuses(BackendError, bench.backend.create_snapshot, bad, "good")
                refuses(BackendError, bench.backend.delete_snapshot, good, bad)
                refuses(BackendError, bench.backend.delete_snapshot, bad, "good")
                refuses(BackendError, _enter, bench.backend.open_snapshot, good, bad)
            if bench.has.group_snapshots:
                refuses(BackendError, bench.backend.create_group_snapshot, {good: bench.prefix + "s", bad: "good"})
                refuses(BackendError, bench.backend.create_group_snapshot, {good: bad})
            if bench.has.clone:
                refuses(BackendError, bench.backend.clone_volume, bad, 1, good)
                refuses(BackendError, bench.backend.clone_volume, bench.prefix + "x", 1, bad)
                refuses(BackendError, bench.backend.create_volume_from_snapshot, bad, 1, good, "good")
                refuses(BackendError, bench.backend.create_volume_from_snapshot, bench.prefix + "x", 1, good, bad)
            if bench.has.revert:
                refuses(BackendError, bench.backend.revert_volume, good, bad)
                refuses(BackendError, bench.backend.revert_volume, bad, "good")
        bench.lists({good: 1})
        bench.volume_holds(good, "kept")

    @case()
    def test_names_may_be_long(self, bench: Bench) -> None:
        """Names of 63 characters work, and differ in their last one."""
        one, two = ((bench.name() + "-" + "x" * 63)[:62] + end for end in "ab")
        bench.made_volumes += [one, two]
        bench.backend.create_volume(one, 1)
        bench.backend.create_volume(two, 2)
        bench.lists({one: 1, two: 2})

    # snapshots

    @case(lacks="snapshots")
    def test_undeclared_snapshots_refuse(self, bench: Bench) -> None:
        """Without snapshots, each of their methods raises NotSupported."""
        name = bench.volume("kept")
        refuses(NotSupported, bench.backend.create_snapshot, name, bench.prefix + "s")
        refuses(NotSupported, bench.backend.delete_snapshot, name, bench.prefix + "s")
        refuses(NotSupported, _enter, bench.backend.open_snapshot, name, bench.prefix + "s")
        bench.lists({name: 1})
        bench.volume_holds(name, "kept")

    @case("snapshots")
    def test_declared_snapshots_work(self, bench: Bench) -> None:
        """A snapshot stays as it was while its volume is overwritten and extended; made twice, it is one."""
        name = bench.volume("first")
        shot = bench.snapshot(name)
        bench.fill(name, "second")
        bench.backend.create_snapshot(name, shot)
        bench.lists({name: 1}, {shot: name})
        bench.snapshot_holds(name, shot, "first")
        bench.volume_holds(name, "second")
        bench.backend.extend_volume(name, 2)
        bench.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_snapshot_of_an_open_volume(self, bench: Bench) -> None:
        """A volume in use can be frozen; what is written afterwards stays out."""
        name = bench.volume("first")
        with bench.backend.open_volume(name, "r+b") as file:
            shot = bench.snapshot(name)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"second at {offset}"))
        bench.snapshot_holds(name, shot, "first")
        bench.volume_holds(name, "second")

    @case("snapshots")
    def test_a_snapshot_cannot_be_written(self, bench: Bench) -> None:
        """A snapshot is opened for reading only."""
        name = bench.volume("first")
        shot = bench.snapshot(name)
        try:
            with bench.backend.open_snapshot(name, shot) as file:
                file.write(b"changed")
        except (OSError, ValueError, BackendError):
            pass
        bench.snapshot_holds(name, shot, "first")

    @case("snapshots")
    def test_delete_snapshot_twice(self, bench: Bench) -> None:
        """Deleting a snapshot keeps the volume; deleting again, or what never was, succeeds."""
        name = bench.volume("kept")
        shot = bench.snapshot(name)
        for _ in range(2):
            bench.backend.delete_snapshot(name, shot)
            bench.lists({name: 1})
        bench.backend.delete_snapshot(name, bench.snapshot_name(name))
        bench.backend.delete_snapshot(bench.name(), bench.snapshot_name(name))
        bench.volume_holds(name, "kept")

    @case("snapshots")
    def test_delete_snapshot_can_be_cancelled(self, bench: Bench) -> None:
        """Deleting a snapshot passes a cancellation on, and can be asked again."""
        name = bench.volume("kept")
        shot = bench.snapshot(name)
        _cancelled(bench.backend.delete_snapshot, name, shot)
        bench.backend.delete_snapshot(name, shot)
        bench.lists({name: 1})

    @case("snapshots")
    def test_delete_volume_with_snapshots_is_refused(self, bench: Bench) -> None:
        """Deleting a volume that has snapshots raises InUse and keeps both."""
        name = bench.volume("kept")
        shot = bench.snapshot(name)
        for _ in range(2):
            refuses(InUse, bench.backend.delete_volume, name)
        bench.lists({name: 1}, {shot: name})
        bench.snapshot_holds(name, shot, "kept")
        bench.volume_holds(name, "kept")
        bench.backend.delete_snapshot(name, shot)
        bench.backend.delete_volume(name)

    @case("snapshots")
    def test_snapshot_names_are_not_shared(self, bench: Bench) -> None:
        """One name is one thing: taken by another volume's snapshot, by a volume, or by a snapshot, it is refused."""
        one, two = bench.volume("one"), bench.volume("two")
        shot = bench.snapshot_name(one, two)
        bench.backend.create_snapshot(one, shot)
        refuses(NameTaken, bench.backend.create_snapshot, two, shot)
        refuses(NameTaken, bench.backend.create_snapshot, one, two)
        refuses(NameTaken, bench.backend.create_volume, shot, 1)
        if bench.has.clone:
            refuses(NameTaken, bench.backend.clone_volume, shot, 1, two)
            refuses(NameTaken, bench.backend.create_volume_from_snapshot, shot, 1, one, shot)
        bench.lists({one: 1, two: 1}, {shot: one})
        bench.snapshot_holds(one, shot, "one")
        bench.backend.delete_snapshot(one, shot)
        bench.backend.create_snapshot(two, shot)
        bench.lists({one: 1, two: 1}, {shot: two})
        bench.snapshot_holds(two, shot, "two")

    @case("snapshots")
    def test_missing_sources_of_snapshots(self, bench: Bench) -> None:
        """A snapshot of a volume that is not there, or the bytes of one that is not there, raise VolumeMissing."""
        name = bench.volume()
        refuses(VolumeMissing, bench.backend.create_snapshot, bench.name(), bench.prefix + "s")
        refuses(VolumeMissing, _enter, bench.backend.open_snapshot, name, bench.prefix + "s")
        refuses(VolumeMissing, _enter, bench.backend.open_snapshot, bench.name(), bench.prefix + "s")
        bench.lists({name: 1})

    @case("snapshots")
    def test_several_snapshots_go_in_any_order(self, bench: Bench) -> None:
        """Of five snapshots the middle, the oldest and the newest are deleted; the others keep their bytes."""
        name = bench.volume()
        shots = {}
        for tag in "abcde":
            bench.fill(name, tag)
            shots[tag] = bench.snapshot(name)
        bench.fill(name, "now")
        for tag in "cae":
            bench.backend.delete_snapshot(name, shots.pop(tag))
            bench.lists({name: 1}, dict.fromkeys(shots.values(), name))
            for left, shot in shots.items():
                bench.snapshot_holds(name, shot, left)
        bench.volume_holds(name, "now")

    # clones

    @case(lacks="clone")
    def test_undeclared_clone_refuses(self, bench: Bench) -> None:
        """Without clone, volumes from volumes and from snapshots raise NotSupported and make nothing."""
        source = bench.volume("kept")
        target = bench.name()
        refuses(NotSupported, bench.backend.clone_volume, target, 1, source)
        shot = bench.snapshot(source) if bench.has.snapshots else bench.prefix + "s"
        refuses(NotSupported, bench.backend.create_volume_from_snapshot, target, 1, source, shot)
        bench.lists({source: 1}, {shot: source} if bench.has.snapshots else {})

    @case("clone")
    def test_declared_clone_works(self, bench: Bench) -> None:
        """A clone has its source's bytes and is independent of it: each changes, either goes; no helper stays."""
        source, clone = bench.volume("source"), bench.name()
        bench.backend.clone_volume(clone, 1, source)
        bench.lists({source: 1, clone: 1})
        bench.volume_holds(clone, "source")
        bench.fill(source, "changed")
        bench.volume_holds(clone, "source")
        bench.fill(clone, "mine")
        bench.volume_holds(source, "changed")
        bench.backend.clone_volume(clone, 1, source)
        bench.volume_holds(clone, "mine")
        bench.backend.delete_volume(source)
        bench.lists({clone: 1})
        bench.volume_holds(clone, "mine")

    @case("clone")
    def test_clone_of_a_clone(self, bench: Bench) -> None:
        """A clone can be cloned, and the first two can go."""
        first, second, third = bench.volume("bytes"), bench.name(), bench.name()
        bench.backend.clone_volume(second, 1, first)
        bench.backend.clone_volume(third, 1, second)
        bench.backend.delete_volume(second)
        bench.backend.delete_volume(first)
        bench.lists({third: 1})
        bench.volume_holds(third, "bytes")

    @case("clone")
    def test_clone_larger(self, bench: Bench) -> None:
        """A clone may be larger than its source, and reads as zeros beyond it, also on a used pool."""
        bench.dirty(3)
        source, clone = bench.volume("source"), bench.name()
        bench.backend.clone_volume(clone, 3, source)
        bench.lists({source: 1, clone: 3})
        bench.volume_holds(clone, "source", 3, of_gib=1)

    @case("clone")
    def test_clone_of_an_open_volume(self, bench: Bench) -> None:
        """A volume in use can be cloned; what is written afterwards stays out."""
        source, clone = bench.volume("source"), bench.name()
        with bench.backend.open_volume(source, "r+b") as file:
            bench.backend.clone_volume(clone, 1, source)
            for offset in places(0, GIB):
                write_at(file, offset, pattern(f"changed at {offset}"))
        bench.volume_holds(clone, "source")
        bench.volume_holds(source, "changed")

    @case("clone")
    def test_clone_refusals_make_nothing(self, bench: Bench) -> None:
        """A source that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = bench.volume("source", 2), bench.volume("taken"), bench.name()
        refuses(VolumeMissing, bench.backend.clone_volume, target, 1, bench.name())
        refuses(BackendError, bench.backend.clone_volume, target, 1, source)
        refuses(NameTaken, bench.backend.clone_volume, taken, 2, source)
        bench.lists({source: 2, taken: 1})
        bench.volume_holds(taken, "taken")
        bench.volume_holds(source, "source", 2, of_gib=2)

    @case("clone")
    def test_clone_without_space_leaves_nothing(self, bench: Bench) -> None:
        """A clone of a thousand times the pool is refused without a trace; a thin pool may make it."""
        source, target = bench.volume("source"), bench.name()
        try:
            bench.backend.clone_volume(target, _absurd(bench.backend), source)
        except BackendError:
            bench.lists({source: 1})
        else:
            expect(bench.has.thin, "A pool that is not thin must refuse a clone larger than itself.")
            bench.backend.delete_volume(target)
        bench.volume_holds(source, "source")

    @case("clone")
    def test_clone_cancelled_leaves_nothing(self, bench: Bench) -> None:
        """A cancelled clone passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = bench.volume("source"), bench.name()
        if _cancelled(bench.backend.clone_volume, target, 1, source):
            bench.lists({source: 1})
        _steady_progress(bench.backend.clone_volume, target, 1, source)
        bench.lists({source: 1, target: 1})
        bench.volume_holds(target, "source")

    @case("snapshots", "clone")
    def test_volume_from_snapshot(self, bench: Bench) -> None:
        """A volume made from a snapshot has its bytes and is independent of snapshot and source, whatever changes."""
        source = bench.volume("first")
        shot = bench.snapshot(source)
        bench.fill(source, "second")
        made, other = bench.name(), bench.name()
        bench.backend.create_volume_from_snapshot(made, 1, source, shot)
        bench.backend.create_volume_from_snapshot(other, 1, source, shot)
        bench.lists({source: 1, made: 1, other: 1}, {shot: source})
        bench.volume_holds(made, "first")
        bench.fill(made, "mine")
        bench.backend.create_volume_from_snapshot(made, 1, source, shot)
        bench.volume_holds(made, "mine")
        bench.volume_holds(other, "first")
        bench.snapshot_holds(source, shot, "first")
        bench.volume_holds(source, "second")
        bench.backend.delete_snapshot(source, shot)
        bench.volume_holds(other, "first")
        bench.backend.delete_volume(source)
        bench.lists({made: 1, other: 1})
        bench.volume_holds(other, "first")
        bench.volume_holds(made, "mine")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_larger(self, bench: Bench) -> None:
        """A volume may be larger than its snapshot, and reads as zeros beyond it, though the source grew and wrote."""
        bench.dirty(3)
        source = bench.volume("first")
        shot = bench.snapshot(source)
        bench.backend.extend_volume(source, 2)
        bench.fill(source, "second")
        made = bench.name()
        bench.backend.create_volume_from_snapshot(made, 3, source, shot)
        bench.lists({source: 2, made: 3}, {shot: source})
        bench.volume_holds(made, "first", 3, of_gib=1)

    @case("snapshots", "clone")
    def test_volume_from_snapshot_refusals_make_nothing(self, bench: Bench) -> None:
        """A snapshot that is gone, a smaller size and a name of another size are refused without a trace."""
        source, taken, target = bench.volume("first", 2), bench.volume("taken"), bench.name()
        shot = bench.snapshot(source)
        create = bench.backend.create_volume_from_snapshot
        refuses(VolumeMissing, create, target, 2, source, bench.prefix + "none")
        refuses(BackendError, create, target, 1, source, shot)
        refuses(NameTaken, create, taken, 2, source, shot)
        bench.lists({source: 2, taken: 1}, {shot: source})
        bench.volume_holds(taken, "taken")

    @case("snapshots", "clone")
    def test_volume_from_snapshot_cancelled_leaves_nothing(self, bench: Bench) -> None:
        """A cancelled copy passes the cancellation on and leaves nothing; asked again, it succeeds."""
        source, target = bench.volume("first"), bench.name()
        shot = bench.snapshot(source)
        if _cancelled(bench.backend.create_volume_from_snapshot, target, 1, source, shot):
            bench.lists({source: 1}, {shot: source})
        _steady_progress(bench.backend.create_volume_from_snapshot, target, 1, source, shot)
        bench.lists({source: 1, target: 1}, {shot: source})
        bench.volume_holds(target, "first")

    # snapshots of several volumes

    @case(lacks="group_snapshots")
    def test_undeclared_group_snapshots_refuse(self, bench: Bench) -> None:
        """Without group_snapshots, it raises NotSupported and freezes nothing."""
        one, two = bench.volume("one"), bench.volume("two")
        group = {one: bench.snapshot_name(one), two: bench.snapshot_name(two)}
        refuses(NotSupported, bench.backend.create_group_snapshot, group)
        bench.lists({one: 1, two: 1})

    @case("group_snapshots")
    def test_declared_group_snapshots_work(self, bench: Bench) -> None:
        """Several volumes are frozen; taken twice it is one, and each is a snapshot like any other."""
        one, two = bench.volume("one"), bench.volume("two", 2)
        group = {one: bench.snapshot_name(one), two: bench.snapshot_name(two)}
        bench.backend.create_group_snapshot(group)
        for name in (one, two):
            bench.fill(name, "later")
        bench.backend.create_group_snapshot(group)
        bench.lists({one: 1, two: 2}, {shot: name for name, shot in group.items()})
        bench.snapshot_holds(one, group[one], "one")
        bench.snapshot_holds(two, group[two], "two", 2)
        bench.backend.delete_snapshot(one, group[one])
        bench.lists({one: 1, two: 2}, {group[two]: two})
        bench.snapshot_holds(two, group[two], "two", 2)

    @case("group_snapshots")
    def test_half_a_group_snapshot_is_taken_anew(self, bench: Bench) -> None:
        """Where some of the snapshots are there, of a call that was cut short, all are of the new instant."""
        one, two = bench.volume("first"), bench.volume("first")
        group = {one: bench.snapshot_name(one), two: bench.snapshot_name(two)}
        bench.backend.create_snapshot(one, group[one])
        for name in (one, two):
            bench.fill(name, "second")
        bench.backend.create_group_snapshot(group)
        for name, shot in group.items():
            bench.snapshot_holds(name, shot, "second")

    @case("group_snapshots")
    def test_group_snapshots_are_of_one_instant(self, bench: Bench) -> None:
        """What is written to one volume after another was written is in no snapshot without the other's."""
        one, two = bench.volume(), bench.volume()
        groups = [{one: bench.snapshot_name(one), two: bench.snapshot_name(two)} for _ in range(5)]
        ended, count = threading.Event(), 0

        def write() -> None:
            nonlocal count
            with bench.backend.open_volume(one, "r+b") as first, bench.backend.open_volume(two, "r+b") as second:
                while not ended.is_set():
                    count += 1
                    for file in (first, second):
                        write_at(file, 0, count.to_bytes(8, "big"))
                        file.flush()

        def seen(volume: str, shot: str) -> int:
            with bench.backend.open_snapshot(volume, shot) as file:
                return int.from_bytes(read_at(file, 0, 8), "big")

        with ThreadPoolExecutor(1) as thread:
            writing = thread.submit(write)
            try:
                for group in groups:
                    _goes_on(lambda: count, writing.done)
                    bench.backend.create_group_snapshot(group)
            finally:
                ended.set()
            writing.result()  # nothing that was written has failed
        for group in groups:
            first, second = (seen(name, shot) for name, shot in group.items())
            expect(
                first - second in (0, 1),
                f"Writes {first} and {second} are in snapshots of two volumes that were written in turns.",
            )
        expect(seen(one, groups[-1][one]) > 1, "Snapshots must hold what was written before.")

    @case("group_snapshots")
    def test_group_snapshot_refusals_freeze_nothing(self, bench: Bench) -> None:
        """A volume that is not there, or a name that is taken, and none of the group is frozen."""
        one, two, other = bench.volume("one"), bench.volume("two"), bench.volume("other")
        taken, shot = bench.snapshot(other), bench.snapshot_name(one)
        create = bench.backend.create_group_snapshot
        refuses(VolumeMissing, create, {one: shot, bench.name(): bench.prefix + "none"})
        refuses(NameTaken, create, {one: shot, two: taken})
        refuses(NameTaken, create, {one: shot, two: other})
        refuses(BackendError, create, {one: shot, two: shot})
        bench.lists({one: 1, two: 1, other: 1}, {taken: other})
        bench.snapshot_holds(other, taken, "other")

    # revert

    @case(lacks="revert")
    def test_undeclared_revert_refuses(self, bench: Bench) -> None:
        """Without revert, it raises NotSupported and changes nothing."""
        name = bench.volume("kept")
        shot = bench.snapshot(name) if bench.has.snapshots else bench.prefix + "s"
        bench.fill(name, "second")
        refuses(NotSupported, bench.backend.revert_volume, name, shot)
        bench.volume_holds(name, "second")

    @case("snapshots", "revert")
    def test_declared_revert_works(self, bench: Bench) -> None:
        """Reverting, also twice, gives the volume its snapshot's bytes; the snapshot stays and can serve again."""
        name = bench.volume("first")
        shot = bench.snapshot(name)
        for tag in ("second", "third"):
            bench.fill(name, tag)
            for _ in range(2):
                bench.backend.revert_volume(name, shot)
                bench.lists({name: 1}, {shot: name})
                bench.volume_holds(name, "first")
                bench.snapshot_holds(name, shot, "first")

    @case("snapshots", "revert")
    def test_revert_removes_what_was_written_elsewhere(self, bench: Bench) -> None:
        """Reverting also brings back zeros where the snapshot had none of the bytes written since."""
        name = bench.volume()
        shot = bench.snapshot(name)
        bench.fill(name, "written")
        bench.backend.revert_volume(name, shot)
        bench.volume_is_zero(name)

    @case("snapshots", "revert")
    def test_revert_after_extend_restores_the_size(self, bench: Bench) -> None:
        """Reverting gives back the snapshot's size; extended again, the grown part reads as zeros, not as it was."""
        name = bench.volume("first")
        shot = bench.snapshot(name)
        bench.backend.extend_volume(name, 3)
        bench.fill(name, "second")
        bench.fill(name, "grown", GIB, 3 * GIB)
        bench.backend.revert_volume(name, shot)
        bench.lists({name: 1}, {shot: name})
        bench.volume_holds(name, "first")
        bench.backend.extend_volume(name, 3)
        bench.volume_holds(name, "first", 3, of_gib=1)

    @case("snapshots", "revert")
    def test_snapshots_around_a_revert_stay_usable(self, bench: Bench) -> None:
        """Snapshots taken before, after and since the one reverted to keep their bytes and can be deleted."""
        name = bench.volume()
        shots = {}
        for tag in "abc":
            bench.fill(name, tag)
            shots[tag] = bench.snapshot(name)
        bench.backend.revert_volume(name, shots["b"])
        bench.volume_holds(name, "b")
        bench.fill(name, "d")
        shots["d"] = bench.snapshot(name)
        for tag, shot in shots.items():
            bench.snapshot_holds(name, shot, tag)
        bench.backend.revert_volume(name, shots["a"])
        bench.backend.revert_volume(name, shots["c"])
        bench.volume_holds(name, "c")
        bench.lists({name: 1}, dict.fromkeys(shots.values(), name))
        for tag in "bdac":
            bench.backend.delete_snapshot(name, shots.pop(tag))
        bench.volume_holds(name, "c")
        bench.backend.delete_volume(name)

    @case("snapshots", "revert", "clone")
    def test_clones_survive_a_revert(self, bench: Bench) -> None:
        """A volume made from a snapshot keeps its bytes when the source is reverted to that snapshot."""
        source, made = bench.volume("first"), bench.name()
        shot = bench.snapshot(source)
        bench.backend.create_volume_from_snapshot(made, 1, source, shot)
        bench.fill(made, "mine")
        bench.fill(source, "second")
        bench.backend.revert_volume(source, shot)
        bench.volume_holds(source, "first")
        bench.volume_holds(made, "mine")

    @case("snapshots", "revert")
    def test_revert_refusals(self, bench: Bench) -> None:
        """Reverting to what is not there raises VolumeMissing and changes nothing."""
        name, other = bench.volume("kept"), bench.volume("other")
        shot = bench.snapshot(other)
        refuses(VolumeMissing, bench.backend.revert_volume, name, bench.prefix + "none")
        refuses(BackendError, bench.backend.revert_volume, name, shot)
        bench.volume_holds(name, "kept")
        bench.lists({name: 1, other: 1}, {shot: other})

    @case("snapshots", "revert")
    def test_revert_cancelled_can_be_completed(self, bench: Bench) -> None:
        """A cancelled revert passes the cancellation on; asked again, the volume equals the snapshot."""
        name = bench.volume("first")
        shot = bench.snapshot(name)
        bench.fill(name, "second")
        _cancelled(bench.backend.revert_volume, name, shot)
        _steady_progress(bench.backend.revert_volume, name, shot)
        bench.volume_holds(name, "first")
        bench.lists({name: 1}, {shot: name})

    # --- taking over

    @case(lacks="manage")
    def test_undeclared_manage_refuses(self, bench: Bench) -> None:
        """A backend that does not declare manage raises NotSupported and changes nothing."""
        name = bench.volume("kept")
        refuses(NotSupported, bench.backend.list_manageable)
        refuses(NotSupported, bench.backend.list_manageable_snapshots)
        refuses(NotSupported, bench.backend.manage_volume, name, bench.prefix + "ours")
        refuses(NotSupported, bench.backend.manage_snapshot, name, "s", bench.prefix + "shot")
        bench.lists({name: 1}, {})

    @case("manage")
    def test_declared_manage_works(self, bench: Bench) -> None:
        """A volume is listed, and managed under a new name with its bytes; twice is once."""
        name, ours = bench.volume("theirs"), bench.name()
        found = {one.name: one for one in bench.backend.list_manageable()}
        expect(name in found, "list_manageable must name every volume.")
        expect(found[name].size_bytes == GIB, "list_manageable must tell the size in bytes.")
        expect(bench.backend.manage_volume(found[name].reference, ours) == 1, "manage_volume returns the size in GiB.")
        expect(bench.backend.manage_volume(found[name].reference, ours) == 1, "Managed twice is managed once.")
        bench.lists({ours: 1}, {})
        bench.volume_holds(ours, "theirs")
        bench.backend.extend_volume(ours, 2)
        bench.lists({ours: 2}, {})

    @case("manage")
    def test_manage_refusals_change_nothing(self, bench: Bench) -> None:
        """What is not there, a name that is taken and names that are none are refused."""
        name, other = bench.volume("one"), bench.volume("two")
        reference = {one.name: one for one in bench.backend.list_manageable()}[name].reference
        missing = reference.replace(name, bench.prefix + "none")
        refuses(VolumeMissing, bench.backend.manage_volume, missing, bench.prefix + "ours")
        refuses(NameTaken, bench.backend.manage_volume, reference, other)
        for bad in ("", "..", "../up", "-f", "a/b", "/etc/passwd", "a@b"):
            refuses(BackendError, bench.backend.manage_volume, bad, bench.prefix + "ours")
        refuses(BackendError, bench.backend.manage_volume, reference, "../up")
        bench.lists({name: 1, other: 1}, {})
        bench.volume_holds(name, "one")
        bench.volume_holds(other, "two")

    @case("manage")
    def test_manage_of_an_open_volume_is_refused(self, bench: Bench) -> None:
        """What somebody writes to is not renamed."""
        name = bench.volume("theirs")
        reference = {one.name: one for one in bench.backend.list_manageable()}[name].reference
        with bench.backend.open_volume(name, "r+b"):
            refuses(InUse, bench.backend.manage_volume, reference, bench.prefix + "ours")
        bench.lists({name: 1}, {})

    @case("manage", "snapshots")
    def test_snapshots_are_taken_over(self, bench: Bench) -> None:
        """A snapshot of a volume of ours gets a new name and keeps its bytes; twice is once."""
        name = bench.volume("before")
        theirs, ours = bench.snapshot(name), bench.snapshot_name(name)
        bench.fill(name, "after")
        found = {one.name: one for one in bench.backend.list_manageable_snapshots()}
        expect(theirs in found, "list_manageable_snapshots must name every snapshot.")
        expect(found[theirs].size_bytes == GIB, "list_manageable_snapshots must tell the size in bytes.")
        volumes = {one.reference for one in bench.backend.list_manageable()}
        expect(found[theirs].volume in volumes, "A snapshot must name its volume as list_manageable does.")
        for _ in range(2):
            bench.backend.manage_snapshot(name, found[theirs].reference, ours)
        bench.lists({name: 1}, {ours: name})
        bench.snapshot_holds(name, ours, "before")
        other = bench.volume("other")
        refuses(BackendError, bench.backend.manage_snapshot, other, ours, bench.prefix + "third")
        bench.lists({name: 1, other: 1}, {ours: name})


class _Thrown(BackendError):
    """What a case throws through a backend."""


def _throw_inside(opened: AbstractContextManager[BinaryIO]) -> None:
    with opened:
        raise _Thrown("thrown by the conformance suite")


def _enter(opener: Callable[..., AbstractContextManager[BinaryIO]], *args: Any) -> None:
    with opener(*args):
        pass


def _goes_on(count: Callable[[], int], has_ended: Callable[[], bool]) -> None:
    """Wait until something has counted on by two."""
    before = count()
    eventually(lambda: count() > before + 1 or has_ended(), "A volume must take writes.", WRITES_WITHIN_S)


def _absurd(backend: Backend) -> int:
    """Return a size no pool has, within what 63 bits of bytes can say."""
    return min(int(backend.capacity().total_gib) * 1000 + 1000, 2**32)


def _cancelled(call: Callable[..., None], *args: Any) -> bool:
    """Call with a cancelling progress; return whether it was cancelled. A backend may be done before it reports."""
    cancel = Cancelled()
    try:
        call(*args, cancel)
    except OperationCancelled:
        expect(cancel.called, "OperationCancelled must come from the progress callback.")
        return True
    expect(not cancel.called, "The backend swallowed the exception its progress callback raised.")
    return False


def _steady_progress(call: Callable[..., None], *args: Any) -> None:
    """Call, and fail unless the percentages are whole, within 0 and 100, and never fall."""
    seen: list[int] = []
    call(*args, seen.append)
    good = all(isinstance(percent, int) and 0 <= percent <= 100 for percent in seen) and seen == sorted(seen)
    expect(good, f"Progress must rise from 0 to 100 in whole numbers, but was {seen}.")


# --- the second door ---------------------------------------------------------------------------------------


def cases(suite: BackendConformance | None = None) -> Sequence[tuple[str, Callable[[Backend], None]]]:
    """Return name and function of every case, in the order of this file."""
    return cases_of(suite or BackendConformance())


def run(backend: Backend, report: Callable[[str], None] = print, *, only: str = "") -> Sequence[Result]:
    """Run every case whose name holds ``only`` and report a line for each; failed cases are in the results."""
    return run_cases(BackendConformance(), backend, report, only)
