"""Limits per project and class, usage per volume type, volume transfers."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "quota_limits",
        sa.Column("scope", sa.String(length=8), nullable=False),
        sa.Column("scope_id", sa.String(length=255), nullable=False),
        sa.Column("resource", sa.String(length=255), nullable=False),
        sa.Column("most", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "scope_id", "resource"),
    )
    op.create_index("ix_quota_limits_resource", "quota_limits", ["resource"], unique=False)
    op.create_table(
        "transfers",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=True),
        sa.Column("no_snapshots", sa.Boolean(), nullable=False),
        sa.Column("salt", sa.String(length=64), nullable=False),
        sa.Column("key_hash", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("volume_id"),
    )
    op.create_index("ix_transfers_project_page", "transfers", ["project_id", "created_at", "id"], unique=False)
    op.create_index("ix_transfers_page", "transfers", ["created_at", "id"], unique=False)
    # What is there already counts against its type, too.
    usages = "INSERT INTO quota_usages (project_id, resource, in_use)"
    of_volumes = "FROM volumes WHERE consumes_quota GROUP BY project_id, volume_type_id"
    of_snapshots = (
        "FROM snapshots AS s JOIN volumes AS v ON v.id = s.volume_id WHERE s.consumes_quota"
        " GROUP BY s.project_id, v.volume_type_id"
    )
    op.execute(f"{usages} SELECT project_id, 'volumes_' || volume_type_id, count(*) {of_volumes}")
    op.execute(f"{usages} SELECT s.project_id, 'snapshots_' || v.volume_type_id, count(*) {of_snapshots}")
    op.execute(
        f"{usages} SELECT project_id, 'gigabytes_' || volume_type_id, sum(gib) FROM ("
        "SELECT project_id, volume_type_id, size AS gib FROM volumes WHERE consumes_quota"
        " UNION ALL SELECT s.project_id, v.volume_type_id, s.volume_size FROM snapshots AS s"
        " JOIN volumes AS v ON v.id = s.volume_id WHERE s.consumes_quota"
        ") AS sizes GROUP BY project_id, volume_type_id"
    )
    _count_running_extensions()


def _count_running_extensions() -> None:
    """Growth is charged when it is asked for."""
    connection = op.get_bind()
    running = connection.execute(
        sa.text("SELECT body, resource_id FROM orders WHERE state = 'open' AND kind IN ('PlaceExtension', 'ExtendVolume')")
    ).all()
    for body, volume_id in running:
        growth = (json.loads(body) if isinstance(body, str) else body)["growth_gib"]
        connection.execute(
            sa.text(
                "UPDATE quota_usages SET in_use = in_use + :growth WHERE (project_id, resource) IN"
                " (SELECT project_id, 'gigabytes_' || volume_type_id FROM volumes WHERE id = :volume)"
            ),
            {"growth": growth, "volume": volume_id},
        )
