"""The life of a volume and its snapshots, over HTTP."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from blockstore.app.service import Service
from tests.conftest import Client, backend_section, target_section


def test_a_volume_lives_and_dies(api: Client) -> None:
    volume = api.volume(name="first", size=2, metadata={"a": "b"})
    assert (volume["status"], volume["size"], volume["metadata"]) == ("available", 2, {"a": "b"})
    assert volume["os-vol-host-attr:host"] == "blockstore@memory#memory"
    snapshot = api.snapshot(volume["id"], name="s1")
    assert snapshot["status"] == "available"
    copy = api.volume(snapshot_id=snapshot["id"], size=3)
    clone = api.volume(source_volid=volume["id"], size=2)
    assert copy["status"] == clone["status"] == "available"
    assert api.action(f"volumes/{volume['id']}", "revert", {"snapshot_id": snapshot["id"]}).status == 202
    assert api.action(f"volumes/{volume['id']}", "os-extend", {"new_size": 5}).status == 202
    assert api.get(f"/volumes/{volume['id']}")["volume"]["size"] == 5
    assert api("DELETE", f"/volumes/{volume['id']}").status == 400
    assert api("DELETE", f"/volumes/{volume['id']}?cascade=true").status == 202
    api.wait_idle()
    assert api("GET", f"/volumes/{volume['id']}").status == 404
    assert api("GET", f"/snapshots/{snapshot['id']}").status == 404
    for left in (copy, clone):
        assert api("DELETE", f"/volumes/{left['id']}").status == 202
    api.wait_idle()
    assert api.get("/volumes") == {"volumes": []}
    assert dict(api.service.backends["blockstore@memory#memory"].list_volumes()) == {}
    assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0


def test_a_source_may_be_deleted_right_after_its_copy_was_accepted(start_service: Callable[..., Service]) -> None:
    """The delete waits in line behind the copy, in whichever component the copy is."""
    api = Client(start_service(backends=(backend_section("memory", "memory", latency_s="0.1"),)))
    volume = api.volume()
    snapshot = api.snapshot(volume["id"])
    copies = [api.volume(settle=False, snapshot_id=snapshot["id"])["id"] for _ in range(3)]
    assert api("DELETE", f"/snapshots/{snapshot['id']}").status == 202
    api.wait_idle()
    copies += [api.volume(settle=False, source_volid=volume["id"])["id"] for _ in range(3)]
    assert api("DELETE", f"/volumes/{volume['id']}").status == 202
    api.wait_idle()
    assert {api.get(f"/volumes/{copy}")["volume"]["status"] for copy in copies} == {"available"}
    assert api("GET", f"/snapshots/{snapshot['id']}").status == api("GET", f"/volumes/{volume['id']}").status == 404


@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_is_refused_for_an_open_file_leaves_the_volume_as_it_was(
    start_service: Callable[..., Service], kind: str
) -> None:
    """Somebody has the volume's file open: it is available before and after, and a message says why."""
    sections = (backend_section("files", "directory", format=kind),)
    api = Client(start_service(backends=sections, targets=(target_section("nbd", listen="127.0.0.1"),)))
    (backend,) = api.service.backends.values()
    volume = api.volume()["id"]
    snapshot = api.snapshot(volume)["id"]
    asked = [("revert", {"snapshot_id": snapshot})] + [("os-extend", {"new_size": 2})] * (kind == "qcow2")
    with ExitStack() as kept:
        located = backend.locate(f"volume-{volume}")
        assert located is not None
        kept.enter_context(located.path.open("rb"))
        for count, (name, arguments) in enumerate(asked, 1):
            assert api.action(f"volumes/{volume}", name, arguments).status == 202
            found = api.get(f"/volumes/{volume}")["volume"]
            assert (found["status"], found["size"]) == ("available", 1)
            messages = api.get("/messages")["messages"]
            assert len(messages) == count
            assert "is open: something on this machine uses" in messages[0]["user_message"]
        assert api("DELETE", f"/volumes/{volume}?cascade=true").status == 202
        api.wait_idle()
        assert api.get(f"/volumes/{volume}")["volume"]["status"] == "available"
    for name, arguments in asked[1:]:
        assert api.action(f"volumes/{volume}", name, arguments).status == 202
        assert api.get(f"/volumes/{volume}")["volume"]["size"] == 2
    assert api("DELETE", f"/volumes/{volume}").status == 202
    api.wait_idle()
    assert api.get("/limits")["limits"]["absolute"]["totalGigabytesUsed"] == 0
