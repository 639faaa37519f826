"""Guesses at a password, as a caller sees them: counted for the user who was meant, by whatever name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from blockstore.app.service import Service
from blockstore.config import IdentityConfig
from blockstore.identity import attempts, hashing
from blockstore.identity.hashing import HashingPool
from tests.conftest import Answer, make_config
from tests.identity.conftest import DEFAULT, People

FREE = 3


@pytest.fixture(scope="module")
def village(tmp_path_factory: pytest.TempPathFactory) -> Iterator[People]:
    """A service in which few failures are free."""
    config = make_config(
        tmp_path_factory.mktemp("village") / "state",
        auth="builtin",
        identity=IdentityConfig(login_failures=FREE, login_pause_s=5),
    )
    service = Service(config)
    service.start()
    yield People(service)
    service.stop()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is held: who would have to wait is told so at once, and on a slow machine, too: the clock stands still."""
    now = attempts.monotonic()
    monkeypatch.setattr(attempts, "monotonic", lambda: now)
    monkeypatch.setattr(attempts, "MOST_HELD", 0)


def guess(people: People, user: dict[str, Any], address: str = "192.0.2.1", password: str = "guess") -> Answer:
    """Log in from an address."""
    auth = {"identity": {"methods": ["password"], "password": {"user": {**user, "password": password}}}}
    got = people.http.open(
        "/identity/v3/auth/tokens", method="POST", json={"auth": auth}, environ_overrides={"REMOTE_ADDR": address}
    )
    return Answer(got.status_code, dict(got.headers), got.data)


def names_of(user_id: str, name: str) -> Iterator[dict[str, Any]]:
    """Return one user under ever new words."""
    yield {"id": user_id}
    yield {"name": name, "domain": DEFAULT}
    yield {"name": name, "domain": {"name": "Default"}}
    for number in range(10):
        yield {"name": name, "domain": {**DEFAULT, "name": f"made up {number}"}}
        yield {"id": user_id, "name": f"made up {number}", "domain": {"name": f"made up {number}"}}


def test_one_user_is_counted_as_one_whatever_the_body_says(village: People, impatient: None) -> None:
    made = village.identity("POST", "/users", {"user": {"name": "meant", "password": "secret"}}).json["user"]
    statuses = [guess(village, user).status for user in names_of(made["id"], "meant")]
    assert statuses == [401] * FREE + [429] * (len(statuses) - FREE)
    assert guess(village, {"id": made["id"]}, "192.0.2.2", "secret").status == 201


def test_an_unknown_name_is_counted_as_a_known_one(village: People, impatient: None) -> None:
    """So that nothing tells whether there is such a user."""
    village.identity("POST", "/users", {"user": {"name": "there", "password": "secret"}})

    def told(name: str) -> list[tuple[int, Any]]:
        bodies = [
            {"name": name, "domain": domain}
            for domain in (DEFAULT, {"name": "Default"}, *({**DEFAULT, "name": f"x{n}"} for n in range(4)))
        ]
        answers = [guess(village, body, "192.0.2.9") for body in bodies]
        return [(answer.status, answer.json) for answer in answers]

    assert told("there") == told("not-there")


