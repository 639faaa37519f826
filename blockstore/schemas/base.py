"""Schemas that know microversions, the field types of the API, and the one form of a refusal."""

from __future__ import annotations

import functools
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from marshmallow import EXCLUDE, RAISE, ValidationError, fields
from marshmallow import Schema as MarshmallowSchema

from blockstore.errors import InvalidInput, shortened
from blockstore.microversions import MINIMUM, Version

MAX_NAME = 255
MAX_SIZE_GIB = 2**31 - 1
MOST_KEYS = 1000
"""Keys in one object of a body."""

TRUE = frozenset({"True", "TRUE", "true", "1", "ON", "On", "on", "YES", "Yes", "yes", "y", "t"})
FALSE = frozenset({"False", "FALSE", "false", "0", "OFF", "Off", "off", "NO", "No", "no", "n", "f"})
# compat: these are the values that Cinder's bool_like accepts; JSON integers are refused

METADATA_KEY = re.compile(r"[a-zA-Z0-9\-_:. /]{1,255}")
SNAPSHOT_METADATA_KEY = re.compile(r"[a-zA-Z0-9\-_:. ]{1,255}")
SPEC_KEY = re.compile(r"[a-zA-Z0-9\-_:.]{1,255}")


class Schema(MarshmallowSchema):
    """A body, or a part of one. Fields have ``since=`` in their metadata; older requests do not know these fields."""

    open_until: Version | None = None
    """Below this microversion unknown fields are ignored, as Cinder does."""

    class Meta:
        unknown = RAISE

    def handle_error(self, error: ValidationError, data: Any, **_more: Any) -> NoReturn:
        """Raise the error that marshmallow is about to raise.

        marshmallow's function keeps the error in a local variable, and the error keeps the function's frame with the
        body. Only Python's cyclic garbage collector frees such a cycle, and it runs rarely here.
        """
        raise ValidationError(error.messages, data=data, valid_data=error.valid_data)


def field(cls: type[fields.Field[Any]], *args: Any, since: Version = MINIMUM, required: bool = False, **kw: Any) -> Any:
    """Return a field that exists since a microversion."""
    return cls(*args, required=required, metadata={"since": since}, **kw)


def load(schema: type[Schema], data: Any, version: Version) -> dict[str, Any]:
    """Return the content of a body. Raise InvalidInput with the field, its value unless it is secret, and the limit."""
    try:
        return _loaded(schema, version, data)
    except ValidationError as exc:
        path, reason = next(_first(exc.messages))
        value: Any = data
        for step in path:
            value = _value_at(value, step)
        name = ".".join(shortened(str(step)) for step in path) or "body"
        raise InvalidInput(name, value, reason, shows=_shows(schema, path)) from None


def _loaded(schema: type[Schema], version: Version, data: Any) -> dict[str, Any]:
    if isinstance(data, Mapping) and len(data) > MOST_KEYS:  # each unknown key costs time
        raise ValidationError(f"It has {len(data)} keys; at most {MOST_KEYS} are allowed.")
    return _instance(schema, version).load(data)  # type: ignore[no-any-return]


def _shows(schema: type[Schema], path: Sequence[Any]) -> bool:
    """Return True if a refusal may show the value at a path: the field must be known and made for a plain value."""
    for place, step in enumerate(path):
        found = next((f for name, f in schema._declared_fields.items() if step in (name, f.data_key)), None)
        if not isinstance(found, Part):
            inside = place + 1 < len(path)
            return bool(getattr(found, "shows_inner" if inside else "shows_value", False))
        schema = found.schema
    return False


@functools.cache
def _instance(schema: type[Schema], version: Version) -> Schema:
    newer = [name for name, f in schema._declared_fields.items() if f.metadata.get("since", MINIMUM) > version]
    is_open = schema.open_until is not None and version < schema.open_until
    # Unknown fields are dropped, not passed on: they were not validated. None: as the schema's Meta says.
    instance = schema(exclude=newer, unknown=EXCLUDE if is_open else None)
    instance.context_version = version  # type: ignore[attr-defined]
    for f in instance.fields.values():
        if isinstance(f, Part):
            f.version = version
    return instance


def _first(messages: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            yield from _first(inner, path if key in ("_schema", "key", "value") else (*path, key))
    else:
        for message in messages:
            yield path, str(message)


def _value_at(value: Any, step: Any) -> Any:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return value


def in_one_word(data: dict[str, Any], **words: str) -> dict[str, Any]:
    """Rename the older names of a field to the present name. If both are given, the present name wins."""
    for old, new in words.items():
        if old in data:
            value = data.pop(old)
            data.setdefault(new, value)
    return data


class Part(fields.Field[Any]):
    """An object inside a body, read by another schema with the same microversion."""

    default_error_messages = {"invalid": "It must be an object."}  # noqa: RUF012

    def __init__(self, schema: type[Schema], **kw: Any):
        super().__init__(**kw)
        self.schema = schema
        self.version = MINIMUM

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> Any:
        if not isinstance(value, Mapping):
            raise self.make_error("invalid")
        return _loaded(self.schema, self.version, value)


class TextField(fields.Field[str]):
    """A string: bounded, without NUL, stripped if the API strips it."""

    shows_value = True
    """A refusal may show its value; secrets are recognized by their names."""

    def __init__(
        self,
        *,
        max_length: int = MAX_NAME,
        min_length: int = 0,
        strip: bool = False,
        printable: bool = False,
        pattern: re.Pattern[str] | None = None,
        choices: tuple[str, ...] = (),
        **kw: Any,
    ):
        super().__init__(**kw)
        self.min_length, self.max_length = min_length, max_length
        self.strip, self.printable, self.pattern, self.choices = strip, printable, pattern, choices

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        if not isinstance(value, str):
            raise ValidationError("It must be a string.")
        text = value.strip() if self.strip else value
        if "\0" in text:
            raise ValidationError("It must not hold the character NUL.")
        if len(text) > self.max_length:
            raise ValidationError(f"It has {len(text)} characters; at most {self.max_length} are allowed.")
        if len(text) < self.min_length:
            raise ValidationError(f"It has {len(text)} characters; at least {self.min_length} are needed.")
        if self.printable and not all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in text):
            raise ValidationError("It must hold printable characters only.")
        if self.pattern is not None and not self.pattern.fullmatch(text):
            raise ValidationError(f"It does not match {self.pattern.pattern}.")
        if self.choices and text not in self.choices:
            raise ValidationError(f"It must be one of {', '.join(self.choices)}.")
        return text


