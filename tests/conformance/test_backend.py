"""The conformance suite can fail: each way to break the contract is found by the case that is there for it."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import pytest

from blockstore.backends.contract import GIB, Capabilities, Capacity, Mode, Progress, VolumeLocation, no_progress
from blockstore.backends.memory import BLOCK, MemoryBackend, MemoryFile, MemoryImage, MemoryOptions
from blockstore.conformance.backend import cases, run
from blockstore.conformance.sandbox import PREFIX, Result
from blockstore.errors import BackendError, NotSupported, OperationCancelled, VolumeMissing


class OldBytes(MemoryBackend):
    """Gives the blocks of the last deleted volume to the next new one."""

    old: Mapping[int, bytes] = MappingProxyType({})

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        image = self._pool.volumes.get(name)
        super().delete_volume(name, progress)
        if image and image.blocks:
            self.old = dict(image.blocks)

    def create_volume(self, name: str, size_gib: int) -> None:
        fresh = name not in self._pool.volumes
        super().create_volume(name, size_gib)
        if fresh:
            self._pool.volumes[name].blocks = {n: b for n, b in self.old.items() if n < size_gib * GIB // BLOCK}


class OldBytesInExtension(OldBytes):
    def create_volume(self, name: str, size_gib: int) -> None:
        MemoryBackend.create_volume(self, name, size_gib)

    def extend_volume(self, name: str, size_gib: int) -> None:
        before = self._pool.volumes[name].size_gib * GIB // BLOCK if name in self._pool.volumes else 0
        super().extend_volume(name, size_gib)
        blocks = self._pool.volumes[name].blocks
        blocks.update({n: b for n, b in self.old.items() if before <= n < size_gib * GIB // BLOCK})


class OldBytesInLargerCopy(OldBytesInExtension):
    extend_volume = MemoryBackend.extend_volume

    def _add_copy(self, name: str, size_gib: int, source: MemoryImage) -> None:
        super()._add_copy(name, size_gib, source)
        self._pool.volumes[name].blocks.update({n: b for n, b in self.old.items() if n >= source.size_gib * 16384})


class CreateForgetsBytes(MemoryBackend):
    def create_volume(self, name: str, size_gib: int) -> None:
        super().create_volume(name, size_gib)
        self._pool.volumes[name].blocks.clear()


class CreateIgnoresSize(MemoryBackend):
    def create_volume(self, name: str, size_gib: int) -> None:
        if name not in self._pool.volumes:
            super().create_volume(name, size_gib)


class SizeIsNotExact(MemoryBackend):
    def list_volumes(self) -> Mapping[str, float]:
        return {name: size + 0.004 for name, size in super().list_volumes().items()}


class SnapshotIsNotFrozen(MemoryBackend):
    def create_snapshot(self, volume: str, snapshot: str) -> None:
        super().create_snapshot(volume, snapshot)
        self._pool.snapshots[snapshot] = (volume, self._volume(volume))


class SnapshotIsTakenAgain(MemoryBackend):
    def create_snapshot(self, volume: str, snapshot: str) -> None:
        self._pool.snapshots.pop(snapshot, None)
        super().create_snapshot(volume, snapshot)


class SnapshotIsWritable(MemoryBackend):
    def _opened(self, image: MemoryImage, *, writable: bool) -> BinaryIO:
        return super()._opened(image, writable=True)


class SnapshotsAreForgottenOnDelete(MemoryBackend):
    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        for shot in [shot for shot, (volume, _image) in self._pool.snapshots.items() if volume == name]:
            del self._pool.snapshots[shot]
        super().delete_volume(name, progress)


class DeletingASnapshotTakesItsNeighbour(MemoryBackend):
    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        shots = list(self._pool.snapshots)
        if snapshot in shots and len(shots) > 4:
            del self._pool.snapshots[shots[0]]
        super().delete_snapshot(volume, snapshot, progress)


class DeleteSnapshotOnlyOnce(MemoryBackend):
    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        self._snapshot(volume, snapshot)
        super().delete_snapshot(volume, snapshot, progress)


class DeleteOnlyOnce(MemoryBackend):
    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        self._volume(name)
        super().delete_volume(name, progress)


class DeleteWhileOpen(MemoryBackend):
    def _refuse_open(self, name: str) -> None:
        pass


class CloneSharesBytes(MemoryBackend):
    def _add_copy(self, name: str, size_gib: int, source: MemoryImage) -> None:
        super()._add_copy(name, size_gib, source)
        self._pool.volumes[name].blocks = source.blocks


class CloneLeavesHelper(MemoryBackend):
    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        super().clone_volume(name, size_gib, source, progress)
        self._pool.snapshots[f"clone-of-{source}"] = (source, MemoryImage(1))


class CloneIgnoresSize(MemoryBackend):
    def _add_copy(self, name: str, size_gib: int, source: MemoryImage) -> None:
        self._add(name, source.copy(source.size_gib))


class CloneCutsSource(MemoryBackend):
    def _add_copy(self, name: str, size_gib: int, source: MemoryImage) -> None:
        self._add(name, source.copy(size_gib))


class CloneMakesUpSource(MemoryBackend):
    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        try:
            super().clone_volume(name, size_gib, source, progress)
        except VolumeMissing:
            self.create_volume(name, size_gib)


class CancelIsSwallowed(MemoryBackend):
    def _quiet(self, call: Callable[..., None], *args: Any) -> None:
        with suppress(OperationCancelled):
            call(*args)

    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        self._quiet(super().clone_volume, name, size_gib, source, progress)

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        self._quiet(super().create_volume_from_snapshot, name, size_gib, volume, snapshot, progress)

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        self._quiet(super().revert_volume, volume, snapshot, progress)

    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        self._quiet(super().delete_volume, name, progress)

    def delete_snapshot(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        self._quiet(super().delete_snapshot, volume, snapshot, progress)


class CancelLeavesHalf(MemoryBackend):
    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        super().clone_volume(name, size_gib, source)
        progress(50)

    def create_volume_from_snapshot(
        self, name: str, size_gib: int, volume: str, snapshot: str, progress: Progress = no_progress
    ) -> None:
        super().create_volume_from_snapshot(name, size_gib, volume, snapshot)
        progress(50)


class ProgressFalls(MemoryBackend):
    def clone_volume(self, name: str, size_gib: int, source: str, progress: Progress = no_progress) -> None:
        progress(90)
        super().clone_volume(name, size_gib, source, progress)


class RevertKeepsSize(MemoryBackend):
    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        size = self._pool.volumes[volume].size_gib
        super().revert_volume(volume, snapshot, progress)
        self._pool.volumes[volume].size_gib = size


class RevertMixes(MemoryBackend):
    """Lays the snapshot's blocks over the volume and keeps what the snapshot had not written."""

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        written = dict(self._pool.volumes[volume].blocks)
        super().revert_volume(volume, snapshot, progress)
        image = self._pool.volumes[volume]
        image.blocks = written | image.blocks


