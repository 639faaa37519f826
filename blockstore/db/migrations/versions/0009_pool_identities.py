"""What the storage of each pool is, so that another one in its place is noticed."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "pool_identities",
        sa.Column("pool", sa.String(255), primary_key=True),
        sa.Column("identity", sa.String(255), nullable=False),
    )
