"""What is asked before anything else: the versions document, and whether the service is well."""

from __future__ import annotations

from typing import Any

import orjson
from flask import Blueprint, Response, current_app, g, redirect, request
from werkzeug.wrappers import Response as BaseResponse

from blockstore.address import base_url
from blockstore.api.http import pipeline
from blockstore.db.health import Health
from blockstore.microversions import MAXIMUM, MINIMUM

blueprint = Blueprint("versions", __name__)
HEALTH = "blockstore health"
"""Where the application keeps its ``Health``."""


LOOKS = ("GET", "HEAD", "OPTIONS")
"""compat: Cinder answers the version documents to every method. HAProxy's health check sends ``OPTIONS /``."""


@blueprint.route("/", methods=LOOKS, provide_automatic_options=False)
def discover() -> Response:
    """List the versions to anybody."""
    g.in_controller = True
    g.version_text = str(MINIMUM)
    return _document(300)


@blueprint.route("/v3/", methods=LOOKS, provide_automatic_options=False)
def show() -> Response:
    """List the versions to anybody.

    Cinder wants a token here. A client that takes this address for that of the identity service has none yet, and
    asks again and again.
    """
    g.in_controller = True
    pipeline.asked_microversion()
    return _document(200)


@blueprint.route("/v3", methods=LOOKS, strict_slashes=True, provide_automatic_options=False)
def slash() -> BaseResponse:
    """Lead to the document."""
    return redirect(f"{base_url(request.environ)}/v3/", code=302)


@blueprint.route("/healthcheck", methods=LOOKS, provide_automatic_options=False)
def healthcheck() -> Response:
    """Say OK when the database takes a write; with 503, what is wrong."""
    health: Health = current_app.extensions[HEALTH]
    complaint = health.complaint()
    if complaint is not None:
        return Response(complaint + "\n", status=503, mimetype="text/plain", headers={"Retry-After": "5"})
    return Response("OK", mimetype="text/plain")


def _document(status: int) -> Response:
    version: dict[str, Any] = {
        "id": "v3.0",
        "status": "CURRENT",
        "version": str(MAXIMUM),
        "min_version": str(MINIMUM),
        "updated": "2023-08-31T00:00:00Z",
        "links": [
            {"rel": "describedby", "type": "text/html", "href": "https://docs.openstack.org/"},
            {"rel": "self", "href": f"{base_url(request.environ)}/v3/"},
        ],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.volume+json;version=3"}],
    }
    return Response(orjson.dumps({"versions": [version]}), status=status, mimetype="application/json")
