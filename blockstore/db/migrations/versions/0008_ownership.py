"""The number of a snapshot among those of its volume, and whether a server's service made a connection."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("attachments", sa.Column("by_service", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("snapshots", sa.Column("number", sa.Integer(), nullable=False, server_default=sa.text("0")))
    # Of those that are there the clock is the only witness.
    op.execute(
        "UPDATE snapshots SET number = (SELECT count(*) FROM snapshots AS older WHERE older.volume_id ="
        " snapshots.volume_id AND (older.created_at < snapshots.created_at"
        " OR (older.created_at = snapshots.created_at AND older.id <= snapshots.id)))"
    )
    op.drop_index("ix_snapshots_volume", table_name="snapshots")
    op.create_index("ix_snapshots_volume", "snapshots", ["volume_id", "number"], unique=False)
