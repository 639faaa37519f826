"""Quota: charged in the transaction that inserts a row, refunded in the one that removes it, so it cannot drift.

Used by every component inside its own transaction. The check and the charge are one UPDATE, so two requests cannot
exceed a limit together. Volumes, snapshots and gigabytes count twice: for the project, and for the volume type in the
project. A limit is the project's own, else that of the class ``default``, else the configuration's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import BigInteger, and_, bindparam, delete, or_, select, update
from sqlalchemy.orm import Session

from blockstore.config import QuotaConfig
from blockstore.db.models import QuotaLimit, QuotaUsage, Volume, VolumeType
from blockstore.db.session import insert_if_absent
from blockstore.errors import OverQuota

PROJECT, CLASS = "project", "class"
DEFAULT_CLASS = "default"
PER_TYPE = ("volumes", "gigabytes", "snapshots")
"""Resources that also count per volume type; stored as RESOURCE_ID, so that a type can be renamed."""
PER_VOLUME = "per_volume_gigabytes"
UNLIMITED = -1


def charge(
    session: Session,
    config: QuotaConfig,
    project_id: str,
    type_id: str,
    *,
    volumes: int = 0,
    snapshots: int = 0,
    gigabytes: int = 0,
    volume_size_gib: int = 0,
) -> None:
    """Charge a project's quota. Raise OverQuota with the limit and the usage if exceeded; nothing is charged then.

    ``volume_size_gib`` is the size of a new volume, which has a limit of its own.
    """
    wanted = dict(_amounts(type_id, volumes=volumes, snapshots=snapshots, gigabytes=gigabytes))
    limits = _limits_in_force(session, config, project_id, [*wanted, PER_VOLUME])
    _check_volume_size(limits[PER_VOLUME], volume_size_gib)
    for resource, amount in wanted.items():
        _charge(session, project_id, resource, amount, limits[resource])


def refund(
    session: Session, project_id: str, type_id: str, *, volumes: int = 0, snapshots: int = 0, gigabytes: int = 0
) -> None:
    """Refund a project's quota."""
    given = _amounts(type_id, volumes=volumes, snapshots=snapshots, gigabytes=gigabytes)
    values = [_values(project_id, resource, -amount, UNLIMITED) for resource, amount in given]
    if values:
        session.execute(_ADD, values)


def refund_growth(session: Session, project_id: str, volume_id: str, gigabytes: int) -> None:
    """Refund the growth of a volume that did not grow. Do nothing if its row is gone: all was refunded then."""
    type_id = session.execute(select(Volume.volume_type_id).where(Volume.id == volume_id)).scalar()
    if type_id is not None:
        refund(session, project_id, type_id, gigabytes=gigabytes)


def charge_type(
    session: Session, config: QuotaConfig, project_id: str, type_id: str, *, volumes: int, gigabytes: int
) -> None:
    """Charge the quota of the new type of a volume. Raises OverQuota."""
    wanted = {f"volumes_{type_id}": volumes, f"gigabytes_{type_id}": gigabytes}
    limits = _limits_in_force(session, config, project_id, [*wanted])
    for resource, amount in wanted.items():
        _charge(session, project_id, resource, amount, limits[resource])


def refund_type(
    session: Session, project_id: str, type_id: str, *, volumes: int = 0, gigabytes: int = 0, snapshots: int = 0
) -> None:
    """Refund the quota of one type, not the project's total. A negative amount charges without a limit."""
    for resource, amount in (("volumes", volumes), ("gigabytes", gigabytes), ("snapshots", snapshots)):
        if amount:
            _charge(session, project_id, f"{resource}_{type_id}", -amount, UNLIMITED)


def check_volume_size(session: Session, config: QuotaConfig, project_id: str, size_gib: int) -> None:
    """Raise OverQuota if a single volume may not have this size."""
    _check_volume_size(_limits_in_force(session, config, project_id, [PER_VOLUME])[PER_VOLUME], size_gib)


def _check_volume_size(limit: int, size_gib: int) -> None:
    if 0 <= limit < size_gib:
        raise OverQuota(
            f"VolumeSizeExceedsLimit: Requested volume size {size_gib}G is larger than maximum allowed limit {limit}G."
        )


def usage(session: Session, project_id: str) -> dict[str, int]:
    """Return a project's usage by resource."""
    rows = session.execute(select(QuotaUsage.resource, QuotaUsage.in_use).where(QuotaUsage.project_id == project_id))
    return dict(rows.all())


def limits_of(session: Session, config: QuotaConfig, project_id: str | None, class_name: str) -> dict[str, int]:
    """Return the limits in force, by resource: the project's own, else the class's, else the configured default."""
    found: dict[str, int] = asdict(config)
    for scope, scope_id in ((CLASS, class_name), (PROJECT, project_id)):
        if scope_id is not None:
            rows = session.execute(
                select(QuotaLimit.resource, QuotaLimit.most).where(
                    QuotaLimit.scope == scope, QuotaLimit.scope_id == scope_id
                )
            )
            found.update(dict(rows.all()))
    return found


