"""Shapes by themselves: microversions of fields, the words for true and false, and how a refusal names its place."""

from __future__ import annotations

import gc
import uuid
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from marshmallow import ValidationError

from blockstore.errors import InvalidInput
from blockstore.microversions import MAXIMUM, MINIMUM, VOLUME_FROM_BACKUP, VOLUME_GROUP, VOLUME_STRICT, Version
from blockstore.schemas import base, identity, services, snapshots, types, volumes
from blockstore.schemas.base import FALSE, TRUE, Reply, bool_like, is_uuid, load

ID = str(uuid.UUID(int=7))


def volume(version: Version, **fields: Any) -> Any:
    return load(volumes.CreateVolumeBody, {"volume": fields}, version)["volume"]


def test_words_for_true_and_false() -> None:
    assert all(bool_like(word) is True for word in {*TRUE, True})
    assert all(bool_like(word) is False for word in {*FALSE, False})


@given(st.one_of(st.integers(), st.floats(), st.none(), st.text().filter(lambda t: t not in TRUE | FALSE)))
def test_nothing_else_is_true_or_false(value: Any) -> None:
    if not isinstance(value, bool):
        with pytest.raises(ValidationError):
            bool_like(value)


@given(st.uuids())
def test_a_uuid_with_and_without_dashes(value: uuid.UUID) -> None:
    assert is_uuid(str(value))
    assert is_uuid(value.hex)
    assert volume(MAXIMUM, size=1, snapshot_id=value.hex)["snapshot_id"] == str(value)


@pytest.mark.parametrize("text", ["", "x", f"{{{ID}}}", f"urn:uuid:{ID}", f"{ID} ", f"{ID[:-1]}\n", ID[:-1], f"{ID}0"])
def test_no_uuid(text: str) -> None:
    assert not is_uuid(text)


@pytest.mark.parametrize(("given_size", "size"), [(1, 1), ("7", 7), ("0007", 7), (2**31 - 1, 2**31 - 1), (None, None)])
def test_sizes(given_size: Any, size: Any) -> None:
    assert volume(MAXIMUM, size=given_size)["size"] == size


@pytest.mark.parametrize(
    ("field", "since"), [("group_id", VOLUME_GROUP), ("backup_id", VOLUME_FROM_BACKUP)], ids=["group_id", "backup_id"]
)
def test_a_field_is_ignored_before_its_version(field: str, since: Version) -> None:
    before = Version(3, since.minor - 1)
    assert volume(before, size=1, **{field: "whatever"}) == {"size": 1}
    assert volume(since, size=1, **{field: ID}) == {"size": 1, field: ID}


def test_unknown_fields_are_refused_since_3_53() -> None:
    assert volume(Version(3, VOLUME_STRICT.minor - 1), size=1, more=1) == {"size": 1}
    with pytest.raises(InvalidInput, match=r"volume\.more"):
        volume(VOLUME_STRICT, size=1, more=1)
    with pytest.raises(InvalidInput, match="more"):
        load(volumes.CreateVolumeBody, {"volume": {"size": 1}, "more": 1}, MINIMUM)


def test_an_empty_update_is_refused_since_3_53() -> None:
    assert load(volumes.UpdateVolumeBody, {"volume": {}}, Version(3, 52)) == {"volume": {}}
    with pytest.raises(InvalidInput, match="At least one"):
        load(volumes.UpdateVolumeBody, {"volume": {}}, VOLUME_STRICT)


def test_older_words_for_name_and_description() -> None:
    assert volume(MAXIMUM, size=1, display_name=" a ", display_description="b") == {
        "size": 1,
        "name": "a",
        "description": "b",
    }
    assert volume(MAXIMUM, size=1, display_name="old", name="new")["name"] == "new"
    asked = {"snapshot": {"display_name": "n", "display_description": "d"}}
    assert load(snapshots.UpdateSnapshotBody, asked, MINIMUM)["snapshot"] == {"name": "n", "description": "d"}


def test_a_refusal_names_field_value_and_limit() -> None:
    with pytest.raises(InvalidInput) as caught:
        load(volumes.ExtendBody, {"os-extend": {"new_size": 0}}, MINIMUM)
    assert str(caught.value) == (
        "Invalid input for field/attribute os-extend.new_size. Value: 0. It must be from 1 to 2147483647 GiB."
    )
    with pytest.raises(InvalidInput) as caught:
        load(volumes.VolumeMetadataBody, {"metadata": {"k": "v" * 256}}, MINIMUM)
    assert caught.value.field == "metadata.k"
    assert "at most 255" in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "body"),
    [
        (identity.AskTokenBody, {f"k{number}": 1 for number in range(900)}),
        (
            identity.AskTokenBody,
            {"auth": {"identity": {"methods": ["password"], "password": {"user": {"unknown": 1}}}}},
        ),
        (volumes.CreateVolumeBody, {"volume": {"size": 1, "name": "n" * 300}}),
        (volumes.CreateVolumeBody, {"volume": {"size": "many", "metadata": {"k": 5}}}),
    ],
)
def test_a_body_that_was_refused_is_freed_without_a_search_for_cycles(schema: type[base.Schema], body: Any) -> None:
    """The collector runs rarely, and a refused body costs its sender nothing."""
    for _ in range(2):
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                with suppress(InvalidInput):
                    load(schema, body, MINIMUM)
            left = gc.collect()
        finally:
            gc.enable()
    assert left == 0


def test_hints_keep_only_what_the_scheduler_reads() -> None:
    asked = {
        "volume": {"size": 1},
        "OS-SCH-HNT:scheduler_hints": {"same_host": ID, "query": [1], "different_host": None},
    }
    assert load(volumes.CreateVolumeBody, asked, MAXIMUM)["hints"] == {"same_host": ID}


def test_one_spec_is_the_body_itself() -> None:
    for good in ({"k": None}, {"a b": "c"}, {"a/b": "c"}):
        assert load(types.OneSpecBody, good, MINIMUM) == good
    for body in ({}, {"a": "b", "c": "d"}, {"a\tb": "c"}, {"a": 1}):
        with pytest.raises(InvalidInput):
            load(types.OneSpecBody, body, MINIMUM)


@pytest.mark.parametrize("level", ["info", "WARN", "Critical"])
def test_levels_in_any_case(level: str) -> None:
    assert load(services.SetLogBody, {"level": level}, MAXIMUM)["level"] == level.lower()


def test_a_reply_shows_what_a_version_knows_and_a_caller_may_see() -> None:
    reply = Reply(
        ("always", lambda row: 1),
        ("late", lambda row: 2, Version(3, 5)),
        ("secret", lambda row: 3, MINIMUM, "rule"),
    )

    def names(version: Version, *rules: str) -> list[str]:
        return [name for name, _ in reply.getters(version, frozenset(rules))]

    assert names(MINIMUM) == ["always"]
    assert names(Version(3, 5)) == ["always", "late"]
    assert names(MINIMUM, "rule") == ["always", "secret"]
    assert reply.rules() == {"rule"}


def test_times_are_written_with_microseconds() -> None:
    import datetime

    assert base.timestamp(datetime.datetime(2026, 1, 2, 3, 4, 5)) == "2026-01-02T03:04:05.000000"
    assert base.timestamp(None) is None


def test_no_two_versions_share_a_shape() -> None:
    assert volume(Version(3, 12), size=1, group_id=ID) == {"size": 1}
    assert volume(Version(3, 13), size=1, group_id=ID) == {"size": 1, "group_id": ID}
    assert volume(Version(3, 12), size=1, group_id=ID) == {"size": 1}
