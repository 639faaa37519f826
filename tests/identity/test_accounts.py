"""Domains, projects, users, roles: what administrators do, and what others may not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from blockstore.api.identity import IDENTITY_ROUTES
from blockstore.api.identity.endpoint import admin, anybody, authenticated, owner_or_admin
from tests.identity.conftest import People, said

SERVICES = [(method, path, service) for table in IDENTITY_ROUTES for (method, path), service in table.services.items()]
BODIES: dict[str, Any] = {
    "POST /identity/v3/domains": {"domain": {"name": "never"}},
    "PATCH /identity/v3/domains/<domain_id>": {"domain": {"name": "never"}},
    "POST /identity/v3/projects": {"project": {"name": "never"}},
    "PATCH /identity/v3/projects/<project_id>": {"project": {"name": "never"}},
    "POST /identity/v3/users": {"user": {"name": "never"}},
    "PATCH /identity/v3/users/<user_id>": {"user": {"name": "never"}},
    "POST /identity/v3/roles": {"role": {"name": "never"}},
    "PATCH /identity/v3/roles/<role_id>": {"role": {"description": "never"}},
    "POST /identity/v3/users/<user_id>/application_credentials": {"application_credential": {"name": "never"}},
}


@pytest.mark.parametrize(("method", "path", "service"), SERVICES, ids=[f"{m} {p}" for m, p, _ in SERVICES])
def test_who_may_ask(town: People, method: str, path: str, service: Any) -> None:
    """Every service of the Identity API: without a token, as a member, and what is one's own."""
    place = re.sub(r"<user_id>", "admin", path)
    place = re.sub(r"<(\w+)>", "unknown", place)
    body = BODIES.get(f"{method} {path}")
    assert service.function.__doc__
    if service.rule is anybody:
        return
    assert town.ask(method, place, body).status == 401
    if not hasattr(town, "member"):
        town.member = town.user(town.project(), "member")  # type: ignore[attr-defined]
    user, token = town.member  # type: ignore[attr-defined]
    answer = town.ask(method, place, body, token)
    if service.rule in (admin, owner_or_admin):
        assert answer.status == 403
    else:
        assert service.rule is authenticated
        assert answer.status in (200, 403, 404)
    if service.rule is owner_or_admin:
        own = path.replace("<user_id>", user).replace("<credential_id>", "unknown")
        assert town.ask(method, own, body, token).status in (200, 201, 404)


def test_a_name_is_there_once(people: People) -> None:
    for noun, body in (
        ("projects", {"project": {"name": "twice"}}),
        ("users", {"user": {"name": "twice"}}),
        ("domains", {"domain": {"name": "twice"}}),
        ("roles", {"role": {"name": "twice"}}),
    ):
        first = people.identity("POST", f"/{noun}", body)
        assert first.status == 201
        again = people.identity("POST", f"/{noun}", body)
        assert again.status == 409
        assert "twice" in said(again)
    domain = people.identity("GET", "/domains?name=twice").json["domains"][0]["id"]
    assert people.identity("POST", "/projects", {"project": {"name": "twice", "domain_id": domain}}).status == 201
    assert people.identity("POST", "/projects", {"project": {"name": "x", "domain_id": "nowhere"}}).status == 404


def test_lists_are_filtered(people: People) -> None:
    project = people.project()
    user, _ = people.user(project, "member")
    name = people.identity("GET", f"/users/{user}").json["user"]["name"]
    assert [u["id"] for u in people.identity("GET", f"/users?name={name}").json["users"]] == [user]
    assert people.identity("GET", "/users?enabled=false").json["users"] == []
    assert [p["id"] for p in people.identity("GET", f"/users/{user}/projects").json["projects"]] == [project]
    assert [r["name"] for r in people.identity("GET", "/roles?name=admin").json["roles"]] == ["admin"]
    listed = people.identity("GET", f"/role_assignments?user.id={user}&include_names").json["role_assignments"]
    assert [(one["role"]["name"], one["scope"]["project"]["id"]) for one in listed] == [("member", project)]
    listed = people.identity("GET", f"/role_assignments?user.id={user}&effective").json["role_assignments"]
    assert [one["role"]["id"] for one in listed] == ["member", "reader"]
    assert (
        people.identity("GET", f"/role_assignments?scope.project.id={project}&role.id=admin").json["role_assignments"]
        == []
    )


def test_the_key_to_the_house_is_not_lost(people: People) -> None:
    for method, path, body in (
        ("DELETE", "/users/admin", None),
        ("PATCH", "/users/admin", {"user": {"enabled": False}}),
        ("DELETE", "/projects/admin", None),
        ("DELETE", "/domains/default", None),
        ("PATCH", "/domains/default", {"domain": {"enabled": False}}),
        ("DELETE", "/roles/admin", None),
        ("PATCH", "/roles/member", {"role": {"name": "else"}}),
        ("DELETE", "/projects/admin/users/admin/roles/admin", None),
    ):
        assert people.identity(method, path, body).status == 403, path


def test_a_project_with_volumes_stays(people: People) -> None:
    """Else nobody could reach them by its name any more."""
    project = people.project()
    _, token = people.user(project, "member")
    volume = people.ask("POST", "/v3/volumes", {"volume": {"size": 1}}, token).json["volume"]["id"]
    assert people.service.bus.wait_idle(60)
    answer = people.identity("DELETE", f"/projects/{project}")
    assert answer.status == 409
    assert "1 volumes" in said(answer)
    assert people.ask("DELETE", f"/v3/volumes/{volume}", None, token).status == 202
    assert people.service.bus.wait_idle(60)
    assert people.identity("DELETE", f"/projects/{project}").status == 204


def test_changing_ones_own_password(people: People) -> None:
    user, _ = people.user(people.project(), "member")
    path = f"/identity/v3/users/{user}/password"
    wrong = people.ask("POST", path, {"user": {"original_password": "no", "password": "n"}})
    assert wrong.status == 401
    right = people.ask("POST", path, {"user": {"original_password": "secret", "password": "n"}})
    assert right.status == 204
    assert people.login({"id": user}, "secret").status == 401
    assert people.login({"id": user}, "n").status == 201


def test_faults_have_the_form_of_keystone(town: People) -> None:
    for answer, status in (
        (town.identity("GET", "/users/unknown"), 404),
        (town.identity("GET", "/nothing"), 404),
        (town.identity("POST", "/users", {"user": {}}), 400),
        (town.identity("POST", "/users", [1]), 400),
        (town.identity("POST", "/users", {"user": {"name": "x" * 300}}), 400),
    ):
        assert answer.status == status
        assert set(answer.json["error"]) == {"code", "message", "title"}


def test_versions_are_found_without_a_token(town: People) -> None:
    found = town.ask("GET", "/identity")
    assert found.status == 300
    (version,) = found.json["versions"]["values"]
    assert version["links"][0]["href"] == "http://localhost/identity/v3/"
    for path in ("/identity/v3", "/identity/v3/"):
        assert town.ask("GET", path).json["version"]["id"] == version["id"]


def test_the_catalogue_as_administrators_list_it(town: People) -> None:
    services = town.identity("GET", "/services").json["services"]
    assert {one["type"] for one in services} == {"block-storage", "volumev3", "identity", "image"}
    chosen = next(one["id"] for one in services if one["type"] == "volumev3")
    endpoints = town.identity("GET", f"/endpoints?service_id={chosen}&interface=public").json["endpoints"]
    assert [one["url"] for one in endpoints] == ["http://localhost/v3/$(project_id)s"]
    assert town.identity("GET", "/regions").json["regions"][0]["id"] == "RegionOne"
