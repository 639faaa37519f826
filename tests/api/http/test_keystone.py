"""What stands between the middleware and Keystone: the cache, the turns of strangers, one login for all who wait.

What answers in Keystone's place is made up here; ``tests/keystone`` has the real one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from werkzeug.test import EnvironBuilder
from werkzeug.wrappers import Request

from blockstore.address import parse_networks
from blockstore.api.http.waiting import ThreadReserve
from blockstore.config import KeystoneConfig

# Of webob, which the middleware needs.
pytestmark = pytest.mark.filterwarnings("ignore:'cgi' is deprecated:DeprecationWarning")

WAIT_S = 60
PROXY = "192.0.2.1"


class Asked:
    """Stands in for Keystone: notes the tokens about which it is asked, and answers when it is let."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self._changed = threading.Condition()
        self._left = 0

    def about(self, token: str) -> None:
        with self._changed:
            self.tokens.append(token)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._left > 0, WAIT_S)
            self._left -= 1

    def answers(self, count: int) -> None:
        with self._changed:
            self._left += count
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[str]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.tokens) >= count, WAIT_S), self.tokens
            return self.tokens


@pytest.fixture
def asked() -> Asked:
    return Asked()


@pytest.fixture
def application(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], str]]:
    """Ask with a token from an address, behind the proxy; return why Keystone was not asked, or an empty string."""
    from keystonemiddleware.auth_token import AuthProtocol, InvalidToken

    from blockstore.api.http.authentication import KEYSTONE_AWAY
    from blockstore.api.http.keystone import Guard, guard

    def fetch_token(_middleware: Any, token: str, **_kwargs: Any) -> Any:
        asked.about(token)
        raise InvalidToken("forged")

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ.get(KEYSTONE_AWAY, "").encode()]

    monkeypatch.setattr(AuthProtocol, "fetch_token", fetch_token)
    monkeypatch.setattr(Guard, "_log_in", lambda _guard: None)
    guarded = guard(answer, CONFIG, "here", parse_networks(PROXY), lambda _headers: "", ThreadReserve(1))

    def ask(address: str, token: str) -> str:
        environ = {
            "REQUEST_METHOD": "GET",
            "SCRIPT_NAME": "",
            "PATH_INFO": "/v3",
            "SERVER_NAME": "here",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "REMOTE_ADDR": PROXY,
            "HTTP_X_FORWARDED_FOR": address,
            "HTTP_X_AUTH_TOKEN": token,
        }
        return b"".join(guarded(environ, lambda *_given: None)).decode()

    yield ask
    asked.answers(1000)


DOMAIN = {"id": "default", "name": "Default"}
TOKEN: dict[str, Any] = {
    "user": {"id": "u", "name": "u", "domain": DOMAIN},
    "project": {"id": "p", "name": "p", "domain": DOMAIN},
    "roles": [{"id": "r", "name": "member"}],
    "expires_at": "2099-01-01T00:00:00.000000Z",
    "issued_at": "2026-01-01T00:00:00.000000Z",
}
ODD = "Keystone's answer about the token cannot be read. Ask your administrator."
CONFIG = KeystoneConfig(auth_url="http://127.0.0.1:1/v3", username="u", password="p", project_name="service")


def test_clients_of_a_proxy_are_told_apart_and_failures_are_noted(
    asked: Asked, application: Callable[[str, str], str]
) -> None:
    """One client behind the proxy holds every turn and every place; another has its place, and the next turn."""
    from blockstore.api.http.keystone import CROWDED
    from blockstore.api.http.strangers import MOST_ASKED, MOST_WAITING

    whole = MOST_ASKED + MOST_WAITING
    with ThreadPoolExecutor(whole + 1) as pool:
        asked.answers(1)
        assert application("198.18.0.1", "forged") == ""
        crowd = [pool.submit(application, "198.18.0.1", f"forged{n}") for n in range(whole)]
        asked.wait_for(MOST_ASKED + 1)
        newcomer = pool.submit(application, "198.18.0.2", "new")
        asked.answers(2)
        assert "new" in asked.wait_for(MOST_ASKED + 3)[-2:]
        asked.answers(1000)
        assert newcomer.result(WAIT_S) == ""
        assert {one.result(WAIT_S) for one in crowd} <= {"", CROWDED}


def test_the_cache_is_bounded_by_its_bytes_and_keeps_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockstore.api.http import keystone

    monkeypatch.setattr(keystone, "MOST_CACHED_BYTES", 10_000)
    cache = keystone.Cache(30)
    for number in range(100):
        cache.put((f"token{number}", False), {"token": {"rules": "x" * 1000}})
        cache.put((f"token{number}", False), {"token": {"rules": "y" * 1000}})
    kept = [number for number in range(100) if cache.get((f"token{number}", False))]
    assert kept == list(range(94, 100))
    assert cache.get(("token99", False)) == {"token": {"rules": "y" * 1000}}
    cache.put(("huge", False), {"token": {"rules": "x" * 20_000}})
    assert cache.get(("huge", False)) is None


