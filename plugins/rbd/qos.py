"""Translates the limits of QoS specs to the image options by which Ceph enforces them."""

from __future__ import annotations

from collections.abc import Mapping

_OPTIONS = {
    f"{kind}_{unit}_sec{burst}": f"rbd_qos_{prefix}{short}_{end}"
    for kind, prefix in (("total", ""), ("read", "read_"), ("write", "write_"))
    for unit, short in (("iops", "iops"), ("bytes", "bps"))
    for burst, end in (("", "limit"), ("_max", "burst"))
}


def image_options(limits: Mapping[str, int]) -> Mapping[str, str | None]:
    """Return every QoS option of an image for the limits of ``Backend.limit_volume``; None lifts a limit."""
    wanted = {ceph: limits.get(word) for word, ceph in _OPTIONS.items()}
    return {ceph: None if value is None else str(value) for ceph, value in wanted.items()}
