"""QoS specs, encryption and default types; image metadata of volumes."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "volume_type_encryptions",
        sa.Column("volume_type_id", sa.String(length=36), nullable=False),
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("provider", sa.String(length=255), nullable=False),
        sa.Column("control_location", sa.String(length=255), nullable=False),
        sa.Column("cipher", sa.String(length=255), nullable=True),
        sa.Column("key_size", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("updated_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["volume_type_id"], ["volume_types.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("volume_type_id"),
    )
    op.create_table(
        "default_types",
        sa.Column("project_id", sa.String(length=255), nullable=False),
        sa.Column("volume_type_id", sa.String(length=36), nullable=False),
        sa.ForeignKeyConstraint(["volume_type_id"], ["volume_types.id"]),
        sa.PrimaryKeyConstraint("project_id"),
    )
    op.create_index("ix_default_types_type", "default_types", ["volume_type_id"], unique=False)
    op.create_table(
        "qos_specs",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("consumer", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_index("ix_qos_specs_page", "qos_specs", ["created_at", "id"], unique=False)
    op.create_index("ix_qos_specs_consumer", "qos_specs", ["consumer", "created_at", "id"], unique=False)
    op.create_table(
        "qos_spec_pairs",
        sa.Column("qos_specs_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("value", sa.String(length=255), nullable=True),
        sa.ForeignKeyConstraint(["qos_specs_id"], ["qos_specs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("qos_specs_id", "key"),
    )
    op.create_index("ix_volume_types_qos", "volume_types", ["qos_specs_id"], unique=False)
    op.add_column("volumes", sa.Column("has_image_metadata", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.create_table(
        "volume_image_metadata",
        sa.Column("volume_id", sa.String(length=36), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["volume_id"], ["volumes.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("volume_id", "key"),
    )
    op.create_index("ix_volume_image_metadata_key", "volume_image_metadata", ["key"], unique=False)
