"""Random bodies, queries and headers at every endpoint: never a 500, and every refusal in the form of the API."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from marshmallow import Schema
from marshmallow.fields import Field

from blockstore.api import ROUTE_TABLES
from blockstore.api.attachments import LISTING as ATTACHMENTS
from blockstore.api.http.listing import Listing
from blockstore.api.http.routes import Endpoint
from blockstore.api.snapshots import LISTING as SNAPSHOTS
from blockstore.api.volumes.volumes import LISTING as VOLUMES
from blockstore.schemas.base import Part
from tests import sampling
from tests.api.conftest import SharedService
from tests.conftest import Answer, Client

FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    501: "notImplemented",
}
HARMFUL = ("/os-services/set-log",)
"""Not sent: the log levels of the test's own process would change."""

ROUTES = [
    (method, path, name, endpoint)
    for table in ROUTE_TABLES
    for (method, path), target in table.routes.items()
    for name, endpoint in ([("", target)] if isinstance(target, Endpoint) else target.items())
    if path not in HARMFUL
]

text = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "\0", "'", '"', "%", "_", "\\", "../..", "null", "true", "1", "-1", "available", "x" * 300, "é☃𝄞"]
    ),
)
number = st.one_of(
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 2**31, 2**63, 2**64]),
    st.floats(allow_nan=False, allow_infinity=False),
)
anything = st.recursive(
    st.one_of(st.none(), st.booleans(), number, text),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=8,
)


def bodies(schema: type[Schema]) -> st.SearchStrategy[Any]:
    """Return bodies that are near to what a schema takes: its fields, with values that mostly do not belong there."""
    fields: dict[str, Field[Any]] = schema._declared_fields
    near: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in fields.items():
        inner = bodies(field.schema) if isinstance(field, Part) else anything
        near[field.data_key or name] = st.one_of(inner, inner, anything)
    return st.one_of(
        st.fixed_dictionaries({}, optional=near),
        st.tuples(st.fixed_dictionaries(near), st.dictionaries(text, anything, max_size=1)).map(
            lambda two: {**two[0], **two[1]}
        ),
        st.dictionaries(text, anything, max_size=3),
    )


def words_of(listing: Listing) -> list[str]:
    return [*listing.columns, *listing.special, *(f"{name}~" for name in listing.columns)]


query_keys = st.one_of(
    st.sampled_from(
        [
            "limit", "offset", "marker", "sort", "sort_key", "sort_dir", "all_tenants", "with_count", "cascade",
            "force", "detail", "is_public", "extra_specs", "volume_type", "project_id", "host", "binary",
            *words_of(VOLUMES), *words_of(SNAPSHOTS), *words_of(ATTACHMENTS),
        ]
    ),
    text,
)  # fmt: skip
query_values = st.one_of(
    text,
    st.integers(-(2**66), 2**66).map(str),
    st.sampled_from(
        [
            "gt:2026-01-01", "neq:9999-12-31T23:59:59+23:59,lt:0001-01-01", "{'a':'b'}", "{1:2}", "{'a':'\\ud800'}",
            "{b'a':1j}", "name:asc,size:desc,id", "created_at:up", "true", "None", "1;2",
        ]
    ),
)  # fmt: skip
queries = st.dictionaries(query_keys, query_values, max_size=3)
versions = st.one_of(st.integers(0, 71).map("3.{}".format), st.sampled_from(["3.0", "3.71", "3.71", "3.71"]))


@pytest.fixture(scope="module")
def ids(shared_service: SharedService) -> dict[str, str]:
    """What paths may name."""
    shared_service.clear()
    admin = shared_service.admin("fuzz")
    volume = shared_service.volume(admin, name="fuzz", size=2)
    return {
        "volume_id": volume,
        "snapshot_id": shared_service.snapshot(admin, volume),
        "attachment_id": shared_service.attachment(admin, volume),
        "type_id": shared_service.type_id,
    }


def check(answer: Answer, what: object) -> None:
    """Fail unless an answer is of the API's form."""
    assert answer.status < 500 or answer.status == 501, (answer.status, answer.body, what)
    assert answer.headers["x-openstack-request-id"].startswith("req-")
    if answer.status < 400 or answer.headers["Content-Type"].startswith("text/plain"):
        assert answer.status in (200, 202, 204, 404, 413), answer.status
        return
    ((fault, inner),) = json.loads(answer.body).items()
    assert fault == FAULTS[answer.status], what
    assert inner["code"] == answer.status
    assert isinstance(inner["message"], str)
    assert 3 < len(inner["message"]) < 1000, inner["message"]


@pytest.mark.parametrize(
    ("method", "path", "name", "endpoint"), ROUTES, ids=lambda value: str(value) if isinstance(value, str) else ""
)
def test_no_request_is_answered_with_500(
    shared_service: SharedService, ids: dict[str, str], method: str, path: str, name: str, endpoint: Endpoint
) -> None:
    client: Client = shared_service.admin("fuzz")

    @settings(
        max_examples=sampling.effort(8, 60),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(data=st.data())
    def ask(data: st.DataObject) -> None:
        place = path
        for part in ("volume_id", "snapshot_id", "attachment_id", "type_id", "message_id", "key", "alias"):
            if f"<{part}>" in place:
                mostly = [ids[part]] * 3 if part in ids else []
                value = data.draw(st.one_of(*(st.just(known) for known in mostly), text.filter(bool)), label=part)
                place = place.replace(f"<{part}>", quote(value, safe=""))
        given_query = data.draw(queries, label="query")
        version = data.draw(versions, label="version")
        body = None if endpoint.body is None else data.draw(bodies(endpoint.body), label="body")
        raw = None if body is None else json.dumps(body).encode()
        if name and method == "POST" and body is not None and data.draw(st.booleans()):
            raw = json.dumps({name: body.get(name, body)}).encode()
        url = f"{place}?{urlencode(given_query)}"
        check(client(method, url, raw=raw, version=version), (method, url, raw))

    ask()
    client.wait_idle()


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    query=queries,
    version=versions,
    path=st.sampled_from(
        ["/volumes/detail", "/snapshots/detail", "/attachments", "/attachments/detail", "/types", "/messages"]
    ),
)
def test_no_query_of_a_list_is_answered_with_500(
    shared_service: SharedService, query: dict[str, str], version: str, path: str
) -> None:
    check(shared_service.admin("fuzz")("GET", f"{path}?{urlencode(query)}", version=version), query)


header_text = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=20)


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    headers=st.dictionaries(
        st.sampled_from(
            [
                "Accept", "If-Match", "X-Forwarded-Host", "Host", "X-Project-Id", "X-User-Id", "X-Roles",
                "OpenStack-API-Version", "X-OpenStack-Request-ID", "X-Auth-Token", "X-Service-Roles", "Content-Type",
            ]
        ),
        header_text,
        max_size=4,
    ),
    path=st.sampled_from(["/", "/volumes", "/volumes/detail", ""]),
)  # fmt: skip
def test_no_header_is_answered_with_500(sqlite_service: SharedService, headers: dict[str, str], path: str) -> None:
    answer = Client(sqlite_service.service)("GET", path, version=None, **headers)
    assert answer.status in (200, 302, 400, 403, 404, 406), (answer.status, answer.body)
