"""The file with the administrator's first password: it goes when that password is changed, however it is changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from blockstore.app.service import Service
from blockstore.cli import main
from blockstore.identity import bootstrap
from tests.conftest import make_config
from tests.identity.conftest import People


@pytest.fixture
def people(tmp_path: Path) -> Iterator[People]:
    """A fresh service."""
    service = Service(make_config(tmp_path / "state", auth="builtin"))
    service.start()
    yield People(service)
    service.stop()


def run(people: People, *words: str, given: str | None = None) -> Result:
    """Run the command on the service's state."""
    return CliRunner().invoke(main, [*words, "--state-dir", str(people.service.state_dir)], input=given)


def is_kept(people: People) -> bool:
    return (people.service.state_dir / "admin-password").exists()


def test_by_oneself(people: People) -> None:
    body = {"user": {"original_password": people.password, "password": "chosen"}}
    assert people.ask("POST", "/identity/v3/users/admin/password", body).status == 204
    assert not is_kept(people)
    assert people.login("admin", "chosen").status == 201


def test_by_an_administrator(people: People) -> None:
    assert people.identity("PATCH", "/users/admin", {"user": {"description": "x"}}).status == 200
    assert people.identity("PATCH", "/users/admin", {"user": {"password": people.password}}).status == 200
    assert is_kept(people)  # it is the password still
    people.__dict__.pop("_admin")
    assert people.identity("PATCH", "/users/admin", {"user": {"password": "chosen"}}).status == 200
    assert not is_kept(people)


def test_of_somebody_else_it_stays(people: People) -> None:
    user, _ = people.user(people.project(), "member")
    assert people.identity("PATCH", f"/users/{user}", {"user": {"password": "chosen"}}).status == 200
    assert is_kept(people)


def test_by_the_command_and_then_the_clients_are_told(people: People) -> None:
    (people.service.state_dir / "endpoint").write_text("http://127.0.0.1:8776/v3\n")
    done = run(people, "user", "password", "admin")
    assert done.exit_code == 0
    assert not is_kept(people)
    assert people.login("admin", done.output.strip().removeprefix("password: ")).status == 201
    for command in ("openrc", "clouds-yaml"):
        told = run(people, command)
        assert told.exit_code == 1
        assert "a change of admin's password removes it" in told.output
        assert "blockstore user password admin" in told.output


def test_by_whatever_else(people: People) -> None:
    """A copy of the database was put back, or the file could not be removed then: the daily look finds it."""
    bootstrap.forget_former_password(people.service.db, people.service.state_dir)
    assert is_kept(people)
    bootstrap.write_password(people.service.state_dir, "another")
    bootstrap.forget_former_password(people.service.db, people.service.state_dir)
    assert not is_kept(people)
    bootstrap.forget_former_password(people.service.db, people.service.state_dir)


def test_a_file_that_cannot_be_removed_is_no_failure(people: People, caplog: pytest.LogCaptureFixture) -> None:
    path = people.service.state_dir / "admin-password"
    path.unlink()
    path.mkdir()
    assert people.identity("PATCH", "/users/admin", {"user": {"password": "chosen"}}).status == 200
    assert f"{path}, which holds a former password of admin, cannot be removed" in caplog.text
