"""Tokens: who gets one, what it says, and when it is no longer believed. A26 of the attacks."""

from __future__ import annotations

import datetime
import json
import logging
from typing import Any

import pytest
from sqlalchemy import select, update

from blockstore.db.models import ApplicationCredential, Token, now
from tests.identity.conftest import DEFAULT, People, said

TOKEN = {"methods": ["token"], "token": {"id": "x"}}


def believed(people: People, token: str) -> bool:
    """Whether the block storage API takes a token, and the Identity API says the same."""
    taken = people.ask("GET", "/v3/volumes", token=token).status
    assert taken in (200, 401)
    known = people.ask("GET", "/identity/v3/auth/projects", token=token).status
    assert known == taken
    return taken == 200


def test_the_first_start_makes_an_administrator(people: People) -> None:
    answer = people.login("admin", people.password, "admin")
    token = answer.json["token"]
    assert answer.status == 201
    assert token["project"] == {"id": "admin", "name": "admin", "domain": {"id": "default", "name": "Default"}}
    assert [role["name"] for role in token["roles"]] == ["admin", "member", "reader"]
    assert token["user"]["domain"] == {"id": "default", "name": "Default"}
    assert {(s["type"], s["name"]) for s in token["catalog"]} == {
        ("block-storage", "cinder"), ("volumev3", "cinderv3"), ("identity", "keystone"),
        ("image", "glance"),
    }  # fmt: skip
    urls = {s["type"]: {e["url"] for e in s["endpoints"]} for s in token["catalog"]}
    assert urls == {
        "block-storage": {"http://localhost/v3"},
        "volumev3": {"http://localhost/v3/admin"},
        "identity": {"http://localhost/identity"},
        "image": {"http://localhost/image"},
    }


def test_a_second_start_changes_nobody(people: People) -> None:
    before = people.password
    people.service._register()
    assert people.login("admin", before).status == 201
    assert (people.service.state_dir / "admin-password").stat().st_mode & 0o777 == 0o600


def test_the_words_of_a_token_are_kept_nowhere(people: People) -> None:
    token = people.admin
    with people.service.db.read() as session:
        kept = [str(row) for row in session.execute(select(Token.__table__))]
    assert kept
    assert not any(token in row for row in kept)


@pytest.mark.parametrize(
    "path",
    ["/v3/volumes", "/v3/admin/volumes", "/v3/limits", "/identity/v3/users", "/identity/v3/auth/catalog"],
)
@pytest.mark.parametrize("token", [None, "", "x", "A" * 43, "é", "x" * 5000, "' OR 1=1 --"])
def test_without_a_good_token_nobody_gets_in(town: People, path: str, token: str | None) -> None:
    headers = {} if token is None else {"X_Auth_Token": token.encode("utf-8").decode("latin-1")}
    answer = town.ask("GET", path, None, None, **headers)
    assert answer.status == 401
    assert answer.json["error"]["code"] == 401
    assert answer.headers["WWW-Authenticate"] == 'Keystone uri="http://localhost/identity"'


def test_a_token_in_the_query_is_none(town: People) -> None:
    assert town.ask("GET", f"/v3/volumes?X-Auth-Token={town.admin}&token={town.admin}").status == 401


def test_a_token_that_has_expired_is_refused(people: People) -> None:
    token = people.token("admin", people.password, "admin")
    assert believed(people, token)
    with people.service.db.write() as session:
        session.execute(update(Token).values(expires_at=now() - datetime.timedelta(seconds=1)))
    assert not believed(people, token)


def test_a_token_that_was_revoked_is_refused(people: People) -> None:
    token, other = (people.token("admin", people.password, "admin") for _ in range(2))
    assert people.ask("DELETE", "/identity/v3/auth/tokens", None, token, X_Subject_Token=token).status == 204
    assert not believed(people, token)
    assert believed(people, other)


def test_a_token_has_the_line_of_its_project_from_its_first_request_until_it_ends(town: People) -> None:
    project = town.project()
    _user, token = town.user(project, "member")

    def line() -> str:
        return town.service.token_projects.of({"x-auth-token": token})

    assert line() == project
    assert believed(town, token)
    assert town.ask("DELETE", "/identity/v3/auth/tokens", None, token, X_Subject_Token=token).status == 204
    assert town.ask("GET", "/identity/v3/auth/projects", token=token).status == 401
    assert line() == "", "it is a stranger's, wherever that is found"
    _user, other = town.user(project, "member")
    assert town.ask("DELETE", "/identity/v3/auth/tokens", None, other, X_Subject_Token=other).status == 204
    assert not believed(town, other)
    assert town.service.token_projects.of({"x-auth-token": other}) == ""


