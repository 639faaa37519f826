"""All tables.

Rows are deleted with their resource; the ``operations`` table keeps the history. Times are UTC without zone.
Only ``operations/transitions.py`` writes statuses.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, BigInteger, ColumnElement, DateTime, ForeignKey, Index, String, Text, false, or_, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now() -> datetime.datetime:
    """Return the present time, UTC without zone, as every column holds it."""
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


def new_id() -> str:
    """Return a fresh resource id."""
    return str(uuid.uuid4())


class Base(DeclarativeBase):
    """Common declarations."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own form
        dict[str, Any]: JSON,
        datetime.datetime: DateTime(),
    }


Id = String(36)
Name = String(255)


IS_TRUE = "<is> True"


def is_required(extra_specs: Mapping[str, str | None], name: str) -> bool:
    """Return True if extra specs require a capability with this value. compat: no other spelling counts here."""
    return (extra_specs.get(name) or "").strip() == IS_TRUE


class VolumeType(Base):
    __tablename__ = "volume_types"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Name, unique=True)
    description: Mapped[str | None] = mapped_column(Name)
    is_public: Mapped[bool] = mapped_column(default=True)
    qos_specs_id: Mapped[str | None] = mapped_column(Id)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(onupdate=now)

    specs: Mapped[list[ExtraSpec]] = relationship(
        cascade="all, delete-orphan", lazy="selectin", order_by="ExtraSpec.key"
    )
    access: Mapped[list[TypeAccess]] = relationship(cascade="all, delete-orphan", lazy="raise_on_sql")
    encryption: Mapped[TypeEncryption | None] = relationship(cascade="all, delete-orphan", lazy="selectin")

    __table_args__ = (
        Index("ix_volume_types_page", "created_at", "id"),
        Index("ix_volume_types_qos", "qos_specs_id"),
    )

    @property
    def multiattach(self) -> bool:
        """Return True if volumes of this type may be attached several times at once."""
        return is_required(self.extra_specs, "multiattach")

    @property
    def extra_specs(self) -> dict[str, str | None]:
        """Return the extra specs as a map."""
        return {spec.key: spec.value for spec in self.specs}


class ExtraSpec(Base):
    __tablename__ = "volume_type_extra_specs"

    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str | None] = mapped_column(Name)


class TypeAccess(Base):
    """A project that may use a private type."""

    __tablename__ = "volume_type_projects"

    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[str] = mapped_column(Name, primary_key=True)


class TypeEncryption(Base):
    """How volumes of a type are to be encrypted."""

    __tablename__ = "volume_type_encryptions"

    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[str] = mapped_column(Id, default=new_id)
    provider: Mapped[str] = mapped_column(Name)
    control_location: Mapped[str] = mapped_column(Name)
    cipher: Mapped[str | None] = mapped_column(Name)
    key_size: Mapped[int | None]
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None] = mapped_column(onupdate=now)


class DefaultType(Base):
    """The type of a project's volumes that are created without a type."""

    __tablename__ = "default_types"

    project_id: Mapped[str] = mapped_column(Name, primary_key=True)
    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id"))

    __table_args__ = (Index("ix_default_types_type", "volume_type_id"),)


class QosSpecs(Base):
    """Limits that the consumer of a volume keeps: hypervisor, storage, or both."""

    __tablename__ = "qos_specs"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    name: Mapped[str] = mapped_column(Name, unique=True)
    consumer: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)

    pairs: Mapped[list[QosPair]] = relationship(cascade="all, delete-orphan", lazy="selectin", order_by="QosPair.key")

    __table_args__ = (
        Index("ix_qos_specs_page", "created_at", "id"),
        Index("ix_qos_specs_consumer", "consumer", "created_at", "id"),
    )

    @property
    def specs(self) -> dict[str, str | None]:
        """Return the limits as a map."""
        return {pair.key: pair.value for pair in self.pairs}


