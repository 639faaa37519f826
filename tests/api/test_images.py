"""The Image API without images: enough for clients that ask for it before they create a volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from blockstore.app.service import Service
from tests.conftest import Client


@pytest.fixture
def http(start_service: Callable[..., Service]) -> Any:
    """A client of a service with people, without a token."""
    return start_service(auth="builtin").app.test_client()


@pytest.fixture
def caller(start_service: Callable[..., Service]) -> Any:
    """A client of a service that asks nobody."""
    return Client(start_service()).http


@pytest.mark.parametrize("path", ["/image", "/image/", "/image/versions"])
def test_versions_are_for_anybody(http: Any, path: str) -> None:
    reply = http.get(path)
    assert reply.status_code == 300
    (version,) = reply.json["versions"]
    assert (version["status"], version["links"][0]["href"]) == ("CURRENT", "http://localhost/image/v2/")


@pytest.mark.parametrize("path", ["/image/v2/images", "/image/v2/images/x"])
def test_images_are_for_people(http: Any, path: str) -> None:
    reply = http.get(path)
    assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, 'Keystone uri="http://localhost/identity"')


def test_there_is_none(caller: Any) -> None:
    assert caller.get("/image/v2/images?name=x").json["images"] == []
    reply = caller.get("/image/v2/images/x")
    assert (reply.status_code, reply.json["itemNotFound"]["message"]) == (
        404, "There is no image x: this service keeps no images.",
    )  # fmt: skip
    assert caller.post("/image/v2/images", json={}).status_code == 404
