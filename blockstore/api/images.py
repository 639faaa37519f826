"""The Image API, as far as clients of volumes need it: it is there, and has no images.

The command ``openstack volume create`` of 5.8 to 7.4 fails without an image service in the catalogue, whether or not
it is given an image. An image that is looked up here is not found, and the client says so.
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
    """List the versions to anybody."""
    link = {"rel": "self", "href": f"{base_url(request.environ)}{ROOT}/v2/"}
    return _reply({"versions": [{"id": VERSION, "status": "CURRENT", "links": [link]}]}, 300)


@blueprint.get(f"{ROOT}/v2/images", provide_automatic_options=False)
def list_images() -> Response:
    """List no image."""
    _authenticate()
    return _reply({"images": [], "first": "/v2/images", "schema": "/v2/schemas/images"})


@blueprint.get(f"{ROOT}/v2/images/<path:image_id>", provide_automatic_options=False)
def show_image(image_id: str) -> Response:
    """Find no image."""
    _authenticate()
    raise NotFound(f"There is no image {shortened(image_id)}: this service keeps no images.")


def _authenticate() -> None:
    core: Core = current_app.extensions[CORE]
    with core.db.read() as session:
        core.authenticate(request, None, g.request_id, session)


def _reply(body: dict[str, Any], status: int = 200) -> Response:
    return Response(orjson.dumps(body), status=status, mimetype="application/json")
