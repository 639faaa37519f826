"""The quota of attachments of a volume and of a project: each attachment may need an export, a process or a target.

Checked in the transaction that inserts the attachment, before any work is done for it. Cinder has no such quota.
"""

from __future__ import annotations

from sqlalchemy import distinct, func, or_, select

from blockstore.api.http.call import Call
from blockstore.db.models import Attachment, Volume
from blockstore.db.session import hold_name
from blockstore.errors import OverQuota
from blockstore.operations.states import A


def check_attachments(call: Call, volume: Volume, *, exported: bool = True) -> None:
    """Raise OverQuota if a volume or its project has reached its limit of attachments.

    The caller holds the volume's lock. Attachments of os-initialize_connection count for every caller. Reserved
    attachments count, because they may be connected later. An attachment that os-attach only records is not
    ``exported`` and counts for the volume alone.
    """
    config = call.core.config.service
    of_volume = Attachment.volume_id == volume.id
    present = call.session.execute(select(func.count()).select_from(Attachment).where(of_volume)).scalar_one()
    if present == 0:
        return  # the first of each volume is always allowed; the quota of volumes bounds their number
    if 0 <= config.attachments_per_volume <= present:
        raise OverQuota(
            f"AttachmentLimitExceeded: Maximum number of attachments allowed ({config.attachments_per_volume})"
            f" exceeded for volume {volume.id}: it has {present}. Delete some of them first."
        )
    limit = config.attachments_per_project
    if limit < 0 or not exported:
        return
    hold_name(call.session, f"attachments of {volume.project_id}")  # parallel requests for two volumes count together
    may_be_exported = or_(Attachment.connector.is_not(None), Attachment.status == A.RESERVED)
    further = call.session.execute(
        select(func.count() - func.count(distinct(Attachment.volume_id)))
        .select_from(Attachment)
        .where(Attachment.project_id == volume.project_id, may_be_exported)
    ).scalar_one()
    if further >= limit:
        raise OverQuota(
            f"AttachmentLimitExceeded: Maximum number of attachments allowed ({limit} in a project, not counting the"
            f" first of each volume) exceeded for project {volume.project_id}: it has {further}. Delete some of them"
            " first."
        )
