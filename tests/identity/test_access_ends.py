"""What was disabled or taken away does not come back: tokens and application credentials end for good."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from blockstore.cli import main
from blockstore.db.models import Project, Snapshot, Volume
from blockstore.identity import accounts
from blockstore.identity.login import Login
from tests.identity.conftest import People
from tests.identity.test_tokens import believed


class Access:
    """A user on a project, with a token, an application credential, and a token of that."""

    def __init__(self, people: People, **domain: str) -> None:
        self.people = people
        name = uuid.uuid4().hex
        made = people.identity("POST", "/projects", {"project": {"name": name, **domain}}).json
        self.project = str(made["project"]["id"])
        made = people.identity("POST", "/users", {"user": {"name": name, "password": "secret", **domain}}).json
        self.user = str(made["user"]["id"])
        for role in ("member", "reader"):
            self.grant("PUT", role)
        scope = {"project": {"id": self.project}}
        self.token = people.token({"id": self.user}, "secret", scope)
        path = f"/users/{self.user}/application_credentials"
        made = people.identity("POST", path, {"application_credential": {"name": "ci"}}, self.token).json
        self.credential = made["application_credential"]
        self.acting = self.act().headers["X-Subject-Token"]

    def grant(self, method: str, role: str) -> int:
        return self.people.identity(method, f"/projects/{self.project}/users/{self.user}/roles/{role}").status

    def act(self) -> Any:
        """Log in by the credential."""
        proof = {key: self.credential[key] for key in ("id", "secret")}
        auth = {"identity": {"methods": ["application_credential"], "application_credential": proof}}
        return self.people.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})

    def is_gone(self) -> bool:
        """Whether token and credential are both dead, and the user may log in anew."""
        fresh = self.people.login({"id": self.user}, "secret", {"project": {"id": self.project}})
        assert fresh.status == 201, fresh.body
        assert self.act().status in (201, 401)
        return (
            not believed(self.people, self.token)
            and not believed(self.people, self.acting)
            and (self.act().status == 401)
        )


def test_enabling_again_brings_nothing_back(people: People) -> None:
    def toggled(path: str, noun: str) -> None:
        for enabled in (False, True):
            assert people.identity("PATCH", path, {noun: {"enabled": enabled}}).status == 200

    one = Access(people)
    toggled(f"/projects/{one.project}", "project")
    assert one.is_gone()
    one = Access(people)
    toggled(f"/users/{one.user}", "user")
    assert one.is_gone()
    domain = people.identity("POST", "/domains", {"domain": {"name": "d"}}).json["domain"]["id"]
    one, other = Access(people, domain_id=domain), Access(people)
    toggled(f"/domains/{domain}", "domain")
    assert one.is_gone()
    assert believed(people, other.token)
    assert other.act().status == 201


def test_a_role_that_was_taken_away_and_given_again_brings_nothing_back(people: People) -> None:
    one, other = Access(people), Access(people)
    assert one.grant("DELETE", "reader") == 204  # member is left: as in Keystone, it ends what rests on the two
    assert one.is_gone()
    one = Access(people)
    assert [one.grant(method, "member") for method in ("DELETE", "PUT")] == [204, 204]
    assert one.is_gone()
    assert believed(people, other.token)
    assert other.act().status == 201


def test_a_role_that_is_deleted_ends_what_rested_on_it(people: People) -> None:
    role = people.identity("POST", "/roles", {"role": {"name": "auditor"}}).json["role"]["id"]
    one, other = Access(people), Access(people)
    assert one.grant("PUT", role) == 204
    assert people.identity("DELETE", f"/roles/{role}").status == 204
    assert one.is_gone()
    assert believed(people, other.token)


def test_the_command_ends_it_for_good_too(people: People) -> None:
    one = Access(people)
    config = people.service.state_dir / "config.ini"
    config.write_text(f"[database]\nurl = {people.service.config.database.url}\n")
    for verb in ("revoke", "grant"):
        argv = ["user", verb, one.user, "member", one.project, "--config", str(config)]
        done = CliRunner().invoke(main, [*argv, "--state-dir", str(people.service.state_dir)])
        assert done.exit_code == 0, done.output
    assert one.is_gone()


@pytest.mark.parametrize("what", ["project", "role", "password"])
def test_a_login_at_the_same_moment_leaves_no_token(people: People, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """The login has looked, and the change comes before its token is there: the change waits, and ends that token."""
    project = people.project()
    user, _ = people.user(project, "member")
    looked, changing, changed = threading.Event(), threading.Event(), threading.Event()
    scope_of: Callable[..., Any] = Login._scope

    def look(self: Login, *arguments: Any) -> Any:
        found = scope_of(self, *arguments)
        looked.set()
        assert changing.wait(60)
        assert not changed.wait(0.3)
        return found

    assert people.admin
    hashed = people.service.login.hashed("other", "a", "b") if people.service.login else ""
    monkeypatch.setattr(Login, "_scope", look)

    def change() -> None:
        changing.set()
        with people.service.db.write() as session:
            if what == "project":
                accounts.change(session, session.get_one(Project, project), enabled=False)
            elif what == "role":
                accounts.revoke(session, user, accounts.PROJECT, project, "member")
            else:
                accounts.change(session, session.get_one(accounts.User, user), password_hash=hashed)
        changed.set()

    with ThreadPoolExecutor(2) as threads:
        people_too = People(people.service)
        login = threads.submit(people_too.login, {"id": user}, "secret", {"project": {"id": project}})
        assert looked.wait(60)
        threads.submit(change).result(60)
        answer = login.result(60)
    monkeypatch.undo()
    with people.service.db.write() as session:
        if what == "project":
            accounts.change(session, session.get_one(Project, project), enabled=True)
        elif what == "role":
            accounts.grant(session, user, accounts.PROJECT, project, "member")
    assert answer.status in (201, 401)
    assert not believed(people, answer.headers.get("X-Subject-Token", ""))


@pytest.mark.parametrize("what", ["volume", "snapshot", "transfer"])
def test_nothing_is_made_in_a_project_that_went_while_the_request_was_on_its_way(
    people: People, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    giver, access = Access(people), Access(people)
    made = people.ask("POST", "/v3/volumes", {"volume": {"size": 1}}, giver.token).json["volume"]["id"]
    assert people.service.bus.wait_idle(60)
    asked: tuple[str, Any] = ("/v3/volumes", {"volume": {"size": 1}})
    if what == "snapshot":  # of another project's volume, as an administrator may
        asked = ("/v3/snapshots", {"snapshot": {"volume_id": made}})
    if what == "transfer":
        offer = people.ask("POST", "/v3/volume-transfers", {"transfer": {"volume_id": made}}, giver.token).json
        accept = {"accept": {"auth_key": offer["transfer"]["auth_key"]}}
        asked = (f"/v3/volume-transfers/{offer['transfer']['id']}/accept", accept)
    held = accounts.hold_project
    gone: list[str] = []

    def late(session: Session, project_id: str) -> bool:
        """The project is deleted after the token was looked at, and before its row is held."""
        if not gone:
            gone.append(project_id)
            session.execute(delete(Project).where(Project.id == project_id))
        return held(session, project_id)

    monkeypatch.setattr(accounts, "hold_project", late)
    token = people.admin if what == "snapshot" else access.token
    refused = people.ask("POST", asked[0], asked[1], token)
    assert (refused.status, len(gone)) == (401, 1)
    with people.service.db.read() as session:
        assert not session.scalars(select(Volume).where(Volume.project_id == access.project)).all()
        assert not session.scalars(select(Snapshot).where(Snapshot.volume_id == made)).all()


def test_a_project_in_which_something_is_being_made_is_not_deleted(people: People) -> None:
    access = Access(people)
    with ThreadPoolExecutor(6) as pool:
        body = {"volume": {"size": 1}}
        for _ in range(3):
            asked = [pool.submit(people.ask, "POST", "/v3/volumes", body, access.token) for _ in range(5)]
            deleted = pool.submit(people.identity, "DELETE", f"/projects/{access.project}")
            made = [one.result().status for one in asked].count(202)
            assert deleted.result().status == (409 if made else 204)
            if not made:
                break
    with people.service.db.read() as session:
        is_there = session.get(Project, access.project) is not None
        assert is_there == bool(session.scalars(select(Volume).where(Volume.project_id == access.project)).all())
