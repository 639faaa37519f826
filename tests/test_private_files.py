"""Files for one user alone: what is refused, what modes come out whatever the umask, and what a full disk says."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blockstore import private_files, trusted_paths
from blockstore.errors import ConfigError
from tests.plugins.mounts import need_root


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A directory as it should be."""
    path = tmp_path / "mine"
    path.mkdir(mode=0o700)
    return path


# --- modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [0, 0o022, 0o777])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, mask: int) -> None:
    place = tmp_path / "a" / "b" / "c"
    with umask(mask):
        private_files.make_directory(place)
        private_files.create(place / "made")
        private_files.write(place / "written", b"x")
        os.close(private_files.open_file(place / "opened", os.O_RDWR | os.O_CREAT))
    assert [mode(path) for path in (place, place.parent, place.parent.parent)] == [0o700] * 3
    assert {path.name: mode(path) for path in place.iterdir()} == dict.fromkeys(("made", "written", "opened"), 0o600)


# --- directories -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("too_open", [0o755, 0o750, 0o777, 0o701, 0o1777])
def test_directory_that_others_may_enter_is_refused_and_left_as_it_is(mine: Path, too_open: int) -> None:
    mine.chmod(too_open)
    with pytest.raises(ConfigError, match=f"has mode {too_open:04o}.*`chmod 700 {mine}`"):
        private_files.prepare_state_dir(mine)
    assert mode(mine) == too_open
    mine.chmod(0o700)
    assert private_files.prepare_state_dir(mine) == mine


def test_directory_of_another_user_is_refused(mine: Path) -> None:
    need_root()
    os.chown(mine, 1, 1)
    with pytest.raises(ConfigError, match=r"belongs to daemon \(uid 1\)"):
        private_files.prepare_state_dir(mine)


def test_ancestor_that_others_may_write_to_is_refused(mine: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match=f"everybody can write to {tmp_path}; run `chmod o-w {tmp_path}`"):
        private_files.prepare_state_dir(mine)
    tmp_path.chmod(0o1777)  # as /tmp is
    assert private_files.prepare_state_dir(mine) == mine


def test_ancestor_of_another_user_is_refused(mine: Path, tmp_path: Path) -> None:
    need_root()
    os.chown(tmp_path, 1, 1)
    with pytest.raises(ConfigError, match=rf"{tmp_path} belongs to daemon \(uid 1\)"):
        private_files.prepare_state_dir(mine)


def test_group_of_nobody_else_may_write_to_an_ancestor(mine: Path, tmp_path: Path) -> None:
    """Debian and Ubuntu give each user a group of its own, and its home may be writable by that."""
    need_root()
    private = next(g for g in trusted_paths.grp.getgrall() if g.gr_name == "root").gr_gid
    os.chown(tmp_path, 0, private)
    tmp_path.chmod(0o770)
    assert private_files.prepare_state_dir(mine) == mine
    os.chown(tmp_path, 0, 1)  # daemon is a member
    with pytest.raises(ConfigError, match="the group daemon can write"):
        private_files.prepare_state_dir(mine)


def test_link_of_another_user_on_the_way_is_refused(mine: Path, tmp_path: Path) -> None:
    need_root()
    link = tmp_path / "link"
    link.symlink_to(mine)
    assert private_files.prepare_state_dir(link) == link
    os.lchown(link, 1, 1)
    with pytest.raises(ConfigError, match=rf"{link} belongs to daemon"):
        private_files.prepare_state_dir(link)


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert "symbolic links" in (trusted_paths.weak_place(tmp_path / "a" / "x", {0, os.geteuid()}) or "")


# --- files -------------------------------------------------------------------------------------------------


def plant(path: Path, kind: str) -> Path:
    """Put something there that blockstore never makes; return what must not change."""
    other = path.with_name("other")
    other.write_text("precious")
    if kind == "link":
        path.symlink_to(other)
    elif kind == "dangling":
        path.symlink_to(path.with_name("nowhere"))
    elif kind == "hard link":
        path.hardlink_to(other)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        need_root()
        path.write_text("theirs")
        os.chown(path, 1, 1)
    return other


@pytest.mark.parametrize("kind", ["link", "dangling", "hard link", "pipe", "directory", "foreign"])
def test_what_was_planted_is_neither_opened_nor_made(mine: Path, kind: str) -> None:
    other = plant(mine / "f", kind)
    for attempt in (
        lambda: private_files.open_file(mine / "f"),
        lambda: private_files.open_file(mine / "f", os.O_RDWR | os.O_CREAT),
        lambda: private_files.create(mine / "f"),
        lambda: private_files.check_file(mine / "f"),
        lambda: private_files.read(mine / "f"),
    ):
        with pytest.raises(PermissionError, match="which blockstore never creates"):
            attempt()
    assert other.read_text() == "precious"
    assert not (mine / "nowhere").exists()


@pytest.mark.parametrize("suffix", private_files.SQLITE_SUFFIXES)
def test_links_beside_a_database_are_found(mine: Path, suffix: str) -> None:
    private_files.check_database(mine / "x.db")
    plant(mine / f"x.db{suffix}", "link")
    with pytest.raises(PermissionError, match="a symbolic link"):
        private_files.check_database(mine / "x.db")


def test_writing_replaces_a_link_and_not_what_it_leads_to(mine: Path) -> None:
    other = plant(mine / "f", "link")
    private_files.write(mine / "f", b"ours")
    assert other.read_text() == "precious"
    assert not (mine / "f").is_symlink()
    assert private_files.read(mine / "f") == b"ours"


def test_writing_keeps_what_is_there_when_it_must(mine: Path) -> None:
    private_files.write(mine / "f", b"first", replace=False)
    private_files.write(mine / "f", b"second", replace=False)
    assert private_files.read(mine / "f") == b"first"
    assert [path.name for path in mine.iterdir()] == ["f"]


def test_full_disk_leaves_no_half_file_and_is_a_sentence(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    sentence = f"The disk of the state directory {mine} is full .*{mine}/f, the key, could not be written"
    with pytest.raises(ConfigError, match=sentence), private_files.explained(mine, "the key"):
        private_files.write(mine / "f", b"x")
    assert list(mine.iterdir()) == []


def test_writing_may_be_called_off_last(mine: Path) -> None:
    private_files.write(mine / "f", b"first")
    assert not private_files.write(mine / "f", b"second", is_due=lambda: False)
    assert [path.name for path in mine.iterdir()] == ["f"]
    assert private_files.write(mine / "f", b"third", is_due=lambda: (mine / "f").read_bytes() == b"first")
    assert (mine / "f").read_bytes() == b"third"


def test_what_a_kill_left_under_the_temporary_name_is_replaced(mine: Path) -> None:
    (mine / "half").symlink_to(mine / "elsewhere")
    private_files.write(mine / "f", b"whole", temporary="half", mode=0o640)
    assert [path.name for path in mine.iterdir()] == ["f"]
    assert ((mine / "f").read_bytes(), (mine / "f").stat().st_mode & 0o777) == (b"whole", 0o640)
