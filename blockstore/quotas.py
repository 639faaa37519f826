"""Quota: charged in the transaction that inserts a row, refunded in the one that removes it, so it cannot drift.

Used by every room inside its own transaction. The check and the charge are one UPDATE, so two requests cannot both
take the last place.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, bindparam, or_, select, update
from sqlalchemy.orm import Session

from blockstore.config import QuotaConfig
from blockstore.db.models import QuotaUsage
from blockstore.db.session import insert_if_absent
from blockstore.errors import OverQuota


def charge(
    session: Session, limits: QuotaConfig, project_id: str, *, volumes: int = 0, snapshots: int = 0, gigabytes: int = 0
) -> None:
    """Take from a project's quota. Raises OverQuota naming the limit and what is used; nothing is charged then."""
    for resource, amount in (("volumes", volumes), ("snapshots", snapshots), ("gigabytes", gigabytes)):
        if amount:
            _charge(session, project_id, resource, amount, getattr(limits, resource))


def refund(session: Session, project_id: str, *, volumes: int = 0, snapshots: int = 0, gigabytes: int = 0) -> None:
    """Give back to a project's quota."""
    for resource, amount in (("volumes", volumes), ("snapshots", snapshots), ("gigabytes", gigabytes)):
        if amount:
            _add(session, project_id, resource, -amount)


def check_volume_size(limits: QuotaConfig, size_gib: int) -> None:
    """Raise OverQuota when one volume may not be that large."""
    limit = limits.per_volume_gigabytes
    if 0 <= limit < size_gib:
        raise OverQuota(
            f"VolumeSizeExceedsLimit: Requested volume size {size_gib}G is larger than maximum allowed limit {limit}G."
        )


def usage(session: Session, project_id: str) -> dict[str, int]:
    """Return what a project uses, by resource."""
    rows = session.execute(select(QuotaUsage.resource, QuotaUsage.in_use).where(QuotaUsage.project_id == project_id))
    return dict(rows.all())


def _charge(session: Session, project_id: str, resource: str, amount: int, limit: int) -> None:
    if _add(session, project_id, resource, amount, limit):
        return
    insert_if_absent(session, QuotaUsage, project_id=project_id, resource=resource, in_use=0)
    if not _add(session, project_id, resource, amount, limit):
        used = usage(session, project_id).get(resource, 0)
        raise OverQuota(_refusal(resource, amount, limit, used))


def _add(session: Session, project_id: str, resource: str, amount: int, limit: int = -1) -> bool:
    values = {"project": project_id, "resource_": resource, "amount": amount, "limit": limit}
    return bool(session.execute(_ADD, values).rowcount)  # type: ignore[attr-defined]


_USAGES: Any = QuotaUsage.__table__
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


def _refusal(resource: str, amount: int, limit: int, used: int) -> str:
    # compat: the wire's own sentences; clients look for them
    if resource == "volumes":
        return f"VolumeLimitExceeded: Maximum number of volumes allowed ({limit}) exceeded for quota 'volumes'."
    if resource == "snapshots":
        return f"SnapshotLimitExceeded: Maximum number of snapshots allowed ({limit}) exceeded"
    return (
        f"VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed {resource} quota."
        f" Requested {amount}G, quota is {limit}G and {used}G has been consumed."
    )
