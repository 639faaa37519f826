"""What a snapshot keeps of the image that its volume was made from: it may stay behind when the volume is given away."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("bootable", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("snapshots", sa.Column("image_metadata", sa.JSON(), nullable=True))
    # Of those that stayed behind, nothing is known of the time when they were taken.
    op.execute(
        "UPDATE snapshots SET bootable = (SELECT bootable FROM volumes WHERE volumes.id = snapshots.volume_id AND"
        " volumes.project_id = snapshots.project_id) WHERE EXISTS (SELECT 1 FROM volumes WHERE volumes.id ="
        " snapshots.volume_id AND volumes.project_id = snapshots.project_id)"
    )
    snapshots = sa.table("snapshots", sa.column("id", sa.String), sa.column("image_metadata", sa.JSON))
    connection = op.get_bind()
    pairs = connection.execute(
        sa.text(
            "SELECT snapshots.id, metadata.key, metadata.value FROM snapshots"
            " JOIN volumes ON volumes.id = snapshots.volume_id AND volumes.project_id = snapshots.project_id"
            " JOIN volume_image_metadata AS metadata ON metadata.volume_id = volumes.id ORDER BY snapshots.id"
        )
    )
    images: dict[str, dict[str, str]] = {}
    for snapshot_id, key, value in pairs.all():
        images.setdefault(snapshot_id, {})[key] = value
    for snapshot_id, image in images.items():
        connection.execute(snapshots.update().where(snapshots.c.id == snapshot_id).values(image_metadata=image))