class RevertHandsOverSnapshot(MemoryBackend):
    """Makes the snapshot itself the volume, so that the volume's next write changes it."""

    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().revert_volume(volume, snapshot, progress)
        self._pool.volumes[volume] = self._snapshot(volume, snapshot)


class RevertConsumesSnapshot(MemoryBackend):
    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().revert_volume(volume, snapshot, progress)
        del self._pool.snapshots[snapshot]


class RevertTakesClonesAlong(MemoryBackend):
    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        super().revert_volume(volume, snapshot, progress)
        for image in self._pool.volumes.values():
            image.blocks = self._volume(volume).blocks


class RevertInventsSnapshot(MemoryBackend):
    def revert_volume(self, volume: str, snapshot: str, progress: Progress = no_progress) -> None:
        try:
            super().revert_volume(volume, snapshot, progress)
        except VolumeMissing:
            self._pool.volumes[volume].blocks.clear()


class ExtendForgetsBytes(MemoryBackend):
    def extend_volume(self, name: str, size_gib: int) -> None:
        super().extend_volume(name, size_gib)
        self._pool.volumes[name].blocks.clear()


class ExtendCuts(MemoryBackend):
    def extend_volume(self, name: str, size_gib: int) -> None:
        self._volume(name).size_gib = size_gib