def test_an_entry_goes_when_its_time_has_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockstore.api.http import keystone

    at = 100.0
    monkeypatch.setattr(keystone.time, "monotonic", lambda: at)
    cache = keystone.Cache(30)
    for number in range(3):
        cache.put((f"old{number}", False), {"token": {}})
    at = 131.0
    assert cache.get(("old0", False)) is None
    cache.put(("new", False), {"token": {}})
    assert list(cache._entries) == [("new", False)]
    assert keystone.Cache(0).put(("never", False), {}) is None


@pytest.mark.parametrize("project", [5, ["p"], "p"])
def test_the_project_of_a_token_is_a_text(project: Any) -> None:
    assert answered({"token": {**TOKEN, "project": {**TOKEN["project"], "id": project}}}) == (
        "" if project == "p" else ODD
    )


@pytest.mark.parametrize("data", [{"token": {}}, {"token": {"roles": ["admin"]}}, "token"])
def test_data_of_a_token_that_nobody_can_read_are_keystones_failure(data: Any) -> None:
    assert answered(data) == ODD


def answered(data: Any) -> str:
    """Ask with a cached token of these data; return why it cannot be used, or an empty string."""
    from blockstore.api.http.authentication import KEYSTONE_AWAY
    from blockstore.api.http.keystone import guard

    seen: list[str] = []

    def answer(environ: Any, start_response: Any) -> list[bytes]:
        seen.append(environ.get(KEYSTONE_AWAY, ""))
        start_response("200 OK", [])
        return []

    guarded = guard(answer, CONFIG, "here", (), lambda _headers: "", ThreadReserve(1))
    guarded._cache.put(("odd", False), data)
    guarded(EnvironBuilder("/v3", headers={"X-Auth-Token": "odd"}).get_environ(), lambda *_given: None)
    return seen[0]


def test_a_bad_service_token_does_not_make_a_stranger_of_the_user() -> None:
    from blockstore.api.http.authentication import by_middleware
    from blockstore.errors import Unauthorized
    from blockstore.policy.rules import Policy

    noted: list[tuple[str, str | None]] = []
    authenticate = by_middleware(
        Policy(), frozenset({"service"}), lambda token, project: noted.append((token, project))
    )
    headers = {"X-Auth-Token": "good", "X-Identity-Status": "Confirmed", "X-Service-Identity-Status": "Invalid"}
    with pytest.raises(Unauthorized):
        authenticate(Request(EnvironBuilder(headers=headers).get_environ()), None, "req-1", None)
    assert noted == []
    with pytest.raises(Unauthorized):
        authenticate(
            Request(EnvironBuilder(headers={**headers, "X-Identity-Status": "Invalid"}).get_environ()), None, "r", None
        )
    assert noted == [("good", None)]


def test_a_cached_token_needs_no_place_and_no_keystone() -> None:
    from keystonemiddleware.auth_token import InvalidToken

    from blockstore.api.http.keystone import MAX_TOKEN, Cache, guard

    cache = Cache(30)
    cache.put(("good", False), {"token": {}})
    asked: list[object] = []
    made = guard(None, CONFIG, "here", (), lambda headers: asked.append(headers) or "", ThreadReserve(1))
    made._cache = cache
    assert made.fetch_token("good") == {"token": {}}
    with pytest.raises(InvalidToken):
        made.fetch_token("x" * (MAX_TOKEN + 1))
    assert asked == []


def test_one_failed_login_answers_all_who_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from blockstore.api.http.keystone import KeystoneAway, guard

    logins, begun, fail = [], threading.Event(), threading.Event()

    def get_token(_auth: Any) -> str:
        logins.append(threading.current_thread().name)
        begun.set()
        assert fail.wait(WAIT_S)
        raise ConnectionError("Keystone is away")

    made = guard(None, CONFIG, "here", (), lambda _headers: "", ThreadReserve(1))
    monkeypatch.setattr(made._session, "get_token", get_token)

    def login() -> type[BaseException]:
        with pytest.raises((KeystoneAway, ConnectionError)) as raised:
            made._log_in()
        return raised.type

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(login) for _ in range(8)]
        assert begun.wait(WAIT_S)
        fail.set()
        failures = [one.result(WAIT_S) for one in waiting]
    assert len(logins) == 1
    assert sorted(failure.__name__ for failure in failures) == ["ConnectionError"] + ["KeystoneAway"] * 7