def test_whatever_it_rests_on_ends_a_token(people: People) -> None:
    """A changed password, a disabled user, project or domain, a role taken away, a user or project that is gone."""
    identity = people.identity

    def ends(change: Any) -> None:
        project = people.project()
        user, token = people.user(project, "member")
        assert believed(people, token)
        assert change(user, project).status in (200, 204)
        assert not believed(people, token)

    ends(lambda u, p: identity("PATCH", f"/users/{u}", {"user": {"password": "other"}}))
    ends(lambda u, p: people.ask(
        "POST", f"/identity/v3/users/{u}/password", {"user": {"original_password": "secret", "password": "n"}}
    ))  # fmt: skip
    ends(lambda u, p: identity("PATCH", f"/users/{u}", {"user": {"enabled": False}}))
    ends(lambda u, p: identity("PATCH", f"/projects/{p}", {"project": {"enabled": False}}))
    ends(lambda u, p: identity("DELETE", f"/projects/{p}/users/{u}/roles/member"))
    ends(lambda u, p: identity("DELETE", f"/users/{u}"))
    ends(lambda u, p: identity("DELETE", f"/projects/{p}"))


def test_a_disabled_domain_shuts_its_users_out(people: People) -> None:
    domain = people.identity("POST", "/domains", {"domain": {"name": "other"}}).json["domain"]["id"]
    made = people.identity("POST", "/users", {"user": {"name": "u", "password": "pw", "domain_id": domain}})
    user = made.json["user"]["id"]
    people.identity("PUT", f"/projects/admin/users/{user}/roles/reader")
    who = {"name": "u", "domain": {"name": "other"}}
    token = people.token(who, "pw", "admin")
    assert believed(people, token)
    assert people.identity("PATCH", f"/domains/{domain}", {"domain": {"enabled": False}}).status == 200
    assert not believed(people, token)
    assert people.login(who, "pw", "admin").status == 401


def test_a_token_is_for_one_project(people: People) -> None:
    mine, theirs = people.project(), people.project()
    _, token = people.user(mine, "member")
    assert people.ask("GET", f"/v3/{mine}/volumes", token=token).status == 200
    answer = people.ask("GET", f"/v3/{theirs}/volumes", token=token)
    assert (answer.status, answer.message) == (400, "Malformed request url")
    # claims in headers, which other ways of authentication go by, are nothing here
    answer = people.ask("GET", "/v3/types/none", None, token, X_Project_Id=theirs, X_Roles="admin")
    assert answer.status == 404
    answer = people.ask("POST", "/v3/types", {"volume_type": {"name": "t"}}, token, X_Roles="admin")
    assert answer.status == 403


def test_an_unscoped_token_is_for_no_volumes(people: People) -> None:
    user, _ = people.user(people.project(), "member")
    answer = people.login({"id": user}, "secret", {"unscoped": {}})
    assert "project" not in answer.json["token"]
    assert people.ask("GET", "/v3/volumes", token=answer.headers["X-Subject-Token"]).status == 403


def test_exchanging_a_token_makes_it_last_no_longer(people: People) -> None:
    first = people.login("admin", people.password, "admin")
    auth = {
        "identity": {"methods": ["token"], "token": {"id": first.headers["X-Subject-Token"]}},
        "scope": {"system": {"all": True}},
    }
    second = people.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})
    assert second.status == 201
    assert second.json["token"]["system"] == {"all": True}
    assert second.json["token"]["expires_at"] <= first.json["token"]["expires_at"]
    assert second.json["token"]["methods"] == ["password", "token"]


def test_no_role_no_scope(people: People) -> None:
    user, _ = people.user(people.project(), "member")
    stranger = people.login({"id": user}, "secret", {"project": {"id": people.project()}})
    nowhere = people.login({"id": user}, "secret", {"project": {"id": "nowhere"}})
    assert stranger.status == nowhere.status == 401
    assert said(stranger) == said(nowhere)


@pytest.mark.parametrize(
    ("auth", "field"),
    [
        ({}, "identity"),
        ({"identity": {"methods": []}}, "methods"),
        ({"identity": {"methods": ["guess"]}}, "methods"),
        ({"identity": {"methods": "password"}}, "methods"),
        ({"identity": {"methods": ["password"], "password": {"user": {"name": "a", "password": "b"}}}}, "user"),
        ({"identity": {"methods": ["password"], "password": {"user": {"id": "a", "password": 1}}}}, "password"),
        ({"identity": {"methods": ["token"], "token": {"id": "x"}}, "scope": {"system": {}}}, "system"),
        ({"identity": TOKEN, "scope": {"domain": {"id": "d"}, "project": {"id": "p"}}}, "scope"),
    ],
)  # fmt: skip
def test_a_body_that_is_wrong_is_told_what(town: People, auth: Any, field: str) -> None:
    answer = town.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})
    assert answer.status == 400
    assert field in said(answer)


