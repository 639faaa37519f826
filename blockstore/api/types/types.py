"""Volume types, their extra specs, the access to them, and the default type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, exists, func, or_, select
from sqlalchemy.orm import Session, joinedload

from blockstore import zones
from blockstore.accounting import quotas
from blockstore.api.http import listing
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.metadata import check_growth, lengths
from blockstore.db.models import IS_TRUE, DefaultType, ExtraSpec, TypeAccess, Volume, VolumeType, is_required, new_id
from blockstore.db.session import insert_if_absent
from blockstore.errors import BadRequest, Conflict, InvalidInput, NotFound, listed
from blockstore.microversions import TYPE_FILTER_EXTRA_SPECS
from blockstore.schemas import types as schemas
from blockstore.schemas.base import FALSE, TRUE, is_uuid

routes = Routes()

USER_VISIBLE_SPECS = frozenset({zones.SPEC, "multiattach", "replication_enabled"})


def _filter_by_specs(call: Call, value: str) -> ColumnElement[bool]:
    allowed = listing.dictionary("extra_specs", value)
    if not call.may("volume_extension:types_extra_specs:read_sensitive"):
        hidden = sorted(set(allowed) - USER_VISIBLE_SPECS)
        if hidden:
            raise BadRequest(f"Invalid filters {listed(hidden)} are found in query options.")
    return listing.pairs(VolumeType.id, ExtraSpec, ExtraSpec.volume_type_id, "extra_specs")(call, value)


LISTING = listing.Listing(
    model=VolumeType,
    noun="Volume type",
    collection="types",
    links_key="volume_type_links",
    columns=listing.columns_of(VolumeType),
    special={
        # _visible has applied it already
        "is_public": lambda call, value: VolumeType.id.is_not(None),
        "extra_specs": _filter_by_specs,
    },
    sortable=frozenset({"id", "name", "description", "is_public", "created_at", "updated_at"}),
    public=frozenset({"is_public", "extra_specs"}),
    since={"extra_specs": TYPE_FILTER_EXTRA_SPECS},
)


# --- reading -----------------------------------------------------------------------------------------------


@routes.get("/types", policy="volume_extension:type_get_all")
def index(call: Call) -> dict[str, Any]:
    """List the types that the caller may use."""
    page = listing.page(call, LISTING, _visible(call))
    return {"volume_types": [render(call, row) for (row,) in page.rows], **page.envelope}


@routes.get("/types/<type_id>", policy="volume_extension:type_get")
def show(call: Call, type_id: str) -> dict[str, Any]:
    """Show one type, or the default one."""
    if type_id == "default":
        item = render(call, default_type(call))
        item.pop("os-volume-type-access:is_public", None)  # compat: not shown here
        return {"volume_type": item}
    return {"volume_type": render(call, find_type(call, type_id, by_name=False))}


def render(call: Call, row: VolumeType) -> dict[str, Any]:
    """Return a type as replies show it."""
    item: dict[str, Any] = {
        "id": row.id,
        "name": row.name,
        "is_public": row.is_public,
        "description": row.description,
    }
    if call.may("volume_extension:access_types_extra_specs"):
        item["extra_specs"] = visible_specs(call, row)
    if call.may("volume_extension:access_types_qos_specs_id"):
        item["qos_specs_id"] = row.qos_specs_id
    if call.may("volume_extension:volume_type_access"):
        item["os-volume-type-access:is_public"] = row.is_public
    return item


def visible_specs(call: Call, row: VolumeType) -> dict[str, str | None]:
    """Return the extra specs that the caller may see."""
    if call.may("volume_extension:types_extra_specs:read_sensitive"):
        return row.extra_specs
    return {key: value for key, value in row.extra_specs.items() if key in USER_VISIBLE_SPECS}


def find_type(call: Call, ref: str, *, by_name: bool = True, lock: bool = False) -> VolumeType:
    """Return a type that the caller may use, by id or name. Raises NotFound.

    ``lock``: until this transaction ends, no other transaction changes the type or creates a volume of it.
    """
    row = call.session.get(VolumeType, ref, with_for_update=lock or None) if is_uuid(ref) else None
    if row is None and by_name:
        row = call.session.scalars(select(VolumeType).where(VolumeType.name == ref)).one_or_none()
    if row is None or not may_use(call, row):
        raise NotFound.resource("Volume type", ref)
    return row


def may_use(call: Call, row: VolumeType) -> bool:
    """Return True if the caller may use a type."""
    return row.is_public or call.ctx.is_admin or _has_access(call, row.id, call.ctx.project_id)


def default_type(call: Call) -> VolumeType:
    """Return the default type: the project's own, else the service's. Raise NotFound if there is none."""
    name = call.core.config.service.default_volume_type
    row = call.session.scalars(_DEFAULT, {"project": call.ctx.project_id, "name": name}).unique().one_or_none()
    if row is None:
        raise NotFound(f"Default volume type {name} could not be found. Create it, or name a type.")
    return row


# Built once, and loads the extra specs with the type: every create without a type runs this query.
_OWN_DEFAULT = select(DefaultType.volume_type_id).where(DefaultType.project_id == bindparam("project"))
_NAMED = select(VolumeType.id).where(VolumeType.name == bindparam("name"))
_DEFAULT = (
    select(VolumeType)
    .where(VolumeType.id == func.coalesce(_OWN_DEFAULT.scalar_subquery(), _NAMED.scalar_subquery()))
    .options(joinedload(VolumeType.specs), joinedload(VolumeType.encryption))
)


def ensure_default_type(session: Session, name: str) -> None:
    """Create the default type if it does not exist."""
    if session.execute(select(VolumeType.id).where(VolumeType.name == name)).scalar() is None:
        insert_if_absent(session, VolumeType, id=new_id(), name=name, description="Default Volume Type", is_public=True)


def size_bounds(row: VolumeType, size_gib: int) -> None:
    """Raise InvalidInput if a type's extra specs forbid a size."""
    for key, word in (("provisioning:min_vol_size", "least"), ("provisioning:max_vol_size", "most")):
        text = row.extra_specs.get(key) or ""
        if not (text.isascii() and text.isdigit()):
            continue
        if size_gib < int(text) if word == "least" else size_gib > int(text):
            raise InvalidInput("size", size_gib, f"Volumes of type {row.name} have at {word} {text} GiB.")


