"""Limits of projects, and the quota classes that contain their defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from sqlalchemy import select

from blockstore.accounting import quotas
from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.config import QuotaConfig
from blockstore.db.models import VolumeType
from blockstore.errors import BadRequest, Forbidden, InvalidInput
from blockstore.schemas import quota_sets as schemas
from blockstore.schemas.base import MAX_NAME, query_flag

routes = Routes()

SHOW = "volume_extension:quotas:show"
PLACE = "/os-quota-sets/<target_project>"
CLASS_PLACE = "/os-quota-class-sets/<class_name>"


@routes.get(PLACE, policy=SHOW)
def show(call: Call, target_project: str) -> dict[str, Any]:
    """Show the limits of a project; with ``usage``, also its usage."""
    _refuse_others(call, target_project)
    limits = _named(call, target_project, quotas.DEFAULT_CLASS)
    if not query_flag(call.query, "usage"):
        return {"quota_set": {"id": target_project, **{name: limit for name, _, limit in limits}}}
    used = quotas.usage(call.session, target_project)
    # Nothing is ever only reserved: an accepted request is charged at once.
    entries = {
        name: {"limit": limit, "in_use": used.get(resource, 0), "reserved": 0} for name, resource, limit in limits
    }
    return {"quota_set": {"id": target_project, **entries}}


@routes.get(f"{PLACE}/defaults", policy=SHOW)
def defaults(call: Call, target_project: str) -> dict[str, Any]:
    """Show the limits that a project would have without its own."""
    _refuse_others(call, target_project)
    return {"quota_set": {"id": target_project, **_render(call, None, quotas.DEFAULT_CLASS)}}


@routes.put(PLACE, policy="volume_extension:quotas:update", body=schemas.UpdateQuotaSetBody)
def change(call: Call, target_project: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set limits of a project, none below its usage."""
    limits = _by_resource(call, "quota_set", body["quota_set"])
    used = quotas.usage(call.session, target_project)
    for name, (resource, limit) in limits.items():
        if quotas.UNLIMITED != limit < used.get(resource, 0) and resource != quotas.PER_VOLUME:
            raise InvalidInput(
                f"quota_set.{name}", limit, f"The project {target_project} uses {used[resource]} of it already."
            )
    quotas.set_limits(call.session, quotas.PROJECT, target_project, dict(limits.values()))
    return {"quota_set": _render(call, target_project, quotas.DEFAULT_CLASS)}


@routes.delete(PLACE, policy="volume_extension:quotas:delete", status=200)
def remove(call: Call, target_project: str) -> None:
    """Reset a project to the default limits."""
    quotas.forget_limits(call.session, target_project)


@routes.get(CLASS_PLACE, policy="volume_extension:quota_classes:get")
def show_class(call: Call, class_name: str) -> dict[str, Any]:
    """Show the limits of a class; the class ``default`` applies to all projects."""
    return {"quota_class_set": {"id": class_name, **_render(call, None, class_name)}}


@routes.put(CLASS_PLACE, policy="volume_extension:quota_classes:update", body=schemas.UpdateQuotaClassBody)
def change_class(call: Call, class_name: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Set limits of a class."""
    if len(class_name) > MAX_NAME:
        raise BadRequest(f"The name of a quota class has at most {MAX_NAME} characters.")
    limits = _by_resource(call, "quota_class_set", body["quota_class_set"])
    quotas.set_limits(call.session, quotas.CLASS, class_name, dict(limits.values()))
    return {"quota_class_set": _render(call, None, class_name)}


def _refuse_others(call: Call, project: str) -> None:
    # compat: 403 for another project, whether it exists or not
    if project != call.ctx.project_id and not call.ctx.is_admin:
        raise Forbidden(f"Policy doesn't allow {SHOW} to be performed.")


def _resources(call: Call) -> dict[str, str]:
    """Return every resource by its name in the API."""
    names = {one.name: one.name for one in fields(QuotaConfig)}
    for type_id, type_name in call.session.execute(select(VolumeType.id, VolumeType.name).order_by(VolumeType.name)):
        names |= {f"{resource}_{type_name}": f"{resource}_{type_id}" for resource in quotas.PER_TYPE}
    return names


def _named(call: Call, project: str | None, class_name: str) -> list[tuple[str, str, int]]:
    limits = quotas.limits_of(call.session, call.core.config.quota, project, class_name)
    return [(name, resource, limits.get(resource, quotas.UNLIMITED)) for name, resource in _resources(call).items()]


def _render(call: Call, project: str | None, class_name: str) -> dict[str, int]:
    return {name: limit for name, _, limit in _named(call, project, class_name)}


def _by_resource(call: Call, where: str, given: Mapping[str, int]) -> dict[str, tuple[str, int]]:
    known = _resources(call)
    for name in given:
        if name not in known:
            raise InvalidInput(f"{where}.{name}", given[name], "There is no such quota.")
    return {name: (known[name], limit) for name, limit in given.items()}