def test_a_wrong_name_and_a_wrong_password_are_told_alike(people: People) -> None:
    answers = [people.login("nobody", "x"), people.login("admin", "x"), people.login({"id": "nobody"}, "x")]
    assert {answer.status for answer in answers} == {401}
    assert len({said(answer) for answer in answers}) == 1


def test_application_credentials(people: People) -> None:
    project = people.project()
    user, token = people.user(project, "member")
    place = f"/users/{user}/application_credentials"
    made = people.identity(
        "POST", place, {"application_credential": {"name": "ci", "roles": [{"name": "reader"}]}}, token
    )
    assert made.status == 201
    credential = made.json["application_credential"]
    proof = {"id": credential["id"], "secret": credential["secret"]}
    auth = {"identity": {"methods": ["application_credential"], "application_credential": proof}}
    answer = people.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})
    assert answer.status == 201
    assert answer.json["token"]["project"]["id"] == project
    assert [role["name"] for role in answer.json["token"]["roles"]] == ["reader"]
    acting = answer.headers["X-Subject-Token"]
    assert people.ask("GET", "/v3/volumes", token=acting).status == 200
    assert people.ask("POST", "/v3/volumes", {"volume": {"size": 1}}, acting).status == 403
    # its secret is told once; it makes no others; it cannot be exchanged for another project
    shown = people.identity("GET", f"{place}/{credential['id']}", None, token).json["application_credential"]
    assert "secret" not in shown
    assert people.identity("POST", place, {"application_credential": {"name": "more"}}, acting).status == 403
    auth = {"identity": {"methods": ["token"], "token": {"id": acting}}, "scope": {"project": {"id": project}}}
    assert people.ask("POST", "/identity/v3/auth/tokens", {"auth": auth}).status == 401
    with people.service.db.write() as session:
        session.execute(update(ApplicationCredential).values(expires_at=now() - datetime.timedelta(seconds=1)))
    assert not believed(people, acting)
    with people.service.db.write() as session:
        session.execute(update(ApplicationCredential).values(expires_at=None))
    assert believed(people, acting)
    assert people.identity("DELETE", f"{place}/{credential['id']}", None, token).status == 204
    assert not believed(people, acting)


def test_a_credential_gives_no_role_that_its_maker_lacks(people: People) -> None:
    user, token = people.user(people.project(), "reader")
    body = {"application_credential": {"name": "up", "roles": [{"name": "admin"}]}}
    assert people.identity("POST", f"/users/{user}/application_credentials", body, token).status == 400
    body = {"application_credential": {"name": "theirs"}}
    assert people.identity("POST", "/users/admin/application_credentials", body, token).status == 403


def test_nothing_secret_is_logged(people: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    token = people.token("admin", people.password, "admin")
    people.login("admin", "wrong-password")
    people.ask("GET", "/v3/volumes", token=token)
    people.ask("GET", "/v3/volumes?X-Auth-Token=" + token)
    people.identity("POST", "/users", {"user": {"name": "logged", "password": "my-new-secret"}}, token)
    for secret in (token, people.password, "wrong-password", "my-new-secret"):
        assert secret not in caplog.text


def test_a_service_speaks_for_a_user(people: People) -> None:
    """The token of another service is looked at, too; a bad one is refused."""
    user, _ = people.user(people.project(), "member")
    _, member = people.user(people.project(), "member")
    people.identity("PUT", f"/projects/service/users/{user}/roles/service")
    nova = people.token({"id": user}, "secret", {"project": {"name": "service", "domain": DEFAULT}})
    assert people.ask("GET", "/v3/volumes", None, member, X_Service_Token=nova).status == 200
    assert people.ask("GET", "/v3/volumes", None, member, X_Service_Token="forged").status == 401
    assert people.ask("GET", "/v3/volumes", None, nova).status == 403


def test_what_a_token_says_is_for_its_owner_and_services(people: People) -> None:
    project = people.project()
    _, one = people.user(project, "member")
    _, other = people.user(project, "member")
    assert people.ask("GET", "/identity/v3/auth/tokens", None, one, X_Subject_Token=one).status == 200
    assert people.ask("HEAD", "/identity/v3/auth/tokens", None, one, X_Subject_Token=one).status == 200
    assert people.ask("GET", "/identity/v3/auth/tokens", None, one, X_Subject_Token=other).status == 403
    assert people.identity("GET", "/auth/tokens", None, None, X_Subject_Token=other).status == 200
    assert people.identity("GET", "/auth/tokens", None, None, X_Subject_Token="forged").status == 404
    assert json.loads(people.identity("GET", "/auth/tokens?nocatalog", None, None, X_Subject_Token=one).body)