class QosPair(Base):
    __tablename__ = "qos_spec_pairs"

    qos_specs_id: Mapped[str] = mapped_column(ForeignKey("qos_specs.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str | None] = mapped_column(Name)


MIGRATION_ENDED = ("error", "success")
MIGRATION_IDLE = ("deleting", *MIGRATION_ENDED)
"""Values of migration_status without a migration. compat: at ``deleting``, Cinder deletes the migration's source."""


class Volume(Base):
    __tablename__ = "volumes"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Name)
    user_id: Mapped[str | None] = mapped_column(Name)
    name: Mapped[str | None] = mapped_column(Name)
    description: Mapped[str | None] = mapped_column(Name)
    size: Mapped[int]
    """GiB."""
    status: Mapped[str] = mapped_column(String(32))
    previous_status: Mapped[str | None] = mapped_column(String(32))
    """The status before a transitional status, for operations that restore it."""
    attach_status: Mapped[str] = mapped_column(String(32), default="detached")
    migration_status: Mapped[str | None] = mapped_column(Name)
    availability_zone: Mapped[str | None] = mapped_column(Name)
    host: Mapped[str | None] = mapped_column(Name)
    """The pool, NODE@BACKEND#POOL, once placed."""
    name_id: Mapped[str | None] = mapped_column(Id)
    """The id in the volume's name on its pool, instead of its own id, after a migration."""
    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id"))
    snapshot_id: Mapped[str | None] = mapped_column(Id)
    source_volid: Mapped[str | None] = mapped_column(Id)
    bootable: Mapped[bool] = mapped_column(default=False)
    has_image_metadata: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Avoids a query for volumes without image metadata."""
    multiattach: Mapped[bool] = mapped_column(default=False)
    admin_metadata: Mapped[dict[str, Any]] = mapped_column(default=dict)
    replication_status: Mapped[str | None] = mapped_column(Name)
    group_id: Mapped[str | None] = mapped_column(Id)
    provider_id: Mapped[str | None] = mapped_column(Name)
    service_uuid: Mapped[str | None] = mapped_column(Id)
    cluster_name: Mapped[str | None] = mapped_column(Name)
    shared_targets: Mapped[bool | None]
    encryption_key_id: Mapped[str | None] = mapped_column(Id)
    consumes_quota: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None]

    volume_type: Mapped[VolumeType] = relationship(lazy="raise_on_sql")

    @property
    def is_migrating(self) -> bool:
        """Return True if the volume is being migrated."""
        return bool(self.migration_status) and self.migration_status not in MIGRATION_IDLE

    __table_args__ = (
        # The default page: newest first, of one project or of all.
        Index("ix_volumes_project_page", "project_id", "created_at", "id"),
        Index("ix_volumes_page", "created_at", "id"),
        Index("ix_volumes_status", "project_id", "status", "created_at", "id"),
        Index("ix_volumes_settled", "status", "id"),
        Index("ix_volumes_name", "project_id", "name", "created_at", "id"),
        Index("ix_volumes_size", "project_id", "size"),
        Index("ix_volumes_updated", "project_id", "updated_at"),
        Index("ix_volumes_host", "host", "size"),
        Index("ix_volumes_type", "volume_type_id"),
        Index("ix_volumes_snapshot", "snapshot_id"),
        Index("ix_volumes_source", "source_volid"),
        Index("ix_volumes_group", "group_id"),
    )


def not_migrating(idle: Sequence[str] = MIGRATION_IDLE) -> ColumnElement[bool]:
    """Return the condition that a volume is not being migrated."""
    return or_(Volume.migration_status.is_(None), Volume.migration_status.in_(idle))


def is_on_backend(host: Any, backend: str) -> ColumnElement[bool]:
    """Return the condition that a row's ``host`` is a pool of NODE@BACKEND."""
    condition: ColumnElement[bool] = host.startswith(f"{backend}#", autoescape=True)
    return condition


class VolumeMetadata(Base):
    __tablename__ = "volume_metadata"

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Name)

    __table_args__ = (Index("ix_volume_metadata_pair", "key", "value"),)


class VolumeImageMetadata(Base):
    """Metadata of the image from which a volume was made."""

    __tablename__ = "volume_image_metadata"

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Text)

    __table_args__ = (Index("ix_volume_image_metadata_key", "key"),)


