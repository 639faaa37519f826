"""No refusal of any schema repeats a secret: shapes are made from the schemas themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from marshmallow import fields

from blockstore.api import ROUTE_TABLES
from blockstore.api.http.routes import Endpoint
from blockstore.api.identity import IDENTITY_ROUTES
from blockstore.errors import SECRET_NAME, InvalidInput
from blockstore.microversions import MAXIMUM
from blockstore.schemas.base import Part, Schema, load

CANARY, NUMBER = "canary-7f3a", 7_310_642_913
SECRETS = ("password", "secret", "token", "auth_key", "adminPass", "chap_secret")
SCHEMAS = sorted(
    {
        endpoint.body
        for table in ROUTE_TABLES
        for target in table.routes.values()
        for endpoint in ([target] if isinstance(target, Endpoint) else target.values())
        if endpoint.body is not None
    }
    | {service.body for table in IDENTITY_ROUTES for service in table.services.values() if service.body is not None},
    key=lambda schema: f"{schema.__module__}.{schema.__name__}",
)


def places(schema: type[Schema], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every field, and every field of the parts, by its path."""
    for name, found in schema._declared_fields.items():
        here = (*path, found.data_key or name)
        yield here, found
        if isinstance(found, Part) and len(here) < 6:
            yield from places(found.schema, here)


def wrapped(path: tuple[str, ...], value: Any) -> Any:
    for step in reversed(path):
        value = {step: value}
    return value


def shapes(schema: type[Schema]) -> Iterator[Any]:
    """Yield bodies that hold the canary where a secret is, or where somebody puts one by mistake."""
    objects = [()] + [path for path, found in places(schema) if isinstance(found, Part)]
    for path in objects:
        for name in SECRETS:
            for value in (CANARY, NUMBER, [CANARY], {"x": CANARY}, {name: {"x": [CANARY]}}):
                yield wrapped(path, {name: value})
                yield wrapped(path, {name: value, "more": 1})
                yield wrapped(path, [{name: value}])
        if path:
            yield wrapped(path, CANARY)
            yield wrapped(path, NUMBER)
    for path, found in places(schema):
        yield wrapped(path, {"password": CANARY})
        yield wrapped(path, [CANARY])
        if SECRET_NAME.search(".".join(path)) or not getattr(found, "shows_value", False):
            for value in (CANARY, CANARY * 1000, f"{CANARY}\0", NUMBER, {"x": CANARY}):
                yield wrapped(path, value)
        if isinstance(found, fields.Field) and getattr(found, "shows_value", False):
            yield wrapped(path, f"https://someone:{CANARY}@example.org/{'x' * 5000}\0")


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_no_refusal_repeats_a_secret(schema: type[Schema]) -> None:
    count = 0
    for body in shapes(schema):
        try:
            load(schema, body, MAXIMUM)
        except InvalidInput as refusal:
            count += 1
            said = refusal.message + refusal.public
            assert CANARY not in said, body
            assert str(NUMBER) not in said, body
    assert count or schema.__name__ == "Anything"


def test_the_shapes_are_many() -> None:
    assert sum(1 for schema in SCHEMAS for _ in shapes(schema)) > 1000
