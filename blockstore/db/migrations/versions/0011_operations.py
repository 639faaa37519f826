"""Operations have the standard words: the table of orders, its indexes, and the kinds of operations that are open."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES = {"state": ["state", "id"], "resource": ["resource_id", "state"], "finished": ["finished_at"]}
KINDS = {"MoveVolume": "MigrateVolume", "MoveToType": "MigrateToType"}


def upgrade() -> None:
    for name in INDEXES:
        op.drop_index(f"ix_orders_{name}", table_name="orders")
    op.rename_table("orders", "operations")
    for name, columns in INDEXES.items():
        op.create_index(f"ix_operations_{name}", "operations", columns, unique=False)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX orders_pkey RENAME TO operations_pkey")
    operations = sa.table("operations", sa.column("kind", sa.String))
    for old, new in KINDS.items():
        # Closed ones as well: the command line shows their kind.
        op.execute(operations.update().where(operations.c.kind == old).values(kind=new))