class Transfer(Base):
    """An offer of a volume to another project, which needs the key to accept it."""

    __tablename__ = "transfers"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), unique=True)
    project_id: Mapped[str] = mapped_column(Name)
    """The project that gives the volume away."""
    name: Mapped[str | None] = mapped_column(Name)
    no_snapshots: Mapped[bool] = mapped_column(default=False)
    salt: Mapped[str] = mapped_column(String(64))
    key_hash: Mapped[str] = mapped_column(String(64))
    """The key itself is shown once and stored nowhere."""
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)

    __table_args__ = (
        Index("ix_transfers_project_page", "project_id", "created_at", "id"),
        Index("ix_transfers_page", "created_at", "id"),
    )


class Attachment(Base):
    """One use of a volume, and the export made for it."""

    __tablename__ = "attachments"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Name)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"))
    status: Mapped[str] = mapped_column(String(32))
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it is in error; a sentence."""
    legacy: Mapped[bool] = mapped_column(default=False)
    """Made by os-initialize_connection: an export that no list of the API shows."""
    by_service: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Last connected by a server's own service, so users may not take or delete it."""
    instance_uuid: Mapped[str | None] = mapped_column(Id)
    host_name: Mapped[str | None] = mapped_column(Name)
    mountpoint: Mapped[str | None] = mapped_column(Name)
    attach_mode: Mapped[str | None] = mapped_column(String(4))
    connector: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """The initiator's description of itself."""
    target: Mapped[str | None] = mapped_column(Name)
    """The target that exports the volume; set before the export is made."""
    connection: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """How the initiator reaches the volume, without the secret, which is in no table (``keys/keyring.py``)."""
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None]
    attached_at: Mapped[datetime.datetime | None]

    __table_args__ = (
        Index("ix_attachments_project_page", "project_id", "created_at", "id"),
        Index("ix_attachments_page", "created_at", "id"),
        Index("ix_attachments_volume", "volume_id", "status"),
        Index("ix_attachments_instance", "instance_uuid"),
        Index("ix_attachments_status", "status", "id"),
    )


class Snapshot(Base):
    __tablename__ = "snapshots"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Name)
    user_id: Mapped[str | None] = mapped_column(Name)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id"))
    name: Mapped[str | None] = mapped_column(Name)
    description: Mapped[str | None] = mapped_column(Name)
    volume_size: Mapped[int]
    """GiB of the volume when the snapshot was made."""
    number: Mapped[int] = mapped_column(default=0, server_default=text("0"))
    """Grows with each snapshot of a volume, independently of the clock: the largest is the newest."""
    status: Mapped[str] = mapped_column(String(32))
    progress: Mapped[str | None] = mapped_column(Name)
    host: Mapped[str | None] = mapped_column(Name)
    """The pool on which its capacity is reserved; set in the transaction that reserves it."""
    volume_type_id: Mapped[str | None] = mapped_column(Id)
    """The volume's type when the snapshot was made; likewise the next two columns."""
    bootable: Mapped[bool] = mapped_column(default=False, server_default=false())
    image_metadata: Mapped[dict[str, str] | None] = mapped_column(JSON(none_as_null=True), deferred=True)
    """Up to a megabyte; read only to create a volume from the snapshot."""
    group_snapshot_id: Mapped[str | None] = mapped_column(Id)
    encryption_key_id: Mapped[str | None] = mapped_column(Id)
    consumes_quota: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None]

    __table_args__ = (
        Index("ix_snapshots_project_page", "project_id", "created_at", "id"),
        Index("ix_snapshots_page", "created_at", "id"),
        Index("ix_snapshots_volume", "volume_id", "number"),
        Index("ix_snapshots_status", "project_id", "status", "created_at", "id"),
        Index("ix_snapshots_settled", "status", "id"),
        Index("ix_snapshots_name", "project_id", "name"),
        Index("ix_snapshots_host", "host", "volume_size"),
    )