def set_limits(session: Session, scope: str, scope_id: str, limits: Mapping[str, int]) -> None:
    """Write limits of a project or a class."""
    for resource, most in limits.items():
        row = session.get(QuotaLimit, (scope, scope_id, resource))
        if row is None:
            session.add(QuotaLimit(scope=scope, scope_id=scope_id, resource=resource, most=most))
        else:
            row.most = most
    session.flush()


def forget_limits(session: Session, project_id: str) -> None:
    """Delete a project's own limits, so that the default limits apply."""
    session.execute(delete(QuotaLimit).where(QuotaLimit.scope == PROJECT, QuotaLimit.scope_id == project_id))


def forget_type(session: Session, type_id: str) -> None:
    """Delete the limits and the (zero) usage of a type that is deleted."""
    resources = [f"{resource}_{type_id}" for resource in PER_TYPE]
    session.execute(delete(QuotaLimit).where(QuotaLimit.resource.in_(resources)))
    session.execute(delete(QuotaUsage).where(QuotaUsage.resource.in_(resources)))


def _amounts(type_id: str, **amounts: int) -> Iterator[tuple[str, int]]:
    for resource, amount in amounts.items():
        if amount:
            yield resource, amount
            yield f"{resource}_{type_id}", amount


def _limits_in_force(session: Session, config: QuotaConfig, project_id: str, resources: list[str]) -> dict[str, int]:
    limits = {resource: getattr(config, resource, UNLIMITED) for resource in resources}
    rows = session.execute(_LIMITS, {"project": project_id, "resources": resources}).all()
    for _, resource, most in sorted(rows):  # class comes before project
        limits[resource] = most
    return limits


def _charge(session: Session, project_id: str, resource: str, amount: int, limit: int) -> None:
    if _add(session, project_id, resource, amount, limit):
        return
    insert_if_absent(session, QuotaUsage, project_id=project_id, resource=resource, in_use=0)
    if not _add(session, project_id, resource, amount, limit):
        used = usage(session, project_id).get(resource, 0)
        raise OverQuota(_refusal(_public_name(session, resource), amount, limit, used))


def _add(session: Session, project_id: str, resource: str, amount: int, limit: int = UNLIMITED) -> bool:
    values = _values(project_id, resource, amount, limit)
    return bool(session.execute(_ADD, values).rowcount)  # type: ignore[attr-defined]


def _values(project_id: str, resource: str, amount: int, limit: int) -> dict[str, Any]:
    return {"project": project_id, "resource_": resource, "amount": amount, "limit": limit}


_USAGES: Any = QuotaUsage.__table__
_LIMITED: Any = QuotaLimit.__table__
# Built once: building a statement takes longer than running it.
_ADD = (
    update(_USAGES)
    .where(
        _USAGES.c.project_id == bindparam("project"),
        _USAGES.c.resource == bindparam("resource_"),
        or_(bindparam("limit", type_=BigInteger) < 0, _USAGES.c.in_use + bindparam("amount") <= bindparam("limit")),
    )
    .values(in_use=_USAGES.c.in_use + bindparam("amount"))
)
_LIMITS = select(_LIMITED.c.scope, _LIMITED.c.resource, _LIMITED.c.most).where(
    or_(
        and_(_LIMITED.c.scope == PROJECT, _LIMITED.c.scope_id == bindparam("project")),
        and_(_LIMITED.c.scope == CLASS, _LIMITED.c.scope_id == DEFAULT_CLASS),
    ),
    _LIMITED.c.resource.in_(bindparam("resources", expanding=True)),
)


def _public_name(session: Session, resource: str) -> str:
    """Return the API's name of a resource. A resource of a volume type is named after the type."""
    noun, _, type_id = resource.partition("_")
    name = session.execute(select(VolumeType.name).where(VolumeType.id == type_id)).scalar() if type_id else None
    return resource if name is None else f"{noun}_{name}"


def _refusal(quota: str, amount: int, limit: int, used: int) -> str:
    # compat: Cinder's own sentences; clients look for them
    noun = quota.partition("_")[0]
    if noun == "volumes":
        return f"VolumeLimitExceeded: Maximum number of volumes allowed ({limit}) exceeded for quota '{quota}'."
    if noun == "snapshots":
        of_type = f" for quota '{quota}'" if quota != noun else ""  # compat: without a type, Cinder names no quota
        return f"SnapshotLimitExceeded: Maximum number of snapshots allowed ({limit}) exceeded{of_type}"
    return (
        f"VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {quota} quota."
        f" Requested {amount}G, quota is {limit}G and {used}G has been consumed."
    )