class ExtendCreates(MemoryBackend):
    def extend_volume(self, name: str, size_gib: int) -> None:
        if name not in self._pool.volumes:
            self.create_volume(name, 1)
        super().extend_volume(name, size_gib)


class OpenCreates(MemoryBackend):
    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        if name not in self._pool.volumes:
            self.create_volume(name, 1)
        with super().open_volume(name, mode) as file:
            yield file


class OpenSwallowsErrors(MemoryBackend):
    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        with super().open_volume(name, mode) as file, suppress(BackendError):
            yield file


class WritesGrow(MemoryBackend):
    def _opened(self, image: MemoryImage, *, writable: bool) -> BinaryIO:
        class Growing(MemoryFile):
            def write(self, data: bytes) -> int:  # type: ignore[override]
                if self._position + len(data) > self._image.size_gib * GIB:
                    self._image.size_gib += 1
                return super().write(data)

        return Growing(image, self._pool.lock, writable=writable)  # type: ignore[return-value]


class WritesAreRounded(MemoryBackend):
    def _opened(self, image: MemoryImage, *, writable: bool) -> BinaryIO:
        class Rounding(MemoryFile):
            def write(self, data: bytes) -> int:  # type: ignore[override]
                self.seek(self._position // BLOCK * BLOCK, io.SEEK_SET)
                return super().write(data)

        return Rounding(image, self._pool.lock, writable=writable)  # type: ignore[return-value]


class PathIsWrong(MemoryBackend):
    def locate(self, name: str) -> VolumeLocation | None:
        self.state_dir.joinpath(name).write_bytes(b"")
        return VolumeLocation(self.state_dir / name)


class NamesAreNotChecked(MemoryBackend):
    def _begin(self, method: str, *names: str) -> None:
        pass


class NamesAreCut(MemoryBackend):
    def create_volume(self, name: str, size_gib: int) -> None:
        super().create_volume(name[:60], size_gib)


class SnapshotNamesAreShared(MemoryBackend):
    def create_snapshot(self, volume: str, snapshot: str) -> None:
        self._pool.snapshots[snapshot] = (volume, self._volume(volume).copy(1))


class SnapshotOfNothing(MemoryBackend):
    def create_snapshot(self, volume: str, snapshot: str) -> None:
        self._pool.snapshots[snapshot] = (volume, MemoryImage(1))


class FullPoolLies(MemoryBackend):
    """Takes the name, then finds out that there is no space."""

    def _reserve(self, size_gib: int) -> None:
        if size_gib > 1000:
            self._pool.volumes[f"{_LEFT}{len(self._pool.volumes)}"] = MemoryImage(1)
            raise BackendError("full")


_LEFT = "half-made-"


class ExtendThenFull(MemoryBackend):
    def extend_volume(self, name: str, size_gib: int) -> None:
        super().extend_volume(name, size_gib)
        if size_gib > 1000:
            raise BackendError("full")


class FreeNeverMoves(MemoryBackend):
    def capacity(self) -> Capacity:
        return Capacity(total_gib=1000, free_gib=1000, provisioned_gib=0)


class FreeBeyondTotal(MemoryBackend):
    def capacity(self) -> Capacity:
        return Capacity(total_gib=1, free_gib=1000)


class CheckMakesThings(MemoryBackend):
    def check(self) -> None:
        self._pool.volumes[f"probe-{len(self._pool.volumes)}"] = MemoryImage(1)


class NeitherThinNorThick(MemoryBackend):
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), thin=False, thick=False)