class SnapshotMetadata(Base):
    __tablename__ = "snapshot_metadata"

    snapshot_id: Mapped[str] = mapped_column(ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(Name)

    __table_args__ = (Index("ix_snapshot_metadata_pair", "key", "value"),)


class OperationRow(Base):
    """An operation: the intent that survives a crash. ``state`` is open until it is done, failed or cancelled."""

    __tablename__ = "operations"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    kind: Mapped[str] = mapped_column(String(64))
    body: Mapped[dict[str, Any]]
    resource_type: Mapped[str] = mapped_column(String(32))
    resource_id: Mapped[str] = mapped_column(Id)
    project_id: Mapped[str] = mapped_column(Name)
    request_id: Mapped[str] = mapped_column(Name)
    state: Mapped[str] = mapped_column(String(16), default="open")
    attempt: Mapped[int] = mapped_column(default=1)
    progress: Mapped[int | None]
    """Percent; set only for long operations."""
    cancel_asked: Mapped[bool] = mapped_column(default=False)
    reason: Mapped[str | None] = mapped_column(Text)
    """Why it did not succeed, for the operator."""
    public_reason: Mapped[str | None] = mapped_column(Text)
    """The same for the user: without pools, nodes, paths and tools."""
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    started_at: Mapped[datetime.datetime | None]
    """When it was first seen to run for long; null for short operations."""
    finished_at: Mapped[datetime.datetime | None]

    __table_args__ = (
        Index("ix_operations_state", "state", "id"),
        Index("ix_operations_resource", "resource_id", "state"),
        Index("ix_operations_finished", "finished_at"),
    )


class Message(Base):
    """A message to users about an operation that failed after it was accepted."""

    __tablename__ = "messages"

    id: Mapped[str] = mapped_column(Id, primary_key=True, default=new_id)
    project_id: Mapped[str] = mapped_column(Name)
    request_id: Mapped[str | None] = mapped_column(Name)
    resource_type: Mapped[str | None] = mapped_column(Name)
    resource_uuid: Mapped[str | None] = mapped_column(Id)
    event_id: Mapped[str] = mapped_column(Name)
    action_id: Mapped[str] = mapped_column(String(10))
    detail_id: Mapped[str] = mapped_column(String(10))
    message_level: Mapped[str] = mapped_column(String(16), default="ERROR")
    user_message: Mapped[str] = mapped_column(Text)
    """Without pools, nodes, paths and tools."""
    operator_message: Mapped[str | None] = mapped_column(Text)
    """The same for administrators, with these details; null if there is nothing to add."""
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime.datetime | None]

    __table_args__ = (
        Index("ix_messages_page", "project_id", "created_at", "id"),
        Index("ix_messages_resource", "resource_uuid"),
        Index("ix_messages_expires", "expires_at"),
    )


class QuotaUsage(Base):
    """A project's usage of one resource; changed in the transaction that changes the counted rows."""

    __tablename__ = "quota_usages"

    project_id: Mapped[str] = mapped_column(Name, primary_key=True)
    resource: Mapped[str] = mapped_column(Name, primary_key=True)
    in_use: Mapped[int] = mapped_column(BigInteger, default=0)


class QuotaLimit(Base):
    """A limit that an administrator has set, for one project or for a quota class."""

    __tablename__ = "quota_limits"

    scope: Mapped[str] = mapped_column(String(8), primary_key=True)
    """project or class."""
    scope_id: Mapped[str] = mapped_column(Name, primary_key=True)
    resource: Mapped[str] = mapped_column(Name, primary_key=True)
    most: Mapped[int] = mapped_column(BigInteger)
    """-1: no limit."""

    __table_args__ = (Index("ix_quota_limits_resource", "resource"),)


class PoolUsage(Base):
    """The capacity that our rows reserve on one pool. Reserved in the transaction that writes ``host``."""

    __tablename__ = "pool_usages"

    pool: Mapped[str] = mapped_column(Name, primary_key=True)
    volumes: Mapped[int] = mapped_column(default=0)
    volume_gib: Mapped[int] = mapped_column(BigInteger, default=0)
    snapshot_gib: Mapped[int] = mapped_column(BigInteger, default=0)


