"""Shapes of volumes, their metadata and their actions."""

from __future__ import annotations

from typing import Any

from marshmallow import ValidationError, fields, post_load, validates_schema

from blockstore.microversions import (
    CLUSTER_NAME,
    CONSUMES_QUOTA,
    MINIMUM,
    PROVIDER_ID,
    SHARED_TARGETS,
    SHARED_TARGETS_NULL,
    VOLUME_FROM_BACKUP,
    VOLUME_GROUP,
    VOLUME_STRICT,
    VOLUME_TYPE_ID,
    Version,
)
from blockstore.schemas.base import (
    AnyValue,
    BoolLike,
    Pairs,
    Part,
    Reply,
    Schema,
    SizeGib,
    TextField,
    Uuid,
    field,
    in_one_word,
    is_uuid,
    timestamp,
)

# --- requests ----------------------------------------------------------------------------------------------


class NamedVolumeBody(Schema):
    """Name and description, with their older names."""

    name = field(TextField, strip=True, allow_none=True)
    description = field(TextField, strip=True, allow_none=True)
    display_name = field(TextField, strip=True, allow_none=True)
    display_description = field(TextField, strip=True, allow_none=True)

    @post_load
    def _one_word(self, data: dict[str, Any], **_kw: Any) -> dict[str, Any]:
        return in_one_word(data, display_name="name", display_description="description")


class NewVolumeBody(NamedVolumeBody):
    open_until = VOLUME_STRICT

    size = field(SizeGib, allow_none=True)
    volume_type = field(TextField, allow_none=True)
    metadata = field(Pairs, allow_none=True)
    availability_zone = field(TextField, min_length=1, allow_none=True)
    snapshot_id = field(Uuid, allow_none=True)
    source_volid = field(Uuid, allow_none=True)
    backup_id = field(Uuid, since=VOLUME_FROM_BACKUP, allow_none=True)
    imageRef = field(TextField, allow_none=True)
    image_id = field(TextField, allow_none=True)
    multiattach = field(BoolLike, allow_none=True)
    group_id = field(TextField, since=VOLUME_GROUP, allow_none=True)
    consistencygroup_id = field(Uuid, allow_none=True)


class Hints(fields.Field[dict[str, Any]]):
    """Scheduler hints: ``same_host`` and ``different_host`` name volumes; other hints are ignored."""

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise ValidationError("It must be an object.")
        for name in ("same_host", "different_host"):
            ids = value.get(name)
            listed = [ids] if isinstance(ids, str) else ids
            if ids is None:
                continue
            if not isinstance(listed, list) or not all(isinstance(i, str) and is_uuid(i) for i in listed):
                raise ValidationError({name: ["It must be a uuid or an array of uuids."]})
            if len(set(listed)) != len(listed) or len(listed) > 100:
                raise ValidationError({name: ["It must hold each uuid once, and at most 100."]})
        local = value.get("local_to_instance")
        if local is not None and not (isinstance(local, str) and is_uuid(local)):
            raise ValidationError({"local_to_instance": ["It must be a uuid."]})
        return {name: value[name] for name in ("same_host", "different_host") if value.get(name) is not None}


class CreateVolumeBody(Schema):
    volume = field(Part, required=True, schema=NewVolumeBody)
    hints = field(Hints, data_key="OS-SCH-HNT:scheduler_hints", allow_none=True)


class VolumeChangeBody(NamedVolumeBody):
    metadata = field(Pairs)

    @validates_schema(pass_original=True)
    def _says_something(self, data: Any, original: Any, **_kw: Any) -> None:
        version: Version = getattr(self, "context_version", MINIMUM)
        if not original and version >= VOLUME_STRICT:
            raise ValidationError("At least one of name, description, metadata is needed.")


class UpdateVolumeBody(Schema):
    volume = field(Part, required=True, schema=VolumeChangeBody)


class VolumeMetadataBody(Schema):
    metadata = field(Pairs, required=True)


class VolumeMetadataItemBody(Schema):
    meta = field(Pairs, required=True, least=1, most=1)


class NewSizeBody(Schema):
    new_size = field(SizeGib, required=True)


class ExtendBody(Schema):
    extend = field(Part, required=True, schema=NewSizeBody, data_key="os-extend")


class BootableBody(Schema):
    bootable = field(BoolLike, required=True)


class SetBootableBody(Schema):
    set_bootable = field(Part, required=True, schema=BootableBody, data_key="os-set_bootable")


class ReadonlyBody(Schema):
    readonly = field(BoolLike, required=True)


class UpdateReadonlyFlagBody(Schema):
    flag = field(Part, required=True, schema=ReadonlyBody, data_key="os-update_readonly_flag")


class RetypeToBody(Schema):
    new_type = field(TextField, required=True, min_length=1)
    migration_policy = field(TextField, choices=("on-demand", "never"), allow_none=True)


class RetypeBody(Schema):
    retype = field(Part, required=True, schema=RetypeToBody, data_key="os-retype")


