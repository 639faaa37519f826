"""What a volume that was moved is called on its pool."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("volumes", sa.Column("name_id", sa.String(length=36), nullable=True))
