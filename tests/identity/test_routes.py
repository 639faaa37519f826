"""Every route with real tokens: none, of a reader, a member, an administrator, and of another project."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore.api.http.routes import Endpoint
from blockstore.policy.rules import RULES, Level
from tests.api.test_isolation import ENDPOINTS, body_of, place
from tests.identity.conftest import People

LEVELS = [Level.ANYONE, Level.READER, Level.MEMBER, Level.ADMIN]
ROLES = {"reader": Level.READER, "member": Level.MEMBER, "admin": Level.ADMIN}


class Cast:
    """One user for each role in a project, and a member of another."""

    def __init__(self, people: People) -> None:
        self.project, self.other = people.project(), people.project()
        self.tokens = {role: people.user(self.project, role)[1] for role in ROLES}
        self.stranger = people.user(self.other, "member")[1]


@pytest.fixture(scope="module")
def cast(town: People) -> Cast:
    return Cast(town)


@pytest.mark.parametrize(
    ("method", "path", "name", "endpoint"), ENDPOINTS, ids=[f"{m} {p} {n}".strip() for m, p, n, _ in ENDPOINTS]
)
def test_who_gets_past_the_door(
    town: People, cast: Cast, method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    body: Any = body_of(method, path, name, endpoint)
    where = f"/v3/{cast.project}{place(path, target_project=cast.project)}"
    at = {"OpenStack_API_Version": "volume 3.71"}
    nobody = town.ask(method, where, body, None, **at)
    assert (nobody.status, "error" in nobody.json) == (401, True)
    for role, level in ROLES.items():
        answer = town.ask(method, where, body, cast.tokens[role], **at)
        if LEVELS.index(level) < LEVELS.index(RULES[endpoint.policy]):
            assert (answer.status, answer.message) == (403, f"Policy doesn't allow {endpoint.policy} to be performed.")
        else:
            assert answer.status in (200, 202, 204, 400, 404, 501), answer.body
    stranger = town.ask(method, where, body, cast.stranger, **at)
    assert (stranger.status, stranger.message) == (400, "Malformed request url")


def test_a_name_with_nul_is_nobodys_before_anybody_is_asked(people: People) -> None:
    body = {"user": {"password": "new", "original_password": "old"}}
    for method, path in (("POST", "/users/a%00b/password"), ("GET", "/projects/%00"), ("GET", "/users/%00")):
        refused = people.identity(method, path, body if method == "POST" else None)
        assert (refused.status, refused.json["error"]["code"]) == (404, 404)
