"""The metadata of a volume has an Etag, as in Cinder; that of a snapshot has none."""

from __future__ import annotations

import re

from tests.api.conftest import SharedService


def test_etag_of_a_volumes_metadata(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    path = f"/volumes/{sqlite_service.volume(admin)}/metadata"
    assert admin("PUT", path, {"metadata": {"a": "b"}}).json == {"metadata": {"a": "b"}}
    answer = admin("GET", path, version="3.15")
    assert answer.body == b'{"metadata": {"a": "b"}}'
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    etag = answer.headers["Etag"]
    assert re.fullmatch("[0-9a-f]{32}", etag)
    assert "Etag" not in admin("GET", path, version="3.14").headers
    for method, url, body in (("PUT", path, {"metadata": {"a": "c"}}), ("PUT", f"{path}/a", {"meta": {"a": "c"}})):
        refused = admin(method, url, body, **{"If-Match": '"0"'})
        assert (refused.status, refused.body) == (412, b"")
        assert admin(method, url, body, version="3.14", **{"If-Match": '"0"'}).status == 200
        present = admin("GET", path).headers["Etag"]
        assert present != etag
        assert admin(method, url, body, **{"If-Match": f'"{present}"'}).status == 200


def test_metadata_of_a_snapshot_has_no_etag(sqlite_service: SharedService) -> None:
    admin = sqlite_service.admin()
    path = f"/snapshots/{sqlite_service.snapshot(admin, sqlite_service.volume(admin))}/metadata"
    for method, url, body in (("PUT", path, {"metadata": {"a": "b"}}), ("PUT", f"{path}/a", {"meta": {"a": "b"}})):
        assert admin(method, url, body, **{"If-Match": '"0"'}).status == 200
    answer = admin("GET", path)
    assert answer.json == {"metadata": {"a": "b"}}
    assert answer.headers["Content-Type"].startswith("application/json")
    assert "Etag" not in answer.headers
