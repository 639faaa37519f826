"""GET /openapi.json: this API in OpenAPI 3.1, made from the tables that serve the requests.

Paths come from the route tables, bodies from the schemas, query parameters from the listings. So the document cannot
contradict the service. Paths with a project are left out: they behave the same.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from http import HTTPStatus
from typing import Any

import orjson
from flask import Blueprint, Response

from blockstore import __version__
from blockstore.api.http.faults import fault
from blockstore.api.http.listing import Listing
from blockstore.api.http.routes import Endpoint, Routes
from blockstore.microversions import MAXIMUM, MINIMUM, Version
from blockstore.schemas import base

FAULTS = {
    400: "badRequest", 403: "forbidden", 404: "itemNotFound", 406: "computeFault", 409: "conflictingRequest",
    413: "overLimit", 414: "badRequest", 415: "badMediaType", 429: "overLimit", 501: "notImplemented",
    503: "serviceUnavailable",
}  # fmt: skip
PAGING = ("limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants", "with_count")
WRAPPED = {
    # the only key of a reply, by the path below /v3
    "/volumes": "volumes", "/volumes/detail": "volumes", "/volumes/<volume_id>": "volume",
    "/volumes/summary": "volume-summary", "/snapshots": "snapshots", "/snapshots/detail": "snapshots",
    "/snapshots/<snapshot_id>": "snapshot", "/attachments": "attachments", "/attachments/detail": "attachments",
    "/attachments/<attachment_id>": "attachment", "/types": "volume_types", "/types/<type_id>": "volume_type",
    "/qos-specs": "qos_specs", "/qos-specs/<qos_id>": "qos_specs", "/messages": "messages",
    "/messages/<message_id>": "message", "/limits": "limits", "/os-services": "services", "/os-hosts": "hosts",
    "/os-hosts/<host_name>": "host", "/extensions": "extensions", "/extensions/<alias>": "extension",
    "/resource_filters": "resource_filters", "/volume-transfers": "transfers", "/volume-transfers/detail": "transfers",
    "/volume-transfers/<transfer_id>": "transfer", "/os-volume-transfer": "transfers",
    "/os-volume-transfer/detail": "transfers", "/os-volume-transfer/<transfer_id>": "transfer",
    "/os-quota-sets/<target_project>": "quota_set", "/os-quota-sets/<target_project>/defaults": "quota_set",
    "/os-quota-class-sets/<class_name>": "quota_class_set", "/default-types": "default_types",
    "/default-types/<for_project>": "default_type", "/scheduler-stats/get_pools": "pools",
    "/os-availability-zone": "availabilityZoneInfo", "/clusters": "clusters", "/clusters/detail": "clusters",
}  # fmt: skip


def blueprint(tables: Sequence[Routes]) -> Blueprint:
    """Return the route of the document. The first request builds the document; it contains no tenant's data."""
    routes = Blueprint("openapi", __name__)
    cached: list[bytes] = []

    @routes.get("/openapi.json", provide_automatic_options=False)
    def show() -> Response:
        if not cached:
            try:
                cached.append(orjson.dumps(document(tables)))
            except ImportError:
                return fault(501, "notImplemented", "The document needs apispec: pip install 'blockstore[openapi]'")
        return Response(cached[0], mimetype="application/json", headers={"Cache-Control": "max-age=3600"})

    return routes


def document(tables: Sequence[Routes]) -> dict[str, Any]:
    """Return the document. Raises ImportError without apispec."""
    from apispec import APISpec
    from apispec.ext.marshmallow import MarshmallowPlugin

    plugin = MarshmallowPlugin(schema_name_resolver=lambda schema: _name_of(schema))
    spec = APISpec(
        title="blockstore: OpenStack Block Storage API v3",
        version=__version__,
        openapi_version="3.1.0",
        plugins=[plugin],
        info={"description": f"Microversions {MINIMUM} to {MAXIMUM}; a request without the header gets {MINIMUM}."},
        security=[{"token": []}],
    )
    assert plugin.converter is not None
    plugin.converter.add_attribute_function(_attributes)  # type: ignore[no-untyped-call]
    spec.components.security_scheme("token", {"type": "apiKey", "in": "header", "name": "X-Auth-Token"})
    spec.components.schema("Fault", _FAULT)
    for (method, path), target in _routes(tables):
        spec.path(path=f"/v3{_templated(path)}", operations={method.lower(): _operation(path, target)})
    content: dict[str, Any] = spec.to_dict()
    return content


def _routes(tables: Sequence[Routes]) -> Iterator[tuple[tuple[str, str], dict[str, Endpoint]]]:
    """Yield every route with its endpoints by action name; a route without actions has one, under the empty name."""
    together: dict[tuple[str, str], dict[str, Endpoint]] = {}
    for table in tables:
        for place, target in table.routes.items():
            together.setdefault(place, {}).update({"": target} if isinstance(target, Endpoint) else target)
    yield from together.items()


def _templated(path: str) -> str:
    return re.sub(r"<(\w+)>", r"{\1}", path)


def _operation(path: str, target: dict[str, Endpoint]) -> dict[str, Any]:
    endpoints = list(target.values())
    first = endpoints[0]
    described: dict[str, Any] = {
        "summary": " / ".join(sorted(target))
        if "" not in target
        else (first.function.__doc__ or "").strip().split("\n")[0],
        "tags": [path.split("/")[1]],
        "parameters": [*_parameters(path, first), *([] if first.writes else _query(first))],
        "responses": _responses(path, endpoints),
        "x-policies": sorted({endpoint.policy for endpoint in endpoints}),
    }
    since = min(endpoint.since for endpoint in endpoints)
    if since > MINIMUM:
        described["x-openstack"] = {"min-ver": str(since)}
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    if bodies:
        shape = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": shape}}}
    return described


