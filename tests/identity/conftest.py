"""A service with the built-in identity, and people who log in to it."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.identity.bootstrap import read_password
from tests.conftest import Answer

DEFAULT = {"id": "default"}


@dataclasses.dataclass
class People:
    """Asks as somebody, by token."""

    service: Service

    def __post_init__(self) -> None:
        self.http = self.service.app.test_client()
        self.password = read_password(self.service.state_dir)

    def ask(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Answer:
        """Ask anything; paths of identity begin with /identity."""
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        if token is not None:
            said["X-Auth-Token"] = token
        got = self.http.open(path, method=method, json=body, headers=said)
        return Answer(got.status_code, dict(got.headers), got.data)

    def identity(self, method: str, path: str, body: Any = None, token: str | None = None, **headers: str) -> Answer:
        """Ask the Identity API; as the administrator unless told otherwise."""
        return self.ask(method, f"/identity/v3{path}", body, self.admin if token is None else token, **headers)

    def login(self, user: Any, password: str, scope: Any = None) -> Answer:
        """Log in by password; ``user`` is a name in the default domain, or what the API takes."""
        who = {"name": user, "domain": DEFAULT} if isinstance(user, str) else user
        auth: dict[str, Any] = {
            "identity": {"methods": ["password"], "password": {"user": {**who, "password": password}}}
        }
        if scope is not None:
            auth["scope"] = {"project": {"name": scope, "domain": DEFAULT}} if isinstance(scope, str) else scope
        return self.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})

    def token(self, user: Any, password: str, scope: Any = None) -> str:
        """Return a token."""
        answer = self.login(user, password, scope)
        assert answer.status == 201, answer.body
        return answer.headers["X-Subject-Token"]

    @property
    def admin(self) -> str:
        """A token of the administrator's."""
        if not hasattr(self, "_admin"):
            self._admin = self.token("admin", self.password, "admin")
        return self._admin

    def project(self) -> str:
        """Make a project; return its id."""
        made = self.identity("POST", "/projects", {"project": {"name": f"p-{uuid.uuid4().hex[:8]}"}})
        return str(made.json["project"]["id"])

    def user(self, project: str, *roles: str) -> tuple[str, str]:
        """Make a user with roles on a project; return the user's id and a token for the project."""
        made = self.identity("POST", "/users", {"user": {"name": f"u-{uuid.uuid4().hex[:8]}", "password": "secret"}})
        user = str(made.json["user"]["id"])
        for role in roles:
            assert self.identity("PUT", f"/projects/{project}/users/{user}/roles/{role}").status == 204
        return user, self.token({"id": user}, "secret", {"project": {"id": project}}) if roles else ""


@pytest.fixture
def people(start_service: Callable[..., Service], database_url: str) -> People:
    """A fresh service on each database."""
    return People(start_service(database_url=database_url, auth="builtin"))


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """A service that tests share which make their own users."""
    from tests.conftest import make_config

    service = Service(make_config(tmp_path_factory.mktemp("town") / "state", auth="builtin"))
    service.start()
    yield People(service)
    service.stop()


def said(answer: Answer) -> str:
    """Return the sentence of a fault of the Identity API."""
    (fault,) = json.loads(answer.body).values()
    return str(fault["message"])
