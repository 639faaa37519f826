"""Limits that the storage enforces on a volume: the QoS specs of its type, if the backend supports them."""

from __future__ import annotations

from sqlalchemy import select

from blockstore.db.models import QosSpecs, VolumeType
from blockstore.manager.context import ManagerContext

_PER_GIB = "_per_gb"


def apply_qos(
    context: ManagerContext, pool: str, name: str, type_id: str, size_gib: int, *, lift: bool = False
) -> None:
    """Apply the limits of a type to a volume on its pool. ``lift`` also removes the limits of a former type.

    Raises BackendError.
    """
    report = context.pool_reports.get(pool)
    if report is None or not report.capabilities.qos:
        return
    with context.db.read() as session:
        specs = session.scalars(
            select(QosSpecs).join(VolumeType, VolumeType.qos_specs_id == QosSpecs.id).where(VolumeType.id == type_id)
        ).one_or_none()
        limits = {} if specs is None or specs.consumer == "front-end" else limits_of(specs.specs, size_gib)
    if limits or lift:
        context.backend(pool).limit_volume(name, limits)


def limits_of(specs: dict[str, str | None], size_gib: int) -> dict[str, int]:
    """Return the limits of a volume of this size. Values that are not numbers are ignored.

    compat: a key that ends in ``_per_gb`` is multiplied by the size; ``NAME_per_gb_min`` is the least result.
    """
    numbers = {key: int(value) for key, value in specs.items() if value and value.isascii() and value.isdigit()}
    limits = {key: number for key, number in numbers.items() if _PER_GIB not in key}
    for key, number in numbers.items():
        if key.endswith(_PER_GIB):
            limits[key.removesuffix(_PER_GIB)] = max(number * size_gib, numbers.get(f"{key}_min", 0))
    return limits
