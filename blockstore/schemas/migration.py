"""Bodies of what moves volumes between pools."""

from __future__ import annotations

from blockstore.microversions import MIGRATE_CLUSTER
from blockstore.schemas.base import BoolLike, Part, Schema, Text, Uuid, field


class Destination(Schema):
    host = field(Text, allow_none=True)
    cluster = field(Text, since=MIGRATE_CLUSTER, allow_none=True)
    force_host_copy = field(BoolLike)
    lock_volume = field(BoolLike)


class Migrate(Schema):
    migrate = field(Part, required=True, schema=Destination, data_key="os-migrate_volume")


class Completion(Schema):
    new_volume = field(Uuid, required=True)
    error = field(BoolLike, allow_none=True)


class MigrateCompletion(Schema):
    completion = field(Part, required=True, schema=Completion, data_key="os-migrate_volume_completion")


class Drained(Schema):
    host = field(Text, required=True, min_length=1)
    dry_run = field(BoolLike)


class Drain(Schema):
    drain = field(Part, required=True, schema=Drained)