def _parameters(path: str, endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    for name in re.findall(r"<(\w+)>", path):
        schema: dict[str, Any] = {"type": "string", "minLength": 1}
        schema |= {} if name == "key" else {"pattern": "^[^/]+$"}
        yield {"name": name, "in": "path", "required": True, "schema": schema}
    example = f"volume {endpoint.since if endpoint.since > MINIMUM else MAXIMUM}"
    yield {
        "name": "OpenStack-API-Version",
        "in": "header",
        "description": f"volume X.Y, from {MINIMUM} to {MAXIMUM}",
        "schema": {"type": "string", "pattern": r"^volume 3\.([0-9]|[1-6][0-9]|7[01])$", "examples": [example]},
    }


def _query(endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    found = getattr(sys.modules[endpoint.function.__module__], "LISTING", None)
    if not isinstance(found, Listing) or not endpoint.function.__name__.endswith(("index", "detail")):
        return
    for name in sorted({*PAGING, *found.public, *found.columns}):
        kind = {"type": "integer", "minimum": 0} if name in ("limit", "offset") else {"type": "string"}
        yield {"name": name, "in": "query", "schema": kind}


def _responses(path: str, endpoints: list[Endpoint]) -> dict[str, Any]:
    content = {"application/json": {"schema": _reply(path, endpoints)}}
    responses: dict[str, Any] = {}
    for endpoint in endpoints:
        reply = responses.setdefault(str(endpoint.status), {"description": HTTPStatus(endpoint.status).phrase})
        # If one of several actions has an empty reply, the document requires no content.
        empty = any(e.status == endpoint.status and _is_silent(e) for e in endpoints)
        reply |= {} if empty else {"content": content}
    refusal = {"application/json": {"schema": "Fault"}, "text/plain": {"schema": {"type": "string"}}}
    for status in (401, *FAULTS):
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": refusal}
    responses["412"] = {"description": "If-Match names another Etag"}
    if path.endswith("/metadata"):  # compat: with an Etag the same JSON comes as text/html
        responses["200"]["content"] = {**content, "text/html": {"schema": {"type": "string"}}}
    return responses


def _is_silent(endpoint: Endpoint) -> bool:
    return endpoint.function.__annotations__.get("return") in (None, "None")


def _reply(path: str, endpoints: list[Endpoint]) -> dict[str, Any]:
    key = WRAPPED.get(path)
    if key is None or endpoints[0].status == 204:
        return {"type": "object"}
    inner: dict[str, Any] = {"type": ["object", "array"]}
    return {"type": "object", "properties": {key: inner}}


_FAULT = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["code", "message"],
        "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
    },
}


# --- bodies ------------------------------------------------------------------------------------------------


def _name_of(schema: Any) -> str:
    cls = schema if isinstance(schema, type) else type(schema)
    return f"{cls.__module__.rpartition('.')[2]}_{cls.__name__}"


def _attributes(converter: Any, field: Any, **_kw: Any) -> dict[str, Any]:
    """Return the JSON schema of a field. apispec calls this for each field of a schema."""
    if isinstance(field, base.Part):
        attributes: dict[str, Any] = converter.resolve_nested_schema(field.schema)
        return {"anyOf": [attributes, {"type": "null"}]} if field.allow_none else dict(attributes)
    for cls, tell in _TOLD:
        if isinstance(field, cls):
            attributes = tell(field)
            if field.allow_none:
                attributes = {"anyOf": [attributes, {"type": "null"}]}
            since: Version = field.metadata.get("since", MINIMUM)
            return attributes | ({"x-openstack": {"min-ver": str(since)}} if since > MINIMUM else {})
    return {}


def _text(field: base.TextField) -> dict[str, Any]:
    attributes: dict[str, Any] = {"type": "string", "minLength": field.min_length, "maxLength": field.max_length}
    if field.pattern is not None:
        attributes["pattern"] = f"^{field.pattern.pattern}$"
    return attributes | ({"enum": list(field.choices)} if field.choices else {})


def _pairs(field: base.Pairs) -> dict[str, Any]:
    value = {"type": ["string", "null"] if field.null_values else "string", "maxLength": base.MAX_NAME}
    names = {"pattern": f"^{field.key.pattern}$"}
    return {
        "type": "object",
        "propertyNames": names,
        "additionalProperties": value,
        "minProperties": field.least,
        "maxProperties": field.most,
    }


_SIZE = {"type": "integer", "minimum": 1, "maximum": base.MAX_SIZE_GIB}
_TOLD: tuple[tuple[type[Any], Callable[[Any], dict[str, Any]]], ...] = (
    (base.TextField, _text),
    (base.Pairs, _pairs),
    (base.Uuid, lambda _field: {"type": "string", "format": "uuid"}),
    (base.SizeGib, lambda _field: {"anyOf": [_SIZE, {"type": "string", "pattern": "^[0-9]{1,10}$"}]}),
    (base.BoolLike, lambda _field: {"anyOf": [{"type": "boolean"}, {"enum": sorted(base.TRUE | base.FALSE)}]}),
)
