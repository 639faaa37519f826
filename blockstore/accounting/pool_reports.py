"""The last report of each pool: the manager's knowledge of a pool, for the scheduler and the API.

Reports describe the present, so they are in memory only. The reservations on a pool are in
``accounting/reservations.py``.
"""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from blockstore.backends.contract import BackgroundTask, Capabilities, Capacity
from blockstore.config import PoolConfig
from blockstore.db.models import PoolUsage
from blockstore.service_names import backend_name, backend_of, pool_name

NO_USAGE = PoolUsage(pool="", volumes=0, volume_gib=0, snapshot_gib=0)


def other_block_size(present: int, other: int) -> str | None:
    """Return why a volume cannot move to another block size, as the end of a sentence; None if the sizes are equal."""
    if present == other:
        return None
    return (
        f"its block size is {other} bytes and the volume's is {present}; the consumer would no longer find the"
        " partitions. Copy the files to a new volume instead"
    )


@dataclass(frozen=True, kw_only=True)
class PoolReport:
    """One pool's report about itself, with its time."""

    name: str
    """NODE@BACKEND#POOL."""
    config: PoolConfig
    availability_zone: str
    up: bool
    reason: str | None
    """Why it is down; a sentence."""
    capabilities: Capabilities
    capacity: Capacity
    background_tasks: Sequence[BackgroundTask] = ()
    """The backend's background tasks."""
    ours_gib: int
    """Our reservations when the capacity was read; the rest of the used capacity is not ours."""
    at: datetime.datetime
    monotonic_s: float = field(default_factory=time.monotonic)
    """When the report was made, by the monotonic clock."""

    def is_older_than(self, seconds: float) -> bool:
        """Return True if the report is older than this. Changes of the system's clock have no effect."""
        return time.monotonic() - self.monotonic_s > seconds

    @property
    def backend(self) -> str:
        """Return NODE@BACKEND."""
        return backend_of(self.name)

    @property
    def volume_backend_name(self) -> str:
        """Return the name that extra specs ask for: as configured, else that of the section."""
        return self.config.volume_backend_name or backend_name(self.name)

    def free_gib(self, usage: PoolUsage) -> float:
        """Return the free space; for a thick pool, less the reservations since the report."""
        since = usage.volume_gib + usage.snapshot_gib - self.ours_gib
        free = self.capacity.free_gib
        return free if self.capabilities.thin else max(0.0, free - since)

    def provisioned_gib(self, usage: PoolUsage) -> float:
        """Return the provisioned capacity: our reservations, and that of others at the time of the report."""
        ours = usage.volume_gib + usage.snapshot_gib
        if self.capacity.provisioned_gib is None:
            return float(ours)
        return ours + max(0.0, self.capacity.provisioned_gib - self.ours_gib)

    def other_block_size(self, other: PoolReport) -> str | None:
        """Return why a volume's partitions would not be found after a move to another pool, or None."""
        return other_block_size(self.capabilities.block_size, other.capabilities.block_size)

    def api_capabilities(self, usage: PoolUsage) -> dict[str, Any]:
        """Return the capabilities as the API names them."""
        caps, config = self.capabilities, self.config
        return {
            "pool_name": pool_name(self.name),
            "volume_backend_name": self.volume_backend_name,
            "vendor_name": caps.vendor_name,
            "driver_version": caps.version,
            "storage_protocol": caps.storage_protocol,
            "total_capacity_gb": round(self.capacity.total_gib, 2),
            "free_capacity_gb": round(self.free_gib(usage), 2),
            "provisioned_capacity_gb": round(self.provisioned_gib(usage), 2),
            "allocated_capacity_gb": usage.volume_gib,
            "total_volumes": usage.volumes,
            "reserved_percentage": config.reserved_percentage,
            "max_over_subscription_ratio": config.max_over_subscription_ratio,
            "thin_provisioning_support": caps.thin,
            "thick_provisioning_support": caps.thick,
            "multiattach": caps.multiattach,
            "online_extend_support": caps.online_extend,
            "QoS_support": caps.qos,
            "consistent_group_snapshot_enabled": caps.group_snapshots,
            "deepest_chain": self.capacity.deepest_chain,
            "metadata_filled_percentage": _rounded(self.capacity.metadata_filled_percent),
            "closed_because": self.capacity.closed_because,
            "logical_block_size": caps.block_size,
            "background": [f"{task.what}: {task.percent} %" for task in self.background_tasks],
            "replication_enabled": False,
            "backend_state": "up" if self.up else "down",
            "filter_function": config.filter_function or None,
            "goodness_function": config.goodness_function or None,
            "location_info": None,
            "timestamp": self.at.isoformat(),
            "updated": self.at.isoformat(),
        }


class PoolReports:
    """All reports; any thread may update and read."""

    def __init__(self) -> None:
        self._reports: dict[str, PoolReport] = {}
        self._lock = threading.Lock()

    def update(self, report: PoolReport) -> None:
        """Replace a pool's report."""
        with self._lock:
            self._reports[report.name] = report

    def exchange(self, former: PoolReport, report: PoolReport) -> bool:
        """Replace a pool's report unless another one has replaced ``former`` meanwhile; return True if replaced."""
        with self._lock:
            if self._reports.get(report.name) is not former:
                return False
            self._reports[report.name] = report
            return True

    def reports(self) -> Mapping[str, PoolReport]:
        """Return all reports by pool name."""
        with self._lock:
            return dict(self._reports)

    def of_host(self, host: str) -> list[PoolReport]:
        """Return the reports of the pools that a host names, in the order of their names.

        NODE@BACKEND#POOL names one pool, NODE@BACKEND all pools of the backend.
        """
        return [report for name, report in sorted(self.reports().items()) if host in (name, report.backend)]

    def get(self, name: str) -> PoolReport | None:
        """Return one pool's report."""
        return self._reports.get(name)


def _rounded(figure: float | None) -> float | None:
    return None if figure is None else round(figure, 2)