class Uuid(fields.Field[str]):
    """A uuid, with or without dashes."""

    shows_value = True

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> str:
        if not isinstance(value, str) or not is_uuid(value):
            raise ValidationError("It must be a uuid.")
        return str(uuid.UUID(value))


def is_uuid(text: str) -> bool:
    """Return True if a string is a uuid, canonical or without dashes."""
    try:
        return str(uuid.UUID(text)).replace("-", "") == text.lower().replace("-", "")
    except ValueError:
        return False


class SizeGib(fields.Field[int]):
    """A size in GiB: an integer or a string of digits."""

    shows_value = True

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,20}", value, re.ASCII):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ValidationError("It must be a whole number of GiB.")
        if not 1 <= value <= MAX_SIZE_GIB:
            raise ValidationError(f"It must be from 1 to {MAX_SIZE_GIB} GiB.")
        return value


class BoolLike(fields.Field[bool]):
    """A boolean, or one of the strings for it."""

    shows_value = True

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> bool:
        return bool_like(value)


def bool_like(value: Any) -> bool:
    """Return the boolean that a value stands for, or raise ValidationError."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value in TRUE:
        return True
    if isinstance(value, str) and value in FALSE:
        return False
    raise ValidationError("It must be true or false.")


def query_flag(query: Mapping[str, str], name: str) -> bool:
    """Return the boolean parameter of a query; False if it is absent. Raise InvalidInput if it is no boolean."""
    try:
        return bool_like(query.get(name, "False"))
    except ValidationError as exc:
        raise InvalidInput(name, query[name], exc.messages[0]) from None


class Pairs(fields.Field[dict[str, Any]]):
    """A map of strings to strings: metadata, extra specs."""

    shows_inner = True
    """A refusal may show one value of the map."""

    def __init__(
        self,
        key: re.Pattern[str] = METADATA_KEY,
        *,
        null_values: bool = False,
        least: int = 0,
        most: int = 1000,
        **kw: Any,
    ):
        super().__init__(**kw)
        self.key, self.null_values, self.least, self.most = key, null_values, least, most

    def _deserialize(self, value: Any, attr: Any, data: Any, **kw: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise ValidationError("It must be an object.")
        return check_pairs(value, self.key, null_values=self.null_values, least=self.least, most=self.most)


def check_pairs(
    value: Mapping[str, Any], key: re.Pattern[str], *, null_values: bool = False, least: int = 0, most: int = 1000
) -> dict[str, Any]:
    """Return a map of strings if its keys and values are allowed, or raise ValidationError naming the pair."""
    if not least <= len(value) <= most:
        wanted = f"exactly {least}" if least == most else f"from {least} to {most}"
        raise ValidationError(f"It has {len(value)} keys; {wanted} are allowed.")
    for name, text in value.items():
        if not key.fullmatch(name):
            raise ValidationError({name: [f"The key must be 1 to 255 characters of {key.pattern.split('{')[0]}."]})
        if text is None and null_values:
            continue
        if not isinstance(text, str):
            raise ValidationError({name: ["The value must be a string."]})
        if len(text) > MAX_NAME:
            raise ValidationError({name: [f"The value has {len(text)} characters; at most {MAX_NAME} are allowed."]})
        if "\0" in text:
            raise ValidationError({name: ["The value must not hold the character NUL."]})
    return dict(value)


class AnyValue(fields.Field[Any]):
    """Any JSON value; its content is ignored."""


# --- replies -----------------------------------------------------------------------------------------------

Getter = Callable[[Any], Any]


class Reply:
    """A table of the fields of a reply: name, getter, first microversion, and visibility rule."""

    def __init__(self, *rows: tuple[str, Getter] | tuple[str, Getter, Version] | tuple[str, Getter, Version, str]):
        self._rows = rows
        self._rules = frozenset(row[3] for row in rows if len(row) > 3)

    @functools.cache  # noqa: B019 - replies are module constants
    def getters(self, version: Version, visible: frozenset[str]) -> tuple[tuple[str, Getter], ...]:
        """Return the fields for a microversion and a set of satisfied visibility rules."""
        return tuple(
            (row[0], row[1])
            for row in self._rows
            if (len(row) < 3 or version >= row[2]) and (len(row) < 4 or row[3] in visible)
        )

    def rules(self) -> frozenset[str]:
        """Return the visibility rules of the fields of this reply."""
        return self._rules


def timestamp(value: Any) -> str | None:
    """Return a time as the API writes it."""
    return None if value is None else value.isoformat(timespec="microseconds")
