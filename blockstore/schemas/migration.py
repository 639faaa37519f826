"""Bodies of the requests that migrate volumes between pools."""

from __future__ import annotations

from blockstore.microversions import MIGRATE_CLUSTER
from blockstore.schemas.base import BoolLike, Part, Schema, TextField, Uuid, field


class DestinationBody(Schema):
    host = field(TextField, allow_none=True)
    cluster = field(TextField, since=MIGRATE_CLUSTER, allow_none=True)
    force_host_copy = field(BoolLike)
    lock_volume = field(BoolLike)


class MigrateBody(Schema):
    migrate = field(Part, required=True, schema=DestinationBody, data_key="os-migrate_volume")


class MigrationCompletionBody(Schema):
    new_volume = field(Uuid, required=True)
    error = field(BoolLike, allow_none=True)


class MigrateCompletionBody(Schema):
    completion = field(Part, required=True, schema=MigrationCompletionBody, data_key="os-migrate_volume_completion")


class DrainedBody(Schema):
    host = field(TextField, required=True, min_length=1)
    dry_run = field(BoolLike)


class DrainBody(Schema):
    drain = field(Part, required=True, schema=DrainedBody)
