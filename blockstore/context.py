"""The caller and the microversion of one request, which every component may need.

Created by ``api/http/authentication.py``. Never holds a secret.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from blockstore.microversions import MINIMUM, Version


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestContext:
    """The caller of a request."""

    request_id: str
    user_id: str
    project_id: str
    roles: frozenset[str]
    is_admin: bool
    is_service: bool = False
    """Another service of the cloud acts for the user: Nova with its service token."""
    microversion: Version = MINIMUM

    def may_see(self, project_id: str) -> bool:
        """Return True if the caller may see the resources of a project."""
        return self.is_admin or self.project_id == project_id


def new_request_id() -> str:
    """Return a new request id in the API's form."""
    return f"req-{uuid.uuid4()}"
