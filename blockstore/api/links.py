"""Links in replies: they name the host that the request used, and the project only if its path had it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import Request

_AUTHORITY = re.compile(r"([0-9A-Za-z._\-]+|\[[0-9a-fA-F:.]+\])(:[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Links:
    """Makes the links of one request."""

    base: str
    """Scheme and authority, without a slash at the end."""
    project: str
    """/PROJECT if the request's path had it, else empty."""

    @classmethod
    def of(cls, request: Request, public_endpoint: str, project_id: str | None) -> Links:
        """Return the maker for a request. A proxy's X-Forwarded-Host is honoured, as the reference does."""
        forwarded = request.headers.get("X-Forwarded-Host", "").split(",")[0].strip()
        host = forwarded if _AUTHORITY.fullmatch(forwarded) else request.host
        base = public_endpoint.rstrip("/") or f"{request.scheme}://{host}"
        return cls(base, f"/{project_id}" if project_id else "")

    def of_resource(self, collection: str, row_id: str) -> list[dict[str, str]]:
        """Return the links array of one resource."""
        path = f"{self.project}/{collection}/{row_id}"
        return [
            {"rel": "self", "href": f"{self.base}/v3{path}"},
            {"rel": "bookmark", "href": f"{self.base}{path}"},
        ]

    def next_page(self, collection: str, query: Mapping[str, str], marker: str) -> list[dict[str, str]]:
        """Return the links array that leads to the next page of a list."""
        params = {**{k: v for k, v in query.items() if k not in ("marker", "offset")}, "marker": marker}
        return [{"rel": "next", "href": f"{self.base}/v3{self.project}/{collection}?{urlencode(params)}"}]
