"""Every microversion that changes the behaviour of this service, as a named constant with its sentence.

Used as ``since=`` on endpoints and schema fields, so one grep shows all effects of a version.
Facts: OpenStack Block Storage API v3, 3.0 to 3.71.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from blockstore.errors import BadRequest, NotAcceptable, shortened


class Version(NamedTuple):
    """A microversion; compares numerically."""

    major: int
    minor: int

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


MINIMUM = Version(3, 0)
BOOTABLE_STRICT = Version(3, 2)
"""The bootable filter takes booleans only."""
MESSAGES = Version(3, 3)
"""User messages."""
MESSAGES_PAGING = Version(3, 5)
"""Messages are paged, sorted and filtered."""
FILTER_GLANCE_METADATA = Version(3, 4)
"""Volumes are filtered by glance_metadata."""
SERVICES_CLUSTER = Version(3, 7)
"""Services show their cluster."""
FILTER_GROUP_ID = Version(3, 10)
"""Volumes are filtered by group_id."""
MANAGEABLE = Version(3, 8)
"""Manageable volumes and snapshots have resources of their own."""
MIGRATE_CLUSTER = Version(3, 16)
"""A migration, and the management of a volume, may name a cluster."""
MANAGEABLE_CLUSTER = Version(3, 17)
"""Manageable volumes and snapshots are listed by cluster."""
VOLUME_SUMMARY = Version(3, 12)
"""Totals of volumes."""
VOLUME_GROUP = Version(3, 13)
"""Volumes show their group."""
SNAPSHOT_GROUP = Version(3, 14)
"""Snapshots show their group snapshot."""
METADATA_ETAG = Version(3, 15)
"""Volume metadata carries an Etag, and writes obey If-Match."""
PROVIDER_ID = Version(3, 21)
"""Administrators see provider_id."""
SNAPSHOT_FILTER_METADATA = Version(3, 22)
"""Snapshots are filtered by metadata."""
DELETE_FORCE = Version(3, 23)
"""Delete of a volume takes force."""
WORKERS_CLEANUP = Version(3, 24)
"""The unfinished work of a dead service is cleaned up on request."""
POOL_FILTERS = Version(3, 28)
"""Pools are filtered."""
SNAPSHOT_SORT_NAME = Version(3, 30)
"""Snapshots are sorted by name."""
FILTERS_CHECKED = Version(3, 31)
"""A filter that is not allowed is refused instead of ignored."""
LOG_LEVELS = Version(3, 32)
"""Log levels are read and changed."""
ATTACHMENTS = Version(3, 27)
"""Attachments are a resource of their own."""
RESOURCE_FILTERS = Version(3, 33)
"""The filters of each resource are listed."""
POOL_VOLUME_TYPE = Version(3, 35)
"""Pools are filtered by volume type."""
SUMMARY_METADATA = Version(3, 36)
"""Totals of volumes show their metadata."""
LIMITS_PROJECT = Version(3, 39)
"""Administrators read the limits of another project."""
VOLUME_REVERT = Version(3, 40)
"""A volume reverts to its newest snapshot."""
SNAPSHOT_USER = Version(3, 41)
"""Snapshots show their owner."""
EXTEND_ATTACHED = Version(3, 42)
"""Volumes in use can be extended."""
ATTACHMENT_COMPLETE = Version(3, 44)
"""Attachments are marked as complete by an action."""
WITH_COUNT = Version(3, 45)
"""Lists contain their total count on request."""
VOLUME_FROM_BACKUP = Version(3, 47)
"""A volume is created from a backup."""
SHARED_TARGETS = Version(3, 48)
"""Volumes show target sharing and their service."""
BACKEND_STATE = Version(3, 49)
"""Services show the state of their backend."""
TYPE_FILTER_EXTRA_SPECS = Version(3, 52)
"""Types are filtered by extra specs."""
VOLUME_STRICT = Version(3, 53)
"""Unknown fields on create and empty updates are refused."""
ATTACHMENT_MODE = Version(3, 54)
"""Attachments are made read-only or read-write."""
TIME_FILTERS = Version(3, 60)
"""Volumes are filtered by time."""
TRANSFER_PAGING = Version(3, 59)
"""Transfers are paged and sorted."""
TRANSFER_SNAPSHOTS = Version(3, 55)
"""Transfers include the snapshots of the volume, or exclude them."""
TRANSFER_PROJECTS = Version(3, 57)
"""Transfers show their projects."""
CLUSTER_NAME = Version(3, 61)
"""Administrators see a volume's cluster."""
DEFAULT_TYPES = Version(3, 62)
"""Projects have a default type of their own."""
VOLUME_TYPE_ID = Version(3, 63)
"""Volumes show the id of their type."""
CONSUMES_QUOTA = Version(3, 65)
"""Volumes and snapshots show whether they count against the quota."""
SNAPSHOT_IN_USE = Version(3, 66)
"""Snapshots of volumes in use need no force."""
SHARED_TARGETS_NULL = Version(3, 69)
"""shared_targets may be null."""
MAXIMUM = Version(3, 71)
CLIENTS = Version(3, 64)
"""The version that ``blockstore openrc`` sets for clients. Debian 12's clients refuse more than 3.70. The ``openstack``
commands 6.0 to 7.4 send the ``force`` of a snapshot, which 3.66 removed."""

SERVICE_TYPE = "volume"
OTHER_SERVICE_TYPES = frozenset({"block-storage", "block-store"})
"""Further names of this service, by the OpenStack service types authority; the others contain ``volume``."""
HEADER = "OpenStack-API-Version"

_FORM = re.compile(r"([1-9][0-9]{0,8})\.([1-9][0-9]{0,8}|0)")


def version_text(header: str) -> str | None:
    """Return the version in the first entry of a header that is for this service, or None without such an entry.

    compat: Cinder looks for the text ``volume`` anywhere in an entry, so gophercloud's ``volumev3 3.42`` counts.
    Cinder refuses ``block-storage``, the official type of the service, which gophercloud 2.0 to 2.6 sends.
    The result is empty if the entry is not one name and one version.
    """
    for entry in header.split(","):
        service, *rest = entry.split() or [""]
        if SERVICE_TYPE in service.lower() or service.lower() in OTHER_SERVICE_TYPES:
            return rest[0] if len(rest) == 1 else ""
    return None


def negotiate(header: str | None) -> Version:
    """Return the version a request asks for; without the header, 3.0.

    Raise BadRequest if the header is malformed or names other services only, NotAcceptable if out of range.
    """
    if header is None:
        return MINIMUM
    text = version_text(header)
    if text is None:
        raise BadRequest(f"The header {HEADER} names no version of the service {SERVICE_TYPE}.")
    if text.lower() == "latest":
        return MAXIMUM
    form = _FORM.fullmatch(text)
    if form is None:
        raise BadRequest(
            f"API Version String {shortened(text)} is of invalid format. Must be of format MajorNum.MinorNum."
        )
    version = Version(int(form[1]), int(form[2]))
    if not MINIMUM <= version <= MAXIMUM:
        raise NotAcceptable(
            f"Version {version} is not supported by the API. Minimum is {MINIMUM} and maximum is {MAXIMUM}."
        )
    return version
