"""A refusal of the Identity API, and the log of it, never repeat what somebody typed as a secret."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from tests.identity.conftest import DEFAULT, People

C = "canary-51fe"
USER = {"name": "admin", "domain": DEFAULT}


def by_password(user: Any, **more: Any) -> Any:
    return {"auth": {"identity": {"methods": ["password"], "password": {"user": user}, **more}}}


LOGINS = [
    by_password({"name": "admin", "password": C}),  # the domain is forgotten
    by_password({**USER, "password": [C]}),
    by_password({**USER, "password": {"x": C}}),
    by_password({**USER, "password": 5.5, "secret": C}),
    by_password({**USER, "password": C + "x" * 5000}),
    by_password({**USER, "password": f"{C}\0"}),
    by_password({**USER, "domain": {"name": 7}, "password": C}),
    by_password(C),
    by_password([{"password": C}]),
    {"auth": {"identity": {"methods": ["password"], "password": C}}},
    {"auth": {"identity": {"methods": [C], "password": {"user": {**USER, "password": C}}}}},
    {"auth": {"identity": {"methods": C}}},
    {"auth": {"identity": {"methods": ["token"], "token": {"id": [C]}}}},
    {"auth": {"identity": {"methods": ["token"], "token": C}}},
    {"auth": {"identity": {"methods": ["token"], "token": {"id": C * 100}}}},
    {"auth": {"identity": {"methods": ["application_credential"], "application_credential": {"secret": C}}}},
    {
        "auth": {
            "identity": {"methods": ["application_credential"], "application_credential": {"id": "x", "secret": [C]}}
        }
    },
    {"auth": {"identity": C}},
    {"auth": {"identity": {"password": {"user": {**USER, "password": C}}}}},
    {"auth": C},
    {"auth": [{"password": C}]},
    {"auth": {"scope": C, "identity": {"methods": ["password"]}}},
    {"password": C},
    {"auth": {"passwordCredentials": {"username": "admin", "password": C}}},
    {"auth": {"identity": {"methods": ["password"]}, "scope": {"project": {"name": "x"}, "password": C}}},
]
CHANGES = [
    ("POST", "/users", {"user": {"password": C}}),
    ("POST", "/users", {"user": {"name": "n", "password": [C]}}),
    ("POST", "/users", {"user": {"name": {"password": C}}}),
    ("POST", "/users", {"user": C}),
    ("PATCH", "/users/admin", {"user": {"password": {"x": C}}}),
    ("POST", "/users/admin/password", {"user": {"password": C}}),
    ("POST", "/users/admin/password", {"user": {"original_password": C, "password": ""}}),
    ("POST", "/users/admin/password", {"user": {"original_password": [C], "password": C}}),
    ("POST", "/users/admin/application_credentials", {"application_credential": {"secret": C}}),
    ("POST", "/users/admin/application_credentials", {"application_credential": {"name": "n", "secret": [C]}}),
    ("POST", "/users/admin/application_credentials", {"application_credential": {"name": "n", "roles": C}}),
]


def test_nothing_that_was_typed_as_a_secret_comes_back(town: People, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for body in LOGINS:
        answer = town.ask("POST", "/identity/v3/auth/tokens", body)
        assert 400 <= answer.status < 500, (body, answer.body)
        assert C not in answer.body.decode() + str(answer.headers), body
    for method, path, body in CHANGES:
        answer = town.identity(method, path, body)
        assert 400 <= answer.status < 500, (body, answer.body)
        assert C not in answer.body.decode() + str(answer.headers), body
    for headers in ({"X_Auth_Token": C}, {"X_Subject_Token": C}, {"Authorization": f"Basic {C}"}, {"Cookie": C}):
        for path in ("/v3/volumes", "/identity/v3/auth/tokens", f"/v3/volumes?token={C}"):
            answer = town.ask("GET", path, **headers)
            assert C not in answer.body.decode() + str(answer.headers), headers
    assert C not in caplog.text
