"""Links in replies: they start with the address of the request, and contain the project only if its path did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import Request

from blockstore.address import base_url


@dataclass(frozen=True, slots=True)
class Links:
    """Makes the links of one request."""

    base: str
    """The start of all URLs, without a slash at the end."""
    project: str
    """/PROJECT if the request's path had it, else empty."""

    @classmethod
    def of(cls, request: Request, project_id: str | None) -> Links:
        """Return the link builder for a request."""
        return cls(base_url(request.environ), f"/{project_id}" if project_id else "")

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