class ForceDeleteVolumeBody(Schema):
    force_delete = field(AnyValue, required=True, allow_none=True, data_key="os-force_delete")


class Word(fields.Field[str]):
    """One of a set of words, in upper or lower case."""

    shows_value = True

    def __init__(self, *words: str, **kw: Any):
        super().__init__(**kw)
        self.words = words

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        if not isinstance(value, str) or value.lower() not in self.words:
            raise ValidationError(f"It must be one of {', '.join(self.words)}.")
        return value.lower()


RESETTABLE = (
    "creating", "downloading", "available", "reserved", "attaching", "in-use", "detaching", "maintenance", "extending",
    "retyping", "uploading", "backing-up", "restoring-backup", "awaiting-transfer", "managing", "error",
    "error_deleting", "error_extending", "error_restoring", "error_managing", "error_backing-up",
)  # fmt: skip


class StatusesBody(Schema):
    status = field(Word, *RESETTABLE, allow_none=True)
    attach_status = field(Word, "attached", "detached", allow_none=True)
    migration_status = field(Word, "migrating", "error", "success", "completing", "none", "starting", allow_none=True)

    @validates_schema
    def _says_something(self, data: Any, **_kw: Any) -> None:
        if not any(data.values()):
            raise ValidationError("At least one of status, attach_status, migration_status is needed.")


class ResetVolumeStatusBody(Schema):
    reset = field(Part, required=True, schema=StatusesBody, data_key="os-reset_status")


class RevertPointBody(Schema):
    class Meta:
        unknown = "exclude"

    snapshot_id = field(TextField, allow_none=True)


class RevertBody(Schema):
    revert = field(Part, required=True, schema=RevertPointBody)


# --- replies -----------------------------------------------------------------------------------------------

HOST = "volume_extension:volume_host_attribute"
TENANT = "volume_extension:volume_tenant_attribute"
MIGRATION = "volume_extension:volume_mig_status_attribute"
ADMIN_ONLY = "admin"
"""Not a policy rule: shown to administrators, whatever the policies say."""
IMAGE = "volume_extension:volume_image_metadata:show"
DETAIL_ONLY = frozenset({HOST, TENANT, MIGRATION})

SHOWN_AS = {"managing": "creating", "error_managing": "error", "error_managing_deleting": "deleting"}

VOLUME = Reply(
    ("id", lambda v: v.row.id),
    ("status", lambda v: SHOWN_AS.get(v.row.status, v.row.status)),
    ("size", lambda v: v.row.size),
    ("availability_zone", lambda v: v.row.availability_zone),
    ("created_at", lambda v: timestamp(v.row.created_at)),
    ("updated_at", lambda v: timestamp(v.row.updated_at)),
    ("name", lambda v: v.row.name),
    ("description", lambda v: v.row.description),
    ("volume_type", lambda v: v.type_name),
    ("snapshot_id", lambda v: v.row.snapshot_id),
    ("source_volid", lambda v: v.row.source_volid),
    ("metadata", lambda v: v.metadata),
    ("links", lambda v: v.links),
    ("user_id", lambda v: v.row.user_id),
    ("bootable", lambda v: "true" if v.row.bootable else "false"),
    ("encrypted", lambda v: v.row.encryption_key_id is not None),
    ("replication_status", lambda v: v.row.replication_status),
    ("consistencygroup_id", lambda v: None),
    ("multiattach", lambda v: v.row.multiattach),
    ("attachments", lambda v: v.attachments),
    ("migration_status", lambda v: v.row.migration_status, MINIMUM, ADMIN_ONLY),
    ("group_id", lambda v: v.row.group_id, VOLUME_GROUP),
    ("provider_id", lambda v: v.row.provider_id, PROVIDER_ID, ADMIN_ONLY),
    ("shared_targets", lambda v: v.shared_targets, SHARED_TARGETS),
    ("service_uuid", lambda v: v.row.service_uuid, SHARED_TARGETS),
    ("cluster_name", lambda v: v.row.cluster_name, CLUSTER_NAME, ADMIN_ONLY),
    ("volume_type_id", lambda v: v.row.volume_type_id, VOLUME_TYPE_ID),
    ("consumes_quota", lambda v: v.row.consumes_quota, CONSUMES_QUOTA),
    ("os-vol-tenant-attr:tenant_id", lambda v: v.row.project_id, MINIMUM, TENANT),
    ("os-vol-host-attr:host", lambda v: v.row.host, MINIMUM, HOST),
    ("os-vol-mig-status-attr:migstat", lambda v: v.row.migration_status, MINIMUM, MIGRATION),
    ("os-vol-mig-status-attr:name_id", lambda v: v.row.name_id, MINIMUM, MIGRATION),
    ("volume_image_metadata", lambda v: v.image_metadata, MINIMUM, IMAGE),
)


def shared_targets(value: bool | None, version: Version) -> bool | None:
    """Return the value for a microversion: older microversions have no null and get True."""
    return True if value is None and version < SHARED_TARGETS_NULL else value
