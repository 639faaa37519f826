"""Attachments: who uses a volume, and how it is exported."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "attachments",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("legacy", sa.Boolean(), nullable=False),
        sa.Column("instance_uuid", sa.String(length=36), nullable=True),
        sa.Column("host_name", sa.String(length=255), nullable=True),
        sa.Column("mountpoint", sa.String(length=255), nullable=True),
        sa.Column("attach_mode", sa.String(length=4), nullable=True),
        sa.Column("connector", sa.JSON(), nullable=True),
        sa.Column("target", sa.String(length=255), nullable=True),
        sa.Column("connection", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=True),
        sa.Column("attached_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_attachments_instance", "attachments", ["instance_uuid"], unique=False)
    op.create_index("ix_attachments_page", "attachments", ["created_at", "id"], unique=False)
    op.create_index("ix_attachments_project_page", "attachments", ["project_id", "created_at", "id"], unique=False)
    op.create_index("ix_attachments_status", "attachments", ["status", "id"], unique=False)
    op.create_index("ix_attachments_volume", "attachments", ["volume_id", "status"], unique=False)
