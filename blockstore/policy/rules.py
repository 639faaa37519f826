"""Every policy rule of this service.

Rule names and levels are Cinder's, so an operator's knowledge and a ``policy.yaml`` carry over.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from pathlib import Path
from typing import Protocol

from blockstore.context import RequestContext
from blockstore.errors import ConfigError, Forbidden

log = logging.getLogger(__name__)


class Level(Enum):
    """The least role that a rule requires."""

    ANYONE = "any authenticated caller"
    READER = "reader"
    MEMBER = "member"
    ADMIN = "admin"


ANYONE, READER, MEMBER, ADMIN = Level.ANYONE, Level.READER, Level.MEMBER, Level.ADMIN

RULES: Mapping[str, Level] = {
    "none": ANYONE,
    "volume:create": MEMBER,
    "volume:get": READER,
    "volume:get_all": READER,
    "volume:update": MEMBER,
    "volume:delete": MEMBER,
    "volume:force_delete": ADMIN,
    "volume:get_volume_metadata": READER,
    "volume:create_volume_metadata": MEMBER,
    "volume:update_volume_metadata": MEMBER,
    "volume:delete_volume_metadata": MEMBER,
    "volume:extend": MEMBER,
    "volume:extend_attached_volume": MEMBER,
    "volume:revert_to_snapshot": MEMBER,
    "volume:attachment_create": MEMBER,
    "volume:attachment_update": MEMBER,
    "volume:attachment_delete": MEMBER,
    "volume:attachment_complete": MEMBER,
    "volume:multiattach_bootable_volume": MEMBER,
    "volume:multiattach": MEMBER,
    "volume_extension:volume_actions:attach": MEMBER,
    "volume_extension:volume_actions:detach": MEMBER,
    "volume_extension:volume_actions:reserve": MEMBER,
    "volume_extension:volume_actions:unreserve": MEMBER,
    "volume_extension:volume_actions:begin_detaching": MEMBER,
    "volume_extension:volume_actions:roll_detaching": MEMBER,
    "volume_extension:volume_actions:initialize_connection": MEMBER,
    "volume_extension:volume_actions:terminate_connection": MEMBER,
    "volume_extension:volume_admin_actions:force_detach": ADMIN,
    "volume_extension:volume_admin_actions:extend_volume_completion": ADMIN,
    "volume:update_readonly_flag": MEMBER,
    "volume_extension:volume_admin_actions:reset_status": ADMIN,
    "volume_extension:volume_admin_actions:force_delete": ADMIN,
    "volume_extension:volume_host_attribute": ADMIN,
    "volume_extension:volume_tenant_attribute": READER,
    "volume_extension:volume_mig_status_attribute": ADMIN,
    "volume:get_all_snapshots": READER,
    "volume:create_snapshot": MEMBER,
    "volume:get_snapshot": READER,
    "volume:update_snapshot": MEMBER,
    "volume:delete_snapshot": MEMBER,
    "volume:get_snapshot_metadata": READER,
    "volume:update_snapshot_metadata": MEMBER,
    "volume:delete_snapshot_metadata": MEMBER,
    "volume_extension:extended_snapshot_attributes": READER,
    "volume_extension:snapshot_admin_actions:reset_status": ADMIN,
    "volume_extension:snapshot_admin_actions:force_delete": ADMIN,
    "snapshot_extension:snapshot_actions:update_snapshot_status": MEMBER,
    "volume_extension:type_get": READER,
    "volume_extension:type_get_all": READER,
    "volume_extension:type_create": ADMIN,
    "volume_extension:type_update": ADMIN,
    "volume_extension:type_delete": ADMIN,
    "volume_extension:access_types_extra_specs": READER,
    "volume_extension:access_types_qos_specs_id": ADMIN,
    "volume_extension:volume_type_access": MEMBER,
    "volume_extension:volume_type_access:addProjectAccess": ADMIN,
    "volume_extension:volume_type_access:removeProjectAccess": ADMIN,
    "volume_extension:volume_type_access:get_all_for_type": ADMIN,
    "volume_extension:types_extra_specs:index": READER,
    "volume_extension:types_extra_specs:show": READER,
    "volume_extension:types_extra_specs:create": ADMIN,
    "volume_extension:types_extra_specs:update": ADMIN,
    "volume_extension:types_extra_specs:delete": ADMIN,
    "volume_extension:types_extra_specs:read_sensitive": ADMIN,
    "scheduler_extension:scheduler_stats:get_pools": ADMIN,
    "volume_extension:services:index": ADMIN,
    "volume_extension:services:update": ADMIN,
    "limits_extension:used_limits": READER,
    "message:get_all": READER,
    "message:get": READER,
    "message:delete": MEMBER,
    "clusters:get_all": ADMIN,
    "clusters:get": ADMIN,
    "clusters:update": ADMIN,
    "workers:cleanup": ADMIN,
    "snapshot_extension:list_manageable": ADMIN,
    "snapshot_extension:snapshot_manage": ADMIN,
    "snapshot_extension:snapshot_unmanage": ADMIN,
    "backup:get_all": READER,
    "backup:backup_project_attribute": ADMIN,
    "backup:create": MEMBER,
    "backup:get": READER,
    "backup:update": MEMBER,
    "backup:delete": MEMBER,
    "backup:restore": MEMBER,
    "backup:backup-import": ADMIN,
    "backup:export-import": ADMIN,
    "volume_extension:backup_admin_actions:reset_status": ADMIN,
    "volume_extension:backup_admin_actions:force_delete": ADMIN,
    "group:get_all": READER,
    "group:create": MEMBER,
    "group:get": READER,
    "group:update": MEMBER,
    "group:group_project_attribute": ADMIN,
    "group:group_types:create": ADMIN,
    "group:group_types:update": ADMIN,
    "group:group_types:delete": ADMIN,
    "group:access_group_types_specs": ADMIN,
    "group:group_types_specs:get": ADMIN,
    "group:group_types_specs:get_all": ADMIN,
    "group:group_types_specs:create": ADMIN,
    "group:group_types_specs:update": ADMIN,
    "group:group_types_specs:delete": ADMIN,
    "group:get_all_group_snapshots": READER,
    "group:create_group_snapshot": MEMBER,
    "group:get_group_snapshot": READER,
    "group:delete_group_snapshot": MEMBER,
    "group:group_snapshot_project_attribute": ADMIN,
    "group:reset_group_snapshot_status": ADMIN,
    "group:delete": MEMBER,
    "group:reset_status": ADMIN,
    "group:enable_replication": MEMBER,
    "group:disable_replication": MEMBER,
    "group:failover_replication": MEMBER,
    "group:list_replication_targets": MEMBER,
    "volume_extension:qos_specs_manage:get_all": ADMIN,
    "volume_extension:qos_specs_manage:get": ADMIN,
    "volume_extension:qos_specs_manage:create": ADMIN,
    "volume_extension:qos_specs_manage:update": ADMIN,
    "volume_extension:qos_specs_manage:delete": ADMIN,
    "volume_extension:quota_classes:get": ADMIN,
    "volume_extension:quota_classes:update": ADMIN,
    "volume_extension:quotas:show": READER,
    "volume_extension:quotas:update": ADMIN,
    "volume_extension:quotas:delete": ADMIN,
    "volume_extension:capabilities": ADMIN,
    "volume:freeze_host": ADMIN,
    "volume:thaw_host": ADMIN,
    "volume:failover_host": ADMIN,
    "volume_extension:hosts": ADMIN,
    "volume_extension:list_manageable": ADMIN,
    "volume_extension:volume_manage": ADMIN,
    "volume_extension:volume_unmanage": ADMIN,
    "volume_extension:volume_type_encryption:create": ADMIN,
    "volume_extension:volume_type_encryption:get": ADMIN,
    "volume_extension:volume_type_encryption:update": ADMIN,
    "volume_extension:volume_type_encryption:delete": ADMIN,
    "volume:retype": MEMBER,
    "volume_extension:volume_actions:upload_public": ADMIN,
    "volume_extension:volume_actions:upload_image": MEMBER,
    "volume_extension:volume_admin_actions:migrate_volume": ADMIN,
    "volume_extension:volume_admin_actions:migrate_volume_completion": ADMIN,
    "volume:reimage": MEMBER,
    "volume:reimage_reserved": MEMBER,
    "volume:get_all_transfers": READER,
    "volume:create_transfer": MEMBER,
    "volume:get_transfer": READER,
    "volume:accept_transfer": MEMBER,
    "volume:delete_transfer": MEMBER,
    "volume_extension:volume_image_metadata:show": READER,
    "volume_extension:volume_image_metadata:set": MEMBER,
    "volume_extension:volume_image_metadata:remove": MEMBER,
    "volume:update_volume_admin_metadata": ADMIN,
    "volume:create_from_image": MEMBER,
    "volume_extension:volume_encryption_metadata": READER,
    "volume_extension:default_set_or_update": ADMIN,
    "volume_extension:default_get": ADMIN,
    "volume_extension:default_get_all": ADMIN,
    "volume_extension:default_unset": ADMIN,
}

IMPLIED: Mapping[str, tuple[str, ...]] = {"admin": ("member", "reader"), "member": ("reader",)}
"""Roles that a role implies, as in Keystone's bootstrap."""

