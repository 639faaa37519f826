"""The two texts of an error, and what a refusal shows of a value."""

from __future__ import annotations

from typing import Any

import pytest

from blockstore import errors
from blockstore.errors import BackendError, BadRequest, InvalidInput, NoBackend, Reason, ToolFailed, listed

OPERATORS = "lvcreate failed on vg-canary at /srv/canary"


def backend_errors(cls: type[BackendError] = BackendError) -> list[type[BackendError]]:
    return [cls, *(deeper for inner in cls.__subclasses__() for deeper in backend_errors(inner))]


@pytest.mark.parametrize("cls", [one for one in backend_errors() if one.__module__ == errors.__name__])
def test_what_storage_says_is_for_the_operator(cls: type[BackendError]) -> None:
    error = ToolFailed(("lvcreate",), 5, OPERATORS) if issubclass(cls, ToolFailed) else cls(OPERATORS)
    assert OPERATORS in error.message
    assert "canary" not in error.public
    assert "lvcreate" not in error.public
    assert error.public.endswith(".")


def test_a_refusal_has_one_text_unless_it_is_given_two() -> None:
    assert BadRequest("a").reason == Reason("a", "a")
    assert BadRequest("a", public="b").reason == Reason("a", "b")
    assert NoBackend("a").public != "a"
    assert NoBackend.for_everybody("a").public == "a"


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("volume.size", 0, "Value: 0."),
        ("volume.name", "x", "Value: 'x'."),
        ("volume.name", None, "Value: None."),
        ("volume.name", "x" * 200, f"Value: '{'x' * 76}...."),
        ("volume.name", {"password": "c"}, "Value: an object."),
        ("volume.name", ["c"], "Value: an array."),
        ("user.password", "c", "Value: a string (not shown)."),
        ("user.password", 7, "Value: a number (not shown)."),
        ("accept.auth_key", "c", "Value: a string (not shown)."),
        ("attachment.connector.discovery_auth_username", "c", "Value: a string (not shown)."),
        ("adminPass", "c", "Value: a string (not shown)."),
        ("auth.identity.token.id", "c", "Value: a string (not shown)."),
        ("volume.description", "http://u:c@h/", "Value: a string (not shown)."),
        ("volume.description", "http://u:" + "c" * 200 + "@h/", "Value: a string (not shown)."),
    ],
)
def test_what_a_refusal_shows_of_a_value(field: str, value: Any, shown: str) -> None:
    assert str(InvalidInput(field, value, "No.")) == f"Invalid input for field/attribute {field}. {shown} No."


def test_a_refusal_names_five_names_at_most() -> None:
    assert listed(["b", "a"]) == "a, b"
    assert listed([f"k{i}" for i in range(6)]) == "k0, k1, k2, k3, k4 and 1 other"
    assert listed([f"k{i:02}" for i in range(17)]) == "k00, k01, k02, k03, k04 and 12 others"
    assert len(listed(["x" * 10_000] * 9)) < 500