def _has_access(call: Call, type_id: str, project_id: str) -> bool:
    return call.session.get(TypeAccess, (type_id, project_id)) is not None


def _visible(call: Call) -> Select[Any]:
    statement = select(VolumeType)
    shared = exists().where(TypeAccess.volume_type_id == VolumeType.id, TypeAccess.project_id == call.ctx.project_id)
    usable = statement.where(or_(VolumeType.is_public, shared))
    if not call.ctx.is_admin:
        return usable
    is_public = call.query.get("is_public", "True")
    if is_public in TRUE:
        return usable  # compat: the public types include private types that the administrator's own project may use
    if is_public in FALSE:
        return statement.where(VolumeType.is_public.is_(False))
    if is_public.lower() == "none":
        return statement
    raise InvalidInput("is_public", is_public, "It must be true, false or none.")


# --- changing ----------------------------------------------------------------------------------------------


@routes.post("/types", policy="volume_extension:type_create", body=schemas.CreateTypeBody, status=200)
def create(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Create a type."""
    params = body["volume_type"]
    _refuse_taken(call, params["name"])
    specs = params.get("extra_specs") or {}
    _check_specs(specs)
    check_growth(f"volume type {params['name']}", {}, specs)
    row = VolumeType(
        id=new_id(),
        name=params["name"],
        description=params.get("description"),
        is_public=params.get("is_public", True),
        specs=[ExtraSpec(key=key, value=value) for key, value in sorted(specs.items())],
    )
    call.session.add(row)
    call.session.flush()
    item = render(call, row)
    item.pop("qos_specs_id", None)  # compat: not in this reply
    return {"volume_type": {**item, "extra_specs": dict(specs)}}


@routes.put("/types/<type_id>", policy="volume_extension:type_update", body=schemas.UpdateTypeBody)
def change(call: Call, type_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Change name, description, visibility."""
    row = find_type(call, type_id, by_name=False, lock=True)
    params = body["volume_type"]
    if params.get("name") is not None and params["name"] != row.name:
        _refuse_taken(call, params["name"])
        row.name = params["name"]
    if params.get("description") is not None:
        row.description = params["description"]
    if params.get("is_public") is not None:
        row.is_public = params["is_public"]
    call.session.flush()
    item = render(call, row)
    return {"volume_type": {k: item[k] for k in ("id", "name", "is_public", "description", "extra_specs")}}


@routes.delete("/types/<type_id>", policy="volume_extension:type_delete")
def remove(call: Call, type_id: str) -> None:
    """Remove a type that no volume uses."""
    row = find_type(call, type_id, by_name=False, lock=True)
    if row.name == call.core.config.service.default_volume_type:
        raise BadRequest(f"Volume type {row.name} is the default type, which cannot be deleted.")
    refuse_used(call, row, "Target volume type is still in use.")
    projects = call.session.scalars(select(DefaultType.project_id).where(DefaultType.volume_type_id == row.id)).all()
    if projects:
        raise BadRequest(f"Volume type {row.name} is the default type of project {projects[0]}; unset that first.")
    quotas.forget_type(call.session, row.id)
    call.session.delete(row)


# --- extra specs -------------------------------------------------------------------------------------------

SPECS = "/types/<type_id>/extra_specs"


@routes.get(SPECS, policy="volume_extension:types_extra_specs:index")
def list_specs(call: Call, type_id: str) -> dict[str, Any]:
    """Show the extra specs of a type."""
    return {"extra_specs": visible_specs(call, find_type(call, type_id, by_name=False))}


@routes.get(f"{SPECS}/<key>", policy="volume_extension:types_extra_specs:show")
def show_spec(call: Call, type_id: str, key: str) -> dict[str, Any]:
    """Show one extra spec."""
    specs = visible_specs(call, find_type(call, type_id, by_name=False))
    if key not in specs:
        raise NotFound(f"Volume Type {type_id} has no extra specs with key {key}.")
    return {key: specs[key]}


@routes.post(SPECS, policy="volume_extension:types_extra_specs:create", body=schemas.ExtraSpecsBody, status=200)
def add_specs(call: Call, type_id: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Add or change extra specs."""
    _write_specs(call, type_id, body["extra_specs"])
    return {"extra_specs": body["extra_specs"]}


@routes.put(f"{SPECS}/<key>", policy="volume_extension:types_extra_specs:update", body=schemas.OneSpecBody)
def set_spec(call: Call, type_id: str, key: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set one extra spec."""
    if key not in body:
        raise BadRequest(f"The body must have one key, that of the URL: {key}.")
    _write_specs(call, type_id, body)
    return dict(body)


@routes.delete(f"{SPECS}/<key>", policy="volume_extension:types_extra_specs:delete")
def remove_spec(call: Call, type_id: str, key: str) -> None:
    """Remove one extra spec."""
    row = find_type(call, type_id, by_name=False, lock=True)
    spec = next((spec for spec in row.specs if spec.key == key), None)
    if spec is None:
        raise NotFound(f"Volume Type {type_id} has no extra specs with key {key}.")
    refuse_used(call, row, "Volume Type is currently in use.")
    row.specs.remove(spec)


def _write_specs(call: Call, type_id: str, given: Mapping[str, str | None]) -> None:
    row = find_type(call, type_id, by_name=False, lock=True)
    refuse_used(call, row, "Volume Type is currently in use.")
    _check_specs({**row.extra_specs, **given})
    check_growth(f"volume type {row.id}", lengths(row.extra_specs), given)
    present = {spec.key: spec for spec in row.specs}
    for key, value in given.items():
        if key in present:
            present[key].value = value
        else:
            row.specs.append(ExtraSpec(key=key, value=value))


# --- access ------------------------------------------------------------------------------------------------

ACTION = "/types/<type_id>/action"


@routes.get("/types/<type_id>/os-volume-type-access", policy="volume_extension:volume_type_access:get_all_for_type")
def list_access(call: Call, type_id: str) -> dict[str, Any]:
    """List the projects that may use a private type."""
    row = find_type(call, type_id, by_name=False)
    if row.is_public:
        raise NotFound("Access list not available for public volume types.")
    projects = call.session.scalars(
        select(TypeAccess.project_id).where(TypeAccess.volume_type_id == type_id).order_by(TypeAccess.project_id)
    )
    return {"volume_type_access": [{"volume_type_id": type_id, "project_id": p} for p in projects]}


@routes.action(
    ACTION, "addProjectAccess", policy="volume_extension:volume_type_access:addProjectAccess",
    body=schemas.AddProjectAccessBody,
)  # fmt: skip
def add_access(call: Call, type_id: str, body: Mapping[str, Any]) -> None:
    """Let a project use a private type."""
    row, project = _private(call, type_id), body["access"]["project"]
    if _has_access(call, row.id, project):
        raise Conflict(f"Volume type access for {type_id} / {project} combination already exists.")
    call.session.add(TypeAccess(volume_type_id=row.id, project_id=project))


@routes.action(
    ACTION, "removeProjectAccess", policy="volume_extension:volume_type_access:removeProjectAccess",
    body=schemas.RemoveProjectAccessBody,
)  # fmt: skip
def remove_access(call: Call, type_id: str, body: Mapping[str, Any]) -> None:
    """Remove a project's access to a private type."""
    row, project = _private(call, type_id), body["access"]["project"]
    access = call.session.get(TypeAccess, (row.id, project))
    if access is None:
        raise NotFound(f"Volume type access not found for {type_id} / {project} combination.")
    call.session.delete(access)


def _private(call: Call, type_id: str) -> VolumeType:
    row = find_type(call, type_id, by_name=False, lock=True)
    if row.is_public:
        raise BadRequest("Invalid input received: Type access modification is not applicable to public volume type.")
    return row


def _refuse_taken(call: Call, name: str) -> None:
    if call.session.execute(select(VolumeType.id).where(VolumeType.name == name)).scalar() is not None:
        raise Conflict(f"Volume Type {name} already exists.")


def refuse_used(call: Call, row: VolumeType, sentence: str) -> None:
    """Raise BadRequest if volumes of a type exist. ``sentence`` is Cinder's text, which clients look for."""
    if call.session.execute(select(Volume.id).where(Volume.volume_type_id == row.id).limit(1)).scalar() is not None:
        raise BadRequest(f"{sentence} Volumes of type {row.name} exist.")


def _check_specs(specs: Mapping[str, str | None]) -> None:
    if all(is_required(specs, name) for name in ("multiattach", "cacheable")):
        raise BadRequest(f"The extra specs multiattach and cacheable cannot both be '{IS_TRUE}'.")