class NotForThreads(MemoryBackend):
    busy = False

    def create_volume(self, name: str, size_gib: int) -> None:
        if self.busy:
            raise BackendError("busy")
        self.busy = True
        time.sleep(0 if threading.current_thread() is threading.main_thread() else 0.5)
        super().create_volume(name, size_gib)
        self.busy = False


class NoMultiattach(MemoryBackend):
    @contextmanager
    def open_volume(self, name: str, mode: Mode) -> Iterator[BinaryIO]:
        if self._pool.openers[name]:
            raise BackendError("open")
        with super().open_volume(name, mode) as file:
            yield file


class NoOnlineExtend(MemoryBackend):
    def extend_volume(self, name: str, size_gib: int) -> None:
        self._refuse_open(name)
        super().extend_volume(name, size_gib)


class Undeclared(MemoryBackend):
    """Does everything and declares nothing."""

    def capabilities(self) -> Capabilities:
        return Capabilities(thin=True)


class GroupOneByOne(MemoryBackend):
    def create_group_snapshot(self, snapshots: Mapping[str, str]) -> None:
        for volume in snapshots:
            self._volume(volume)
        for volume, snapshot in snapshots.items():
            self.create_snapshot(volume, snapshot)
            time.sleep(0.1)


class GroupIsTakenAgain(MemoryBackend):
    def create_group_snapshot(self, snapshots: Mapping[str, str]) -> None:
        for snapshot in snapshots.values():
            self._pool.snapshots.pop(snapshot, None)
        super().create_group_snapshot(snapshots)


class DeclaredInVain(MemoryBackend):
    """Declares everything and refuses it."""

    def create_snapshot(self, volume: str, snapshot: str) -> None:
        raise NotSupported("no")

    clone_volume = create_volume_from_snapshot = revert_volume = create_snapshot  # type: ignore[assignment]


class OwnerIsOverwritten(MemoryBackend):
    def change_owner(self, former: str | None, owner: str | None) -> None:
        self._pool.owner = owner


class IdentityGoesWithTheOwner(MemoryBackend):
    def identity(self) -> str:
        return self._pool.owner or "none"


class MissingIsDeleted(MemoryBackend):
    def delete_volume(self, name: str, progress: Progress = no_progress) -> None:
        if name in self._pool.volumes or not self.recognised:
            super().delete_volume(name, progress)


class ManageCopies(MemoryBackend):
    def manage_volume(self, reference: str, name: str) -> int:
        image = self._volume(reference)
        self._pool.volumes.setdefault(name, image.copy(image.size_gib))
        return image.size_gib


class ManageMakesUp(MemoryBackend):
    def manage_volume(self, reference: str, name: str) -> int:
        if reference not in self._pool.volumes:
            self.create_volume(name, 1)
        return super().manage_volume(reference, name)


class ManageWhileOpen(MemoryBackend):
    def _refuse_open(self, name: str) -> None:
        pass


class ManageTakesPresentBytes(MemoryBackend):
    def manage_snapshot(self, volume: str, reference: str, snapshot: str) -> None:
        self.delete_snapshot(volume, reference)
        self.create_snapshot(volume, snapshot)


