"""Parts of the API that this service does not offer yet: images, backups, groups, failover.

Lists are empty, which is true. A single resource is 404. A request that would create or move something returns 501 and
names the missing part; it never pretends to succeed. A part leaves this file when it is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockstore.api.http.call import Call
from blockstore.api.http.routes import Routes
from blockstore.api.volumes.volumes import ACTION, find_volume
from blockstore.errors import NotFound, NotOffered
from blockstore.microversions import Version
from blockstore.schemas.unsupported import AnythingBody

routes = Routes()

IMAGES = "images from Glance"
REPLICATION = "replication"
GROUPS = "groups"
SNAPSHOT_OF_GROUP, OLD_GROUP, OLD_SNAPSHOT = "Group snapshot", "Consistency group", "Consistency group snapshot"
LIST_SNAPSHOTS, SHOW_SNAPSHOT = "group:get_all_group_snapshots", "group:get_group_snapshot"

ASKED_LATER = (
    "backup:backup_project_attribute",
    "group:access_group_types_specs",
    "group:group_project_attribute",
    "group:group_snapshot_project_attribute",
    "volume:reimage_reserved",
    "volume_extension:volume_actions:upload_public",
    # compat: Cinder checks it with elevated rights, so that it is never refused
    "volume:update_volume_admin_metadata",
)
"""Rules that a policy file may name and that no endpoint checks, or not yet."""

VOLUME_ACTIONS = (
    # action, policy, since, what is missing
    ("os-volume_upload_image", "volume_extension:volume_actions:upload_image", (3, 0), IMAGES),
    ("os-reimage", "volume:reimage", (3, 68), IMAGES),
)

COLLECTIONS = (
    # path, key of the list, noun, policy of the list, of one, since
    ("/backups", "backups", "Backup", "backup:get_all", "backup:get", (3, 0)),
    ("/groups", "groups", "Group", "group:get_all", "group:get", (3, 13)),
    ("/group_snapshots", "group_snapshots", SNAPSHOT_OF_GROUP, LIST_SNAPSHOTS, SHOW_SNAPSHOT, (3, 14)),
    ("/consistencygroups", "consistencygroups", OLD_GROUP, "group:get_all", "group:get", (3, 0)),
    ("/cgsnapshots", "cgsnapshots", OLD_SNAPSHOT, LIST_SNAPSHOTS, SHOW_SNAPSHOT, (3, 0)),
)

ABSENT = (
    # method, path, noun, policy, since: requests for a single resource, which cannot exist
    ("PUT", "/backups/<one_id>", "Backup", "backup:update", (3, 9)),
    ("DELETE", "/backups/<one_id>", "Backup", "backup:delete", (3, 0)),
    ("POST", "/backups/<one_id>/restore", "Backup", "backup:restore", (3, 0)),
    ("GET", "/backups/<one_id>/export_record", "Backup", "backup:export-import", (3, 0)),
    ("PUT", "/groups/<one_id>", "Group", "group:update", (3, 13)),
    ("DELETE", "/group_snapshots/<one_id>", SNAPSHOT_OF_GROUP, "group:delete_group_snapshot", (3, 14)),
    ("PUT", "/consistencygroups/<one_id>", OLD_GROUP, "group:update", (3, 0)),
    ("PUT", "/consistencygroups/<one_id>/update", OLD_GROUP, "group:update", (3, 0)),
    ("POST", "/consistencygroups/<one_id>/delete", OLD_GROUP, "group:delete", (3, 0)),
    ("DELETE", "/cgsnapshots/<one_id>", OLD_SNAPSHOT, "group:delete_group_snapshot", (3, 0)),
    ("GET", "/group_types/<one_id>", "Group type", "none", (3, 11)),
    ("PUT", "/group_types/<one_id>", "Group type", "group:group_types:update", (3, 11)),
    ("DELETE", "/group_types/<one_id>", "Group type", "group:group_types:delete", (3, 11)),
    ("GET", "/group_types/<one_id>/group_specs", "Group type", "group:group_types_specs:get_all", (3, 11)),
    ("POST", "/group_types/<one_id>/group_specs", "Group type", "group:group_types_specs:create", (3, 11)),
    ("GET", "/group_types/<one_id>/group_specs/<key>", "Group type", "group:group_types_specs:get", (3, 11)),
    ("PUT", "/group_types/<one_id>/group_specs/<key>", "Group type", "group:group_types_specs:update", (3, 11)),
    ("DELETE", "/group_types/<one_id>/group_specs/<key>", "Group type", "group:group_types_specs:delete", (3, 11)),
)

ABSENT_ACTIONS = (
    # path, action, noun, policy, since
    (
        "/backups/<one_id>/action",
        "os-reset_status",
        "Backup",
        "volume_extension:backup_admin_actions:reset_status",
        (3, 0),
    ),
    (
        "/backups/<one_id>/action",
        "os-force_delete",
        "Backup",
        "volume_extension:backup_admin_actions:force_delete",
        (3, 0),
    ),
    ("/groups/<one_id>/action", "delete", "Group", "group:delete", (3, 13)),
    ("/groups/<one_id>/action", "reset_status", "Group", "group:reset_status", (3, 20)),
    ("/groups/<one_id>/action", "enable_replication", "Group", "group:enable_replication", (3, 38)),
    ("/groups/<one_id>/action", "disable_replication", "Group", "group:disable_replication", (3, 38)),
    ("/groups/<one_id>/action", "failover_replication", "Group", "group:failover_replication", (3, 38)),
    ("/groups/<one_id>/action", "list_replication_targets", "Group", "group:list_replication_targets", (3, 38)),
    (
        "/group_snapshots/<one_id>/action",
        "reset_status",
        SNAPSHOT_OF_GROUP,
        "group:reset_group_snapshot_status",
        (3, 19),
    ),
)

REFUSED = (
    # method, path, policy, since, what is missing
    ("POST", "/backups", "backup:create", (3, 0), "backups"),
    ("POST", "/backups/import_record", "backup:backup-import", (3, 0), "backups"),
    ("POST", "/groups", "group:create", (3, 13), GROUPS),
    ("POST", "/group_snapshots", "group:create_group_snapshot", (3, 14), GROUPS),
    ("POST", "/group_types", "group:group_types:create", (3, 11), GROUPS),
    ("POST", "/consistencygroups", "group:create", (3, 0), GROUPS),
    ("POST", "/consistencygroups/create_from_src", "group:create", (3, 0), GROUPS),
    ("POST", "/cgsnapshots", "group:create_group_snapshot", (3, 0), GROUPS),
    ("PUT", "/os-services/failover_host", "volume:failover_host", (3, 0), REPLICATION),
)


def _refuse(missing: str) -> NotOffered:
    return NotOffered(f"This service does not offer {missing} yet.")


def _on_a_volume(name: str, policy: str, since: Version, missing: str) -> None:
    @routes.action(ACTION, name, policy=policy, body=AnythingBody, since=since)
    def refuse(call: Call, volume_id: str, body: Mapping[str, Any]) -> None:
        """Refuse a request that is not supported yet."""
        find_volume(call, volume_id)
        raise _refuse(missing)


def _collection(path: str, key: str, noun: str, policy: str, policy_of_one: str, since: Version) -> None:
    @routes.get(path, policy=policy, since=since)
    def index(call: Call) -> dict[str, Any]:
        """Return an empty list."""
        return {key: []}

    @routes.get(f"{path}/detail", policy=policy, since=since)
    def detail(call: Call) -> dict[str, Any]:
        """Return an empty list."""
        return {key: []}

    @routes.get(f"{path}/<one_id>", policy=policy_of_one, since=since)
    def show(call: Call, one_id: str) -> None:
        """Return 404: no such resource exists."""
        raise NotFound.resource(noun, one_id)


def _absent(method: str, path: str, noun: str, policy: str, since: Version) -> None:
    def find(call: Call, one_id: str, **_more: Any) -> None:
        """Return 404: no such resource exists."""
        raise NotFound.resource(noun, one_id)

    _declare(method, path, policy, since, find)


def _absent_action(path: str, name: str, noun: str, policy: str, since: Version) -> None:
    @routes.action(path, name, policy=policy, body=AnythingBody, since=since)
    def find(call: Call, one_id: str, body: Mapping[str, Any]) -> None:
        """Return 404: no such resource exists."""
        raise NotFound.resource(noun, one_id)


def _refused(method: str, path: str, policy: str, since: Version, missing: str) -> None:
    def refuse(call: Call, **_more: Any) -> None:
        """Refuse a request that is not supported yet."""
        raise _refuse(missing)

    _declare(method, path, policy, since, refuse)


def _declare(method: str, path: str, policy: str, since: Version, function: Any) -> None:
    if method == "POST":
        routes.post(path, policy=policy, body=AnythingBody, since=since)(function)
    elif method == "PUT":
        routes.put(path, policy=policy, body=AnythingBody, since=since)(function)
    elif method == "DELETE":
        routes.delete(path, policy=policy, since=since)(function)
    else:
        routes.get(path, policy=policy, since=since)(function)


for _action, _policy, _since, _missing in VOLUME_ACTIONS:
    _on_a_volume(_action, _policy, Version(*_since), _missing)
for _path, _key, _noun, _policy, _policy_of_one, _since in COLLECTIONS:
    _collection(_path, _key, _noun, _policy, _policy_of_one, Version(*_since))
for _method, _path, _noun, _policy, _since in ABSENT:
    _absent(_method, _path, _noun, _policy, Version(*_since))
for _path, _action, _noun, _policy, _since in ABSENT_ACTIONS:
    _absent_action(_path, _action, _noun, _policy, Version(*_since))
for _method, _path, _policy, _since, _missing in REFUSED:
    _refused(_method, _path, _policy, Version(*_since), _missing)


@routes.get("/group_types", policy="none", since=Version(3, 11))
def group_types(call: Call) -> dict[str, Any]:
    """Return an empty list."""
    return {"group_types": []}


@routes.action("/groups/action", "create-from-src", policy="group:create", body=AnythingBody, since=Version(3, 14))
def create_group_from_source(call: Call, body: Mapping[str, Any]) -> None:
    """Refuse a request that is not supported yet."""
    raise _refuse(GROUPS)
