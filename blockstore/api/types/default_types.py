"""Default types of projects, for volumes that are created without a type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import delete, select

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.types.types import find_type
from blockstore.db.models import DefaultType, Project
from blockstore.errors import BadRequest, NotFound
from blockstore.microversions import DEFAULT_TYPES
from blockstore.schemas import default_types as schemas

routes = Routes()

PLACE = "/default-types/<for_project>"


@routes.get("/default-types", policy="volume_extension:default_get_all", since=DEFAULT_TYPES)
def index(call: Call) -> dict[str, Any]:
    """List the projects that have a default type of their own."""
    rows = call.session.scalars(select(DefaultType).order_by(DefaultType.project_id))
    return {"default_types": [_render(row) for row in rows]}


@routes.get(PLACE, policy="volume_extension:default_get", since=DEFAULT_TYPES)
def show(call: Call, for_project: str) -> dict[str, Any]:
    """Show a project's default type."""
    _check_project(call, for_project)
    row = call.session.get(DefaultType, for_project)
    if row is None:
        raise NotFound(f"Default type for project {for_project} not found.")
    return {"default_type": _render(row)}


@routes.put(
    PLACE, policy="volume_extension:default_set_or_update", body=schemas.SetDefaultTypeBody, since=DEFAULT_TYPES
)
def change(call: Call, for_project: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set a project's default type."""
    _check_project(call, for_project)
    ref = body["default_type"]["volume_type"]
    try:
        wanted = find_type(call, ref, lock=True)
    except NotFound as exc:  # compat: an unknown type in the body is 400
        raise BadRequest(exc.message) from None
    row = call.session.get(DefaultType, for_project) or DefaultType(project_id=for_project)
    row.volume_type_id = wanted.id
    call.session.add(row)
    return {"default_type": _render(row)}


@routes.delete(PLACE, policy="volume_extension:default_unset", status=204, since=DEFAULT_TYPES)
def remove(call: Call, for_project: str) -> None:
    """Unset a project's default type; the service's default type applies again."""
    call.session.execute(delete(DefaultType).where(DefaultType.project_id == for_project))


def _check_project(call: Call, project_id: str) -> None:
    """Raise NotFound if the built-in identity does not know a project. Projects of other identities are not checked."""
    if call.core.config.service.auth == "builtin" and call.session.get(Project, project_id) is None:
        raise NotFound(f"Project {project_id} could not be found.")


def _render(row: DefaultType) -> dict[str, Any]:
    return {"project_id": row.project_id, "volume_type_id": row.volume_type_id}