FLAWS: dict[type[MemoryBackend], tuple[str, ...]] = {
    OldBytes: ("test_create_never_shows_old_bytes",),
    OldBytesInExtension: ("test_extend_keeps_bytes_and_grows_zeros",),
    OldBytesInLargerCopy: ("test_clone_larger", "test_volume_from_snapshot_larger"),
    CreateForgetsBytes: ("test_create_twice_is_one_volume",),
    CreateIgnoresSize: ("test_create_same_name_other_size_is_refused",),
    SizeIsNotExact: ("test_create_makes_a_volume_of_zeros",),
    SnapshotIsNotFrozen: ("test_declared_snapshots_work", "test_snapshot_of_an_open_volume"),
    SnapshotIsTakenAgain: ("test_declared_snapshots_work",),
    SnapshotIsWritable: ("test_a_snapshot_cannot_be_written", "test_open_for_reading_does_not_write"),
    SnapshotsAreForgottenOnDelete: ("test_delete_volume_with_snapshots_is_refused",),
    DeletingASnapshotTakesItsNeighbour: ("test_several_snapshots_go_in_any_order",),
    DeleteSnapshotOnlyOnce: ("test_delete_snapshot_twice",),
    DeleteOnlyOnce: ("test_delete_twice",),
    DeleteWhileOpen: ("test_delete_while_open_is_refused",),
    CloneSharesBytes: ("test_declared_clone_works", "test_clone_of_an_open_volume", "test_volume_from_snapshot"),
    CloneLeavesHelper: ("test_declared_clone_works", "test_clone_of_a_clone"),
    CloneIgnoresSize: ("test_clone_larger", "test_volume_from_snapshot_larger"),
    CloneCutsSource: ("test_clone_refusals_make_nothing", "test_volume_from_snapshot_refusals_make_nothing"),
    CloneMakesUpSource: ("test_clone_refusals_make_nothing",),
    CancelIsSwallowed: (
        "test_clone_cancelled_leaves_nothing",
        "test_volume_from_snapshot_cancelled_leaves_nothing",
        "test_revert_cancelled_can_be_completed",
        "test_delete_reports_progress_and_can_be_cancelled",
        "test_delete_snapshot_can_be_cancelled",
    ),
    CancelLeavesHalf: (
        "test_clone_cancelled_leaves_nothing",
        "test_volume_from_snapshot_cancelled_leaves_nothing",
    ),
    ProgressFalls: ("test_clone_cancelled_leaves_nothing",),
    RevertKeepsSize: ("test_revert_after_extend_restores_the_size",),
    RevertMixes: ("test_revert_removes_what_was_written_elsewhere",),
    RevertHandsOverSnapshot: ("test_declared_revert_works", "test_snapshots_around_a_revert_stay_usable"),
    RevertConsumesSnapshot: ("test_declared_revert_works",),
    RevertTakesClonesAlong: ("test_clones_survive_a_revert",),
    RevertInventsSnapshot: ("test_revert_refusals",),
    ExtendForgetsBytes: ("test_extend_keeps_bytes_and_grows_zeros",),
    ExtendCuts: ("test_extend_to_less_is_refused",),
    ExtendCreates: ("test_extend_missing_is_refused",),
    OpenCreates: ("test_open_missing_is_refused",),
    OpenSwallowsErrors: ("test_an_error_inside_open_comes_out",),
    WritesGrow: ("test_writing_past_the_end_is_impossible",),
    WritesAreRounded: ("test_bytes_survive",),
    PathIsWrong: ("test_the_located_file_has_the_same_bytes",),
    NamesAreNotChecked: ("test_hostile_names_are_refused",),
    NamesAreCut: ("test_names_may_be_long",),
    SnapshotNamesAreShared: ("test_snapshot_names_are_not_shared",),
    SnapshotOfNothing: ("test_missing_sources_of_snapshots",),
    FullPoolLies: ("test_no_space_leaves_nothing", "test_clone_without_space_leaves_nothing"),
    ExtendThenFull: ("test_extend_without_space_changes_nothing",),
    FreeNeverMoves: ("test_capacity_moves_with_volumes",),
    FreeBeyondTotal: ("test_capacity_is_plausible",),
    CheckMakesThings: ("test_check_twice",),
    NeitherThinNorThick: ("test_capabilities_are_steady_and_whole",),
    NotForThreads: ("test_parallel_creates_of_different_names",),
    OwnerIsOverwritten: ("test_declared_owner_mark_works",),
    IdentityGoesWithTheOwner: ("test_declared_owner_mark_works",),
    MissingIsDeleted: ("test_storage_that_is_not_recognised_is_not_touched",),
    ManageCopies: ("test_declared_manage_works",),
    ManageMakesUp: ("test_manage_refusals_change_nothing",),
    ManageWhileOpen: ("test_manage_of_an_open_volume_is_refused",),
    ManageTakesPresentBytes: ("test_snapshots_are_taken_over",),
    GroupOneByOne: (
        "test_group_snapshots_are_of_one_instant",
        "test_half_a_group_snapshot_is_taken_anew",
        "test_group_snapshot_refusals_freeze_nothing",
    ),
    GroupIsTakenAgain: ("test_declared_group_snapshots_work",),
    NoMultiattach: ("test_declared_multiattach_works",),
    NoOnlineExtend: ("test_declared_online_extend_works",),
    Undeclared: (
        "test_undeclared_snapshots_refuse",
        "test_undeclared_clone_refuses",
        "test_undeclared_revert_refuses",
        "test_undeclared_online_extend_refuses",
        "test_undeclared_manage_refuses",
        "test_undeclared_group_snapshots_refuse",
        "test_undeclared_owner_mark_refuses",
    ),
    DeclaredInVain: ("test_declared_snapshots_work", "test_declared_clone_works", "test_declared_revert_works"),
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blockstore.conformance.backend.health.PATIENCE_S", 0.0)


def only(backend: MemoryBackend, name: str) -> Result:
    (result,) = (result for result in run(backend, lambda _line: None, only=name) if result.case == name)
    return result


@pytest.mark.parametrize(
    ("flawed", "case"),
    [pytest.param(kind, name, id=f"{kind.__name__}-{name}") for kind in FLAWS for name in FLAWS[kind]],
)
def test_a_broken_backend_fails_its_case(flawed: type[MemoryBackend], case: str, tmp_path: Path) -> None:
    result = only(flawed("broken", MemoryOptions(), tmp_path), case)
    assert result.outcome == "failed", result
    assert result.reason


def test_every_case_has_a_backend_that_fails_it() -> None:
    assert {name for name, _call in cases()} - {name for names in FLAWS.values() for name in names} == set()


def test_the_sound_backend_passes_through_the_second_door(tmp_path: Path) -> None:
    lines: list[str] = []
    results = run(MemoryBackend("sound", MemoryOptions(), tmp_path), lines.append)
    assert [result for result in results if result.outcome == "failed"] == []
    assert len(lines) == len(results) == len(cases()) > 50
    assert lines[0].startswith("passed  check() succeeds, again and again, and changes nothing. (")


def test_a_failed_case_cleans_up_and_says_what_is_wrong(tmp_path: Path) -> None:
    backend = SnapshotIsNotFrozen("broken", MemoryOptions(), tmp_path)
    result = only(backend, "test_declared_snapshots_work")
    assert "must hold the bytes of 'first' at offset 0" in result.reason
    assert backend.list_volumes() == {}
    assert backend.list_snapshots() == {}


def test_a_pool_in_use_is_left_alone(tmp_path: Path) -> None:
    """Volumes that are there already, and ones that come and go meanwhile, neither matter nor suffer."""

    class Busy(MemoryBackend):
        def create_volume(self, name: str, size_gib: int) -> None:
            super().create_volume(name, size_gib)
            super().create_volume(f"volume-0a1b2c3d-0000-4000-8000-{len(self._pool.volumes):012x}", 1)
            super().create_volume(f"{PREFIX}another-check", 1)

    backend = Busy("busy", MemoryOptions(), tmp_path)
    MemoryBackend.create_volume(backend, "mine", 5)
    assert [result for result in run(backend, lambda _line: None) if result.outcome == "failed"] == []
    assert backend.list_volumes()["mine"] == 5
