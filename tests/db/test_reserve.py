"""Who may write to a database whose disk is full, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from blockstore.db import migrations, outages, reserve
from blockstore.db.models import VolumeType
from blockstore.db.reserve import Reserve, usable
from blockstore.db.session import Database
from blockstore.errors import DatabaseAway
from tests.plugins.mounts import mounted

MIB = 2**20


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A small disk, whose reserve has 4 MiB: writes of others need 0.5 MiB, and a new reserve 6 MiB."""
    monkeypatch.setattr(reserve, "AGAIN_S", 0)
    with mounted(tmp_path, "tmpfs", "64M") as point:
        yield point


def fill(path: Path, leave: int = 0) -> None:
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    if leave:
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - leave)


def refused(kept: Reserve) -> bool:
    """Return True if somebody who frees nothing may not write."""
    with usable(by=False):
        try:
            kept.prove()
        except DatabaseAway as exc:
            return exc.message == outages.FULL
    return False


def test_the_reserve_is_given_up_for_who_may_and_made_again(disk: Path) -> None:
    kept, file = Reserve(disk / "blockstore.db"), disk / "blockstore.db-reserve"
    kept.open()
    assert file.stat().st_blocks * 512 == 4 * MIB
    assert file.stat().st_mode & 0o777 == 0o600
    fill(disk / "others")
    assert refused(kept)
    assert file.exists()
    kept.prove()
    assert not file.exists()
    assert refused(kept)  # though 4 MiB are free now
    kept.prove()
    fill(disk / "others", leave=7 * MIB)
    assert not refused(kept)
    assert file.stat().st_blocks * 512 == 4 * MIB


def test_a_start_on_a_full_disk_gives_it_up(disk: Path) -> None:
    Reserve(disk / "blockstore.db").open()
    fill(disk / "others")
    kept = Reserve(disk / "blockstore.db")
    kept.open()
    assert not (disk / "blockstore.db-reserve").exists()
    assert refused(kept)


def test_a_planted_link_is_no_reserve(disk: Path) -> None:
    """It is said, nothing is written through it, and nobody is refused for it."""
    (disk / "blockstore.db-reserve").symlink_to(disk / "target")
    kept = Reserve(disk / "blockstore.db")
    kept.open()
    assert not refused(kept)
    assert not (disk / "target").exists()


def test_deletions_need_no_space_at_all(disk: Path) -> None:
    """The write-ahead log has blocks for them, whoever takes what the reserve gives back."""
    db = Database(f"sqlite:///{disk}/blockstore.db")
    try:
        db.keep_reserve()
        migrations.upgrade(db)
        db.note_file()
        fill(disk / "others")
        (disk / "blockstore.db-reserve").unlink()
        fill(disk / "more")
        for name in range(20):
            with db.write() as session:
                session.add(VolumeType(name=str(name)))
        with pytest.raises(DatabaseAway), usable(by=False), db.write():
            pass
    finally:
        db.dispose()


def test_a_database_that_cannot_be_opened_on_a_full_disk_says_that_it_is_full(disk: Path) -> None:
    """SQLite says that it cannot open the file: it can make none of those beside it."""
    db = Database(f"sqlite:///{disk}/blockstore.db")
    migrations.upgrade(db)
    db.dispose()
    fill(disk / "others")
    with pytest.raises(DatabaseAway) as raised, db.write():
        pass
    assert raised.value.message == outages.FULL
    db.dispose()
