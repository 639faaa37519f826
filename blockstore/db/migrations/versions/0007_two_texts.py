"""Two texts of every failure: one for the user, and one for the operator, which names pools, paths and tools."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("messages", sa.Column("operator_message", sa.Text(), nullable=True))
    op.add_column("orders", sa.Column("public_reason", sa.Text(), nullable=True))
    messages = sa.table(
        "messages", sa.column("user_message", sa.Text()), sa.column("operator_message", sa.Text())
    )
    # What is there names pools and paths; from now on only administrators see it.
    op.execute(
        messages.update().values(
            operator_message=messages.c.user_message,
            user_message="The operation failed. Ask your administrator, and name the request id of this message.",
        )
    )
