"""Bodies and queries of requests: their size, depth and number of elements are checked before anything else."""

from __future__ import annotations

import json
from typing import Any

import orjson
from flask import request

from blockstore.errors import (
    BadRequest,
    InvalidInput,
    QueryTooLong,
    UnsupportedMediaType,
    shortened,
)

MAX_BODY_BYTES = 114688
MAX_ELEMENTS = 5000
TOO_MANY = f"Malformed request body: it has more than {MAX_ELEMENTS} keys and items in total."
MAX_QUERY_BYTES, MAX_QUERY_KEYS = 8192, 64
MAX_DEPTH = 32
TOO_DEEP = f"Malformed request body: it is nested more than {MAX_DEPTH} levels deep."
JSON_TYPES = frozenset({"application/json", "application/vnd.openstack.volume+json"})


def refuse_long_query(query: bytes) -> None:
    """Raise QueryTooLong if a query string is too long, BadRequest if it has too many keys. Called before parsing."""
    if len(query) > MAX_QUERY_BYTES:
        raise QueryTooLong(f"The query string has {len(query)} bytes; at most {MAX_QUERY_BYTES} are allowed.")
    keys = query.count(b"&") + 1
    if keys > MAX_QUERY_KEYS:
        raise BadRequest(f"The query string has {keys} keys; at most {MAX_QUERY_KEYS} are allowed.")


def read_json() -> Any:
    """Return the JSON body. Raise BadRequest if it is malformed or too deep, UnsupportedMediaType if it is not JSON."""
    raw = request.get_data(cache=False)
    if not raw:
        raise BadRequest("Malformed request body: a JSON object is needed.")
    if request.mimetype and request.mimetype not in JSON_TYPES:
        raise UnsupportedMediaType("Unsupported Content-Type")
    try:
        data = orjson.loads(raw)
    except orjson.JSONDecodeError as exc:
        if "depth limit" in str(exc):
            raise BadRequest(TOO_DEEP) from None
        raise BadRequest("Malformed request body: it is not valid JSON.") from None
    if not isinstance(data, dict):
        raise BadRequest("Malformed request body: it must be a JSON object.")
    _check_extent(data)
    json.loads(raw, object_pairs_hook=_refuse_twice, parse_int=str, parse_float=str)
    return data


def _refuse_twice(pairs: list[tuple[str, Any]]) -> None:
    """Raise BadRequest if an object has a key twice: two parsers could read two different bodies."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRequest(f"Malformed request body: the key {shortened(key)} appears twice in one object.")
        seen.add(key)


def _check_extent(data: Any) -> None:
    """Raise BadRequest if a body is nested too deeply or has too many elements, before any element is checked."""
    level: list[Any] = [data]
    count = 0
    for _ in range(MAX_DEPTH):
        count += sum(map(len, level))
        if count > MAX_ELEMENTS:
            raise BadRequest(TOO_MANY)
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise BadRequest(TOO_DEEP)


def bounded_query() -> dict[str, str]:
    query = {key: values[-1] for key, values in request.args.lists()}
    for key, value in query.items():
        if "\0" in key or "\0" in value:
            raise InvalidInput(key.replace("\0", ""), value, "It must not hold the character NUL.")
    return query
