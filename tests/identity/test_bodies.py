"""The worst bodies that the Identity API is sent: each is refused with a sentence, and costs little time."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from blockstore.api.identity import IDENTITY_ROUTES
from blockstore.api.identity.endpoint import MAX_BODY_BYTES, anybody
from tests.conftest import Answer
from tests.identity.conftest import People, said
from tests.processor import slowness

MOST_S = 0.020
LOGIN = "POST", "/auth/tokens"


def filled(shape: str, piece: str, size: int = MAX_BODY_BYTES) -> bytes:
    """Return a body with as many pieces in the place of ``*`` as it may have."""
    room = size - len(shape) + 1
    pieces = ",".join(itertools.repeat(piece, room // (len(piece) + 1)))
    return shape.replace("*", pieces).encode()


def numbered(shape: str, size: int = MAX_BODY_BYTES) -> bytes:
    """Return a body with as many different keys in the place of ``*`` as it may have."""
    keys = ",".join(f'"{number:x}":1' for number in range((size - len(shape)) // 8))
    return shape.replace("*", keys).encode()


def worst() -> Iterator[tuple[str, bytes]]:
    """Return bodies by what is bad about them; ``NOUN`` is the one of the place they are sent to."""
    identity = '{"auth":{"identity":{"methods":[*],"password":{"user":{"id":"a","password":"b"}}}}}'
    yield "methods, known", filled(identity, '"password"')
    yield "methods, unknown", filled(identity, '"x"')
    yield "methods, numbers", filled(identity, "1")
    yield "methods, lists", filled(identity, "[]")
    yield "keys at the top", numbered("{*}")
    yield "keys in the noun", numbered('{"NOUN":{*}}')
    yield "keys in identity", numbered('{"auth":{"identity":{"methods":["password"],*}}}')
    yield "keys in a scope", numbered('{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}},"scope":{*}}}')
    yield (
        "keys in system",
        numbered('{"auth":{"identity":{"methods":["token"],"token":{"id":"x"}},"scope":{"system":{*}}}}'),
    )
    yield "roles", filled('{"NOUN":{"name":"x","roles":[*]}}', '{"name":"x"}')
    yield "roles, empty", filled('{"NOUN":{"name":"x","roles":[*]}}', "{}")
    yield "a long name", filled('{"NOUN":{"name":"*"}}', "x" * 1000)
    yield "a name of blanks", filled('{"NOUN":{"name":"*"}}', " " * 1000)
    yield "a long time", filled('{"NOUN":{"name":"x","expires_at":"*"}}', "2" * 1000)
    yield "a long number", filled('{"NOUN":{"name":*}}', "1" * 15000)
    yield "escapes", filled('{"NOUN":{"name":"*"}}', "\\u00e9" * 100)
    yield "deep", b'{"NOUN":' + b"[" * 8000 + b"]" * 8000 + b"}"
    yield "broken", b'{"NOUN":' + b"[" * 8000
    yield (
        "a token of many letters",
        filled('{"auth":{"identity":{"methods":["token"],"token":{"id":"*"}}}}', "x" * 1000),
    )
    yield "too long by one", b'"' + b"x" * (MAX_BODY_BYTES - 1) + b'"'
    yield "much too long", filled(identity, '"password"', 110_000)
    yield "much too many keys", numbered("{*}", 110_000)


WORST = dict(worst())
PLACES = [
    (method, path, service)
    for table in IDENTITY_ROUTES
    for (method, path), service in table.services.items()
    if service.body is not None
]


def sent(town: People, method: str, path: str, body: bytes, token: str | None) -> tuple[Answer, float]:
    """Send a body; return the answer and the least processor time of three."""
    headers = {"Content-Type": "application/json"} | ({"X-Auth-Token": token} if token else {})
    took = []
    for _ in range(3):
        started = time.thread_time()
        got = town.http.open(path, method=method, data=body, headers=headers)
        took.append(time.thread_time() - started)
    return Answer(got.status_code, dict(got.headers), got.data), min(took)


@pytest.mark.timed
@pytest.mark.parametrize("kind", WORST)
def test_every_place_refuses_the_worst_quickly(town: People, kind: str) -> None:
    """Without a token where none is needed, as an administrator everywhere else."""
    for method, path, service in PLACES:
        noun = next(iter(service.body._declared_fields))
        place = path.replace("<user_id>", "admin").replace("<project_id>", "admin").replace("<domain_id>", "default")
        place = place.replace("<role_id>", "reader")
        body = WORST[kind].replace(b"NOUN", noun.encode())
        answer, took_s = sent(town, method, place, body, None if service.rule is anybody else town.admin)
        assert answer.status < 500, (method, path, answer.body)
        assert took_s <= MOST_S or took_s <= MOST_S * slowness(), (method, path, kind, took_s)
        if len(body) > MAX_BODY_BYTES:
            assert (answer.status, said(answer)) == (
                413,
                "The body of a request to the Identity API has at most 16384 bytes.",
            )
        if answer.status >= 400:
            assert len(answer.body) < 1000


@pytest.mark.parametrize(
    "methods", [[], ["password"] * 4, ["guess"], "password", {"password": 1}, [["password"]], None]
)
def test_the_number_of_methods_is_looked_at_first(town: People, methods: Any) -> None:
    auth = {"identity": {"methods": methods, "password": {"user": {"id": "a", "password": "b"}}}}
    answer = town.ask("POST", "/identity/v3/auth/tokens", {"auth": auth})
    assert answer.status == 400
    assert "methods" in said(answer)


def test_a_body_of_the_largest_size_passes(town: People) -> None:
    body = {"auth": {"identity": {"methods": ["password"], "password": {"user": {"id": "a", "password": "b"}}}}}
    text = json.dumps(body)
    answer, _ = sent(town, "POST", "/identity/v3/auth/tokens", (text + " " * (MAX_BODY_BYTES - len(text))).encode(), "")
    assert answer.status == 401


def test_roles_of_a_credential_are_told_what_is_wrong(town: People) -> None:
    for roles in ([{}], [1], "member", [{"id": 1}], [{"name": "x" * 256}], [{"name": "member"}] * 51):
        answer = town.identity(
            "POST", "/users/admin/application_credentials", {"application_credential": {"name": "x", "roles": roles}}
        )
        assert answer.status == 400
        assert "roles" in said(answer)