_ROLES: Mapping[Level, frozenset[str]] = {
    READER: frozenset({"reader", "member", "admin"}),
    MEMBER: frozenset({"member", "admin"}),
    ADMIN: frozenset({"admin"}),
}


class Policy:
    """The rules in force: ``RULES``, with the overrides of a policy file, which is read again when it changes."""

    def __init__(self, file: Path | None = None, load: Callable[[Path], Overrides | None] | None = None) -> None:
        """``file`` need not exist. ``load`` reads it, and returns None if it is missing. Raises ConfigError."""
        self._file, self._load = file, load
        self.released: Callable[[], AbstractContextManager[None]] = nullcontext
        """Entered while overrides decide that may ask a server (``interpreter.py``)."""
        self._seen: tuple[int, ...] | None = None
        self._overrides: Overrides | None = None
        if file is not None and load is not None:
            self._seen = _signature(file)
            self._overrides = load(file)

    def reload_if_changed(self) -> None:
        """Read the policy file again if it has changed. Called once per request, which checks many rules."""
        if self._file is None or self._load is None:
            return
        seen = _signature(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._overrides = self._load(self._file)
        except ConfigError as exc:  # the former policies are safer than none
            log.error("policies not changed: %s", exc)
        except Exception as exc:
            reason = " ".join(str(exc).split())
            log.error("policies not changed: %s cannot be read: %s: %s", self._file, type(exc).__name__, reason)
        else:
            log.warning("policies read again: %s", self._file if self._overrides else f"{self._file} is gone")

    def is_admin(self, roles: Collection[str], user_id: str, project_id: str) -> bool:
        """Return True if these roles make an administrator."""
        overrides = self._overrides
        if overrides is None:
            return "admin" in roles
        with self._released_by(overrides):
            return overrides.is_admin(roles, user_id, project_id)

    def allowed(self, ctx: RequestContext, rule: str) -> bool:
        """Return True if the caller satisfies a rule."""
        overrides = self._overrides
        if overrides is not None:
            with self._released_by(overrides):
                return overrides.allowed(ctx, rule)
        level = RULES[rule]
        return level is ANYONE or ctx.is_admin or (level is not ADMIN and bool(ctx.roles & _ROLES[level]))

    def enforce(self, ctx: RequestContext, rule: str) -> None:
        """Raise Forbidden with the rule's name unless the caller satisfies the rule."""
        if not self.allowed(ctx, rule):
            raise Forbidden(f"Policy doesn't allow {rule} to be performed.")

    def _released_by(self, overrides: Overrides) -> AbstractContextManager[None]:
        return self.released() if overrides.asks_a_server else nullcontext()


class Overrides(Protocol):
    """The overrides of a policy file. ``policy/file.py`` implements this protocol."""

    @property
    def asks_a_server(self) -> bool:
        """True if a rule is decided by a server."""

    def is_admin(self, roles: Collection[str], user_id: str, project_id: str) -> bool:
        """Return True if these roles make an administrator."""

    def allowed(self, ctx: RequestContext, rule: str) -> bool:
        """Return True if the caller satisfies a rule."""


def _signature(file: Path) -> tuple[int, ...] | None:
    """Return a value that changes with the file, its owner and its mode; None if the file is missing."""
    try:
        found = file.stat()
    except FileNotFoundError:
        return (errno.ENOENT,) if file.is_symlink() else None
    except OSError as exc:
        return (exc.errno or 0,)
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_dev)
