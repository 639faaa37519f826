"""Operations have the standard words: the table of orders and its indexes."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

INDEXES = {"state": ["state", "id"], "resource": ["resource_id", "state"], "finished": ["finished_at"]}


def upgrade() -> None:
    for name in INDEXES:
        op.drop_index(f"ix_orders_{name}", table_name="orders")
    op.rename_table("orders", "operations")
    for name, columns in INDEXES.items():
        op.create_index(f"ix_operations_{name}", "operations", columns, unique=False)
    if op.get_bind().dialect.name == "postgresql":
        op.execute("ALTER INDEX orders_pkey RENAME TO operations_pkey")