def test_a_user_is_slowed_down_and_not_shut_out(village: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many failures as are free, from the address of the proxy that everybody comes from."""
    made = village.identity("POST", "/users", {"user": {"name": "behind", "password": "secret"}}).json["user"]
    waited: list[float] = []
    login = village.service.login
    assert login is not None
    now = attempts.monotonic()

    def pass_time(seconds: float | None = None) -> bool:
        nonlocal now
        waited.append(seconds or 0)
        now += seconds or 0
        return False

    monkeypatch.setattr(attempts, "monotonic", lambda: now)
    monkeypatch.setattr(login._attempts._changed, "wait", pass_time)
    for _ in range(FREE * 10):
        assert guess(village, {"id": made["id"]}, "192.0.2.5").status == 401
    assert guess(village, {"id": made["id"]}, "192.0.2.5", "secret").status == 201
    assert max(waited) <= 5
    assert sum(waited) > FREE * 9
    waited.clear()
    # lately logged in from there: others' guesses from there delay the right one by some seconds, and never refuse it
    for _ in range(FREE * 10):
        assert guess(village, {"id": made["id"]}, "192.0.2.5").status == 401
    waited.clear()
    assert guess(village, {"id": made["id"]}, "192.0.2.5", "secret").status == 201
    assert sum(waited) <= attempts.LONGEST_FAMILIAR_S


def test_changing_ones_password_is_counted_with_logins(village: People, impatient: None) -> None:
    made = village.identity("POST", "/users", {"user": {"name": "changes", "password": "secret"}}).json["user"]
    for _ in range(FREE):
        guess(village, {"id": made["id"]}, "127.0.0.1")
    body = {"user": {"original_password": "guess", "password": "n"}}
    answer = village.ask("POST", f"/identity/v3/users/{made['id']}/password", body)
    assert answer.status == 429
    assert 1 <= int(answer.headers["Retry-After"]) <= 5


def test_secrets_of_application_credentials_are_counted(village: People, impatient: None) -> None:
    user, token = village.user(village.project(), "member")
    name = village.identity("GET", f"/users/{user}").json["user"]["name"]
    place = f"/users/{user}/application_credentials"
    made = village.identity("POST", place, {"application_credential": {"name": "ci"}}, token)
    credential = made.json["application_credential"]

    def tried(secret: str, **proof: Any) -> int:
        auth = {
            "identity": {"methods": ["application_credential"], "application_credential": {**proof, "secret": secret}}
        }
        return village.ask("POST", "/identity/v3/auth/tokens", {"auth": auth}).status

    for wrong in ({"id": credential["id"]}, {"id": "nowhere"}):
        statuses = [tried("guess", **wrong, name=f"made up {n}") for n in range(FREE + 2)]
        assert statuses == [401] * FREE + [429] * 2
    by_name = {"name": "ci", "user": {"name": name, "domain": {**DEFAULT, "name": "made up"}}}
    assert tried("guess", **by_name) == 429
    assert village.login({"id": user}, "secret").status == 201  # a person is not slowed by guesses at a program's


def test_who_finds_the_queue_full_is_told_when_to_come_back(village: People, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logins, new users, new passwords and new credentials: all pass the same pool."""
    user, token = village.user(village.project(), "member")
    login = village.service.login
    assert login is not None
    assert village.admin
    monkeypatch.setattr(login, "_pool", HashingPool(most_waiting=0))
    answers = [
        guess(village, {"id": user}, "192.0.2.77"),
        village.identity("POST", "/users", {"user": {"name": "new", "password": "x"}}),
        village.identity("PATCH", f"/users/{user}", {"user": {"password": "x"}}),
        village.ask(
            "POST", f"/identity/v3/users/{user}/password", {"user": {"original_password": "secret", "password": "x"}}
        ),
        village.identity(
            "POST", f"/users/{user}/application_credentials", {"application_credential": {"name": "c"}}, token
        ),
    ]
    assert [answer.status for answer in answers] == [503] * 5
    assert {answer.headers["Retry-After"] for answer in answers} == {str(hashing.RETRY_AFTER_S)}
    assert village.ask("GET", "/v3/volumes", token=token).status == 200


def test_a_user_has_so_many_tokens_and_a_login_is_never_refused(
    start_service: Callable[..., Service], database_url: str
) -> None:
    """A client that logs in for each command: those go that would end first."""
    identity = dataclasses.replace(IdentityConfig(), tokens_per_user=5)
    people = People(start_service(database_url=database_url, auth="builtin", identity=identity))
    others = people.user(people.project(), "member")[1]
    user, first = people.user(people.project(), "member")
    tokens = [people.token({"id": user}, "secret") for _ in range(6)]
    believed = [people.ask("GET", "/identity/v3/auth/projects", token=token).status for token in (first, *tokens)]
    assert believed == [401] * 2 + [200] * 5
    assert people.ask("GET", "/identity/v3/auth/projects", token=others).status == 200
