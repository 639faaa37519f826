"""How many pairs a map of one resource may have: over every call that writes one, one by one, at once, and in races."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from sqlalchemy import event, insert

from blockstore.api.metadata import MOST_CHARACTERS, MOST_PAIRS
from blockstore.api.volumes import volumes
from blockstore.db.models import SnapshotMetadata, VolumeImageMetadata, VolumeMetadata
from tests.api.conftest import SharedService, at_once
from tests.api.types.test_types import make_qos, make_type
from tests.conftest import Answer, Client

FULL = {f"k{number:03}": "v" for number in range(MOST_PAIRS)}
Write = Callable[[Client, str, Mapping[str, str]], Answer]


def a_volume(shared_service: SharedService, client: Client) -> str:
    return shared_service.volume(client)


def a_snapshot(shared_service: SharedService, client: Client) -> str:
    return shared_service.snapshot(client, shared_service.volume(client))


def a_type(shared_service: SharedService, client: Client) -> str:
    return make_type(shared_service.admin())


def a_qos(shared_service: SharedService, client: Client) -> str:
    return make_qos(shared_service.admin())


def put(path: str, name: str = "metadata", method: str = "POST") -> Write:
    return lambda client, owner, pairs: client(method, path.format(owner), {name: dict(pairs)})


def one_by_one(path: str, name: str) -> Write:
    def write(client: Client, owner: str, pairs: Mapping[str, str]) -> Answer:
        for key, value in pairs.items():
            answer = client("PUT", f"{path.format(owner)}/{key}", {name: {key: value}} if name else {key: value})
            if answer.status >= 400:
                break
        return answer

    return write


def set_image(client: Client, owner: str, pairs: Mapping[str, str]) -> Answer:
    return client("POST", f"/volumes/{owner}/action", {"os-set_image_metadata": {"metadata": dict(pairs)}})


MERGES: dict[str, tuple[Callable[[SharedService, Client], str], Write, Write]] = {
    "volume": (a_volume, put("/volumes/{}/metadata"), one_by_one("/volumes/{}/metadata", "meta")),
    "snapshot": (a_snapshot, put("/snapshots/{}/metadata"), one_by_one("/snapshots/{}/metadata", "meta")),
    "image": (a_volume, set_image, set_image),
    "type": (a_type, put("/types/{}/extra_specs", "extra_specs"), one_by_one("/types/{}/extra_specs", "")),
    "qos": (a_qos, put("/qos-specs/{}", "qos_specs", "PUT"), put("/qos-specs/{}", "qos_specs", "PUT")),
}


@pytest.mark.parametrize("kind", MERGES)
def test_the_sum_of_many_small_updates_is_bounded(sqlite_service: SharedService, kind: str) -> None:
    client = sqlite_service.admin()
    made, merge, one = MERGES[kind]
    owner = made(sqlite_service, client)
    keys = list(FULL)
    for start in range(0, MOST_PAIRS, 64):
        assert merge(client, owner, dict.fromkeys(keys[start : start + 64], "v")).status == 200
    for write in (merge, one):
        refused = write(client, owner, {"one-more": "v"})
        assert (refused.status, list(refused.json)) == (413, ["overLimit"])
        assert refused.message.startswith("Invalid metadata size: ")
        assert f"would have {MOST_PAIRS + 1} pairs, and has {MOST_PAIRS}; at most {MOST_PAIRS} are" in refused.message
        assert write(client, owner, {keys[0]: "changed"}).status == 200  # what is there already may change


BORN: dict[str, Callable[[SharedService, Client, Mapping[str, str]], Answer]] = {
    "volume": lambda shared_service, client, pairs: client(
        "POST", "/volumes", {"volume": {"size": 1, "metadata": pairs}}
    ),
    "snapshot": lambda shared_service, client, pairs: client(
        "POST", "/snapshots", {"snapshot": {"volume_id": shared_service.volume(client), "metadata": pairs}}
    ),
    "type": lambda shared_service, client, pairs: client(
        "POST", "/types", {"volume_type": {"name": f"many-{len(pairs)}", "extra_specs": pairs}}
    ),
    "qos": lambda shared_service, client, pairs: client(
        "POST", "/qos-specs", {"qos_specs": {"name": f"m{len(pairs)}", **pairs}}
    ),
    "volume, replaced": lambda shared_service, client, pairs: client(
        "PUT", f"/volumes/{shared_service.volume(client)}/metadata", {"metadata": pairs}
    ),
    "volume, updated": lambda shared_service, client, pairs: client(
        "PUT", f"/volumes/{shared_service.volume(client)}", {"volume": {"metadata": pairs}}
    ),
    "snapshot, replaced": lambda shared_service, client, pairs: client(
        "PUT", f"/snapshots/{a_snapshot(shared_service, client)}/metadata", {"metadata": pairs}
    ),
}


@pytest.mark.parametrize("kind", BORN)
def test_nothing_is_born_with_more(sqlite_service: SharedService, kind: str) -> None:
    assert BORN[kind](sqlite_service, sqlite_service.admin(), FULL).status in (200, 202)
    refused = BORN[kind](sqlite_service, sqlite_service.admin(), {**FULL, "one-more": "v"})
    assert (refused.status, "at most 256 are allowed" in refused.message) == (413, True)


@pytest.mark.parametrize("kind", ["volume", "snapshot", "image"])
def test_parallel_updates_count_together(shared_service: SharedService, kind: str) -> None:
    client = shared_service.admin()
    project = client.headers["X-Project-Id"]
    made, merge, _ = MERGES[kind]
    owner = made(shared_service, client)
    assert merge(client, owner, dict(list(FULL.items())[: MOST_PAIRS - 3])).status == 200
    answers = at_once(12, lambda n: merge(shared_service.admin(project), owner, {f"new-{n}": "v"}))
    assert sorted(answer.status for answer in answers) == [200] * 3 + [413] * 9


@pytest.mark.parametrize("kind", ["volume", "snapshot", "image"])
def test_a_map_that_was_too_large_before_may_change_and_shrink_but_not_grow(
    sqlite_service: SharedService, kind: str
) -> None:
    client = sqlite_service.admin()
    made, merge, _ = MERGES[kind]
    owner = made(sqlite_service, client)
    table: Any = {"volume": VolumeMetadata, "snapshot": SnapshotMetadata, "image": VolumeImageMetadata}[kind]
    column = "snapshot_id" if kind == "snapshot" else "volume_id"
    with sqlite_service.db.write() as session:
        session.execute(insert(table), [{column: owner, "key": f"k{n}", "value": "v"} for n in range(MOST_PAIRS + 50)])
    assert merge(client, owner, {"k3": "w"}).status == 200
    assert merge(client, owner, {"new": "v"}).status == 413


def test_long_texts_are_bounded_together(sqlite_service: SharedService) -> None:
    """Each may have 65535 bytes, but a list of volumes shows all of them."""
    client = sqlite_service.admin()
    volume = sqlite_service.volume(client)
    text = "x" * 65_000
    assert [set_image(client, volume, {f"t{n}": text}).status for n in range(2)] == [200, 200]
    refused = set_image(client, volume, {"t2": text})
    assert refused.status == 413
    assert f"characters; at most {MOST_CHARACTERS} are allowed" in refused.message
    assert set_image(client, volume, {"t1": "short"}).status == 200
    assert set_image(client, volume, {"t2": text}).status == 200


def test_the_longest_pairs_that_metadata_may_have_fit(sqlite_service: SharedService) -> None:
    client = sqlite_service.admin()
    merge = MERGES["volume"][1]
    volume = sqlite_service.volume(client)
    for start in range(0, MOST_PAIRS, 128):
        pairs = {f"{n:0255}": "v" * 255 for n in range(start, start + 128)}
        assert merge(client, volume, pairs).status == 200


def test_a_shown_volume_has_its_pairs_whatever_they_hold(shared_service: SharedService) -> None:
    client = shared_service.admin()
    pairs = {"quote": '"', "backslash": "\\u0041'", "text": "é€😀", "empty": "", "null": "null"}
    for metadata in (pairs, {}):
        volume = client("POST", "/volumes", {"volume": {"size": 1, "metadata": metadata}}).json["volume"]["id"]
        assert client.get(f"/volumes/{volume}")["volume"]["metadata"] == metadata


def test_a_summary_looks_at_a_bounded_number_of_pairs(
    shared_service: SharedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = shared_service.admin()
    for n in range(3):
        client(
            "POST", "/volumes", {"volume": {"size": 1, "metadata": {f"k{n}-{m}": "v" for m in range(4)} | {"a": "b"}}}
        )
    told = client.get("/volumes/summary")["volume-summary"]
    assert (told["total_count"], len(told["metadata"]), told["metadata"]["a"]) == (3, 13, ["b"])
    monkeypatch.setattr(volumes, "SUMMARY_PAIRS", 5)
    assert len(client.get("/volumes/summary")["volume-summary"]["metadata"]) <= 5


def test_nobody_reads_the_image_metadata_of_snapshots_who_does_not_show_it(sqlite_service: SharedService) -> None:
    """It may be a megabyte each, and a page has a thousand snapshots."""
    client = sqlite_service.member()
    volume = sqlite_service.volume(client)
    snapshot = sqlite_service.snapshot(client, volume, image_metadata={"k": "v"})
    read: list[str] = []

    @event.listens_for(sqlite_service.db.engine, "after_cursor_execute")
    def note(_c: object, _cursor: object, statement: str, *_rest: object) -> None:
        read.append(statement)

    try:
        for path in ("/snapshots/detail", "/snapshots", f"/snapshots/{snapshot}"):
            client.get(path)
        assert client("PUT", f"/snapshots/{snapshot}", {"snapshot": {"name": "n"}}).status == 200
        assert read
        assert not [one for one in read if "image_metadata" in one]
        made = client("POST", "/volumes", {"volume": {"snapshot_id": snapshot}}).json["volume"]["id"]
    finally:
        event.remove(sqlite_service.db.engine, "after_cursor_execute", note)
    assert client.get(f"/volumes/{made}")["volume"]["volume_image_metadata"] == {"k": "v"}
