"""The parts of the Image API that clients of volumes need: a service without images.

The command ``openstack volume create`` of 5.8 to 7.4 fails without an image service in the catalogue, even if no image
is given. A lookup of an image returns 404, and the client reports it.
"""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, current_app, g, request

from blockstore.address import base_url
from blockstore.api.http.call import CORE, Core
from blockstore.errors import NotFound, shortened

ROOT = "/image"
VERSION = "v2.9"

blueprint = Blueprint("images", __name__)


@blueprint.get(ROOT, provide_automatic_options=False)
@blueprint.get(f"{ROOT}/", provide_automatic_options=False)
@blueprint.get(f"{ROOT}/versions", provide_automatic_options=False)
def discover() -> Response:
    """List the versions; no token is needed."""
    link = {"rel": "self", "href": f"{base_url(request.environ)}{ROOT}/v2/"}
    return _reply({"versions": [{"id": VERSION, "status": "CURRENT", "links": [link]}]}, 300)


@blueprint.get(f"{ROOT}/v2/images", provide_automatic_options=False)
def list_images() -> Response:
    """Return an empty list."""
    _authenticate()
    return _reply({"images": [], "first": "/v2/images", "schema": "/v2/schemas/images"})


@blueprint.get(f"{ROOT}/v2/images/<path:image_id>", provide_automatic_options=False)
def show_image(image_id: str) -> Response:
    """Return 404 for every image."""
    _authenticate()
    raise NotFound(f"There is no image {shortened(image_id)}: this service keeps no images.")


def _authenticate() -> None:
    core: Core = current_app.extensions[CORE]
    with core.db.read() as session:
        core.authenticate(request, None, g.request_id, session)


def _reply(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status=status, mimetype="application/json")