class PoolIdentity(Base):
    """The identity of a pool's storage, independent of its name; compared at every health check."""

    __tablename__ = "pool_identities"

    pool: Mapped[str] = mapped_column(Name, primary_key=True)
    identity: Mapped[str] = mapped_column(Name)


class ServiceRow(Base):
    """An administrator's settings of one service: enabled, disabled or frozen, and why."""

    __tablename__ = "services"

    binary: Mapped[str] = mapped_column(Name, primary_key=True)
    host: Mapped[str] = mapped_column(Name, primary_key=True)
    uuid: Mapped[str] = mapped_column(Id, default=new_id)
    disabled: Mapped[bool] = mapped_column(default=False)
    disabled_reason: Mapped[str | None] = mapped_column(Name)
    frozen: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime | None]


# --- identity: users, projects and roles, with `auth = builtin` --------------------------------------------


class Domain(Base):
    __tablename__ = "domains"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Name, unique=True)
    description: Mapped[str] = mapped_column(Text, default="")
    enabled: Mapped[bool] = mapped_column(default=True)


class Project(Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    domain_id: Mapped[str] = mapped_column(ForeignKey("domains.id", ondelete="CASCADE"))
    description: Mapped[str] = mapped_column(Text, default="")
    enabled: Mapped[bool] = mapped_column(default=True)

    __table_args__ = (Index("ix_projects_name", "domain_id", "name", unique=True),)


class User(Base):
    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    domain_id: Mapped[str] = mapped_column(ForeignKey("domains.id", ondelete="CASCADE"))
    description: Mapped[str | None] = mapped_column(Text)
    email: Mapped[str | None] = mapped_column(Name)
    enabled: Mapped[bool] = mapped_column(default=True)
    default_project_id: Mapped[str | None] = mapped_column(String(64))
    password_hash: Mapped[str | None] = mapped_column(Name)
    """Argon2; a user without one cannot log in with a password."""

    __table_args__ = (Index("ix_users_name", "domain_id", "name", unique=True),)


class Role(Base):
    __tablename__ = "roles"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Name, unique=True)
    description: Mapped[str | None] = mapped_column(Text)


class Grant(Base):
    """A role that a user has on a project, on a domain, or on the system."""

    __tablename__ = "grants"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    scope: Mapped[str] = mapped_column(String(8), primary_key=True)
    """project, domain or system."""
    scope_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    """``all`` for the system."""
    role_id: Mapped[str] = mapped_column(ForeignKey("roles.id", ondelete="CASCADE"), primary_key=True)

    __table_args__ = (Index("ix_grants_scope", "scope", "scope_id"), Index("ix_grants_role", "role_id"))


class ApplicationCredential(Base):
    """A secret by which a program acts for a user on one project, with some of the user's roles there."""

    __tablename__ = "application_credentials"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    description: Mapped[str | None] = mapped_column(Text)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    role_ids: Mapped[list[Any]] = mapped_column(JSON)
    secret_hash: Mapped[str] = mapped_column(Name)
    """Argon2."""
    unrestricted: Mapped[bool] = mapped_column(default=False)
    """Whether it may create and delete application credentials."""
    expires_at: Mapped[datetime.datetime | None]

    __table_args__ = (
        Index("ix_application_credentials_name", "user_id", "name", unique=True),
        Index("ix_application_credentials_project", "project_id"),
    )


class Token(Base):
    """An issued token. Its text is in no table: ``id`` is its SHA-256."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    scope: Mapped[str] = mapped_column(String(8))
    """project, domain, system or none."""
    scope_id: Mapped[str] = mapped_column(String(64))
    methods: Mapped[list[Any]] = mapped_column(JSON)
    audit_id: Mapped[str] = mapped_column(String(32))
    credential_id: Mapped[str | None] = mapped_column(ForeignKey("application_credentials.id", ondelete="CASCADE"))
    issued_at: Mapped[datetime.datetime]
    expires_at: Mapped[datetime.datetime]

    __table_args__ = (
        Index("ix_tokens_user", "user_id"),
        Index("ix_tokens_scope", "scope", "scope_id"),
        Index("ix_tokens_credential", "credential_id"),
        Index("ix_tokens_expires", "expires_at"),
    )
