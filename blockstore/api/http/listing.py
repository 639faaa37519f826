"""Pagination of every list: filters, sorting, marker, limit, links and count.

A module of this component describes its list as a ``Listing`` and calls ``page``. Pages are found by key, so that page
1,000 costs as much as page 1.
"""

from __future__ import annotations

import ast
import datetime
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from marshmallow import ValidationError
from sqlalchemy import (
    Boolean,
    ColumnElement,
    DateTime,
    Integer,
    Select,
    String,
    and_,
    false,
    func,
    literal,
    or_,
    select,
    tuple_,
)
from sqlalchemy.orm import InstrumentedAttribute

from blockstore.api.http.call import Call
from blockstore.errors import BadRequest, InvalidInput, NotFound, listed
from blockstore.microversions import FILTERS_CHECKED, MINIMUM, WITH_COUNT, Version
from blockstore.schemas.base import MAX_NAME, bool_like, load, query_flag
from blockstore.schemas.listing import SWITCHES, CountedQuery, PageQuery

Condition = ColumnElement[bool]
Filter = Callable[[Call, str], Condition]

_TIME_OPERATORS: Mapping[str, Callable[[Any, Any], Condition]] = {
    "gt": lambda column, at: column > at,
    "gte": lambda column, at: column >= at,
    "eq": lambda column, at: column == at,
    "neq": lambda column, at: column != at,
    "lt": lambda column, at: column < at,
    "lte": lambda column, at: column <= at,
}


MOST_CHARACTERS = 1 << 19
"""Characters of metadata in one page of a list: writing them takes 15 ms, which delays all other requests."""
FIRST_ROWS = 32
"""Rows whose metadata is summed first, then four times as many: most pages stay far below the bound."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """One list of the API."""

    model: Any
    noun: str
    """The name of one item in a 404 message."""
    collection: str
    links_key: str
    columns: Mapping[str, InstrumentedAttribute[Any]]
    """Columns by their names in the API; an administrator may sort and filter by all of them."""
    sortable: frozenset[str] = frozenset({"id", "created_at"})
    """Columns that other callers may sort by: replies show them to these callers."""
    special: Mapping[str, Filter] = field(default_factory=dict)
    """Filters that do more than compare a column for equality."""
    public: frozenset[str] = frozenset()
    """Filters that a caller who is not an administrator may use."""
    since: Mapping[str, Version] = field(default_factory=dict)
    """The first microversion of filters; in older requests these filters are ignored."""
    sorts_since: Mapping[str, Version] = field(default_factory=dict)
    """The first microversion of sort keys; in older requests these keys are refused."""
    counted: bool = False


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page of rows, as the select returned them."""

    rows: Sequence[Any]
    envelope: dict[str, Any]
    """Links and count, to be put next to the items in the reply."""


def columns_of(model: Any, **aliases: InstrumentedAttribute[Any]) -> dict[str, InstrumentedAttribute[Any]]:
    """Return every plain column of a model by name, and aliases."""
    return {
        **{c.key: getattr(model, c.key) for c in model.__table__.columns if isinstance(c.type, _FILTERABLE)},
        **aliases,
    }


_FILTERABLE = (String, Integer, Boolean, DateTime)
LARGEST_INTEGER = 2**31 - 1
MOST_TERMS = 10
"""Comparisons in one filter; databases bound the depth of an expression."""


def page(call: Call, listing: Listing, statement: Select[Any], *, suffix: str = "") -> Page:
    """Return the page that the query asks for.

    ``statement`` selects the rows that the caller may see. Raises InvalidInput, BadRequest, NotFound (marker).
    """
    query = load(
        CountedQuery if listing.counted and call.version >= WITH_COUNT else PageQuery, dict(call.query), call.version
    )
    conditions = _conditions(
        call, listing, drop={"with_count"} if "with_count" in query and call.version >= WITH_COUNT else set()
    )
    keys = _sort_keys(call, listing, query)
    limit = min(query.get("limit", call.core.config.service.max_limit), call.core.config.service.max_limit)
    envelope: dict[str, Any] = {}
    narrowed = statement.where(*conditions)
    if query.get("with_count") is True and listing.counted and call.version >= WITH_COUNT:
        inner = narrowed.with_only_columns(listing.model.id).order_by(None).subquery()
        envelope["count"] = call.session.execute(select(func.count()).select_from(inner)).scalar_one()
    if query.get("marker"):
        narrowed = narrowed.where(_after(call, listing, statement, query["marker"], keys))
    dialect = call.session.get_bind().dialect.name
    for column, down in keys:
        narrowed = narrowed.order_by(_ordered(column, down, dialect))
    if query.get("offset"):
        narrowed = narrowed.offset(query["offset"])
    rows = call.session.execute(narrowed.limit(limit)).all() if limit else []
    if rows and len(rows) >= limit:
        last = rows[-1][0].id
        envelope[listing.links_key] = call.links.next_page(listing.collection + suffix, call.query, last)
    return Page(rows=rows, envelope=envelope)


def fitting(
    call: Call,
    listing: Listing,
    page: Page,
    sizes_of: Callable[[Sequence[Any]], Mapping[str, int]],
    *,
    suffix: str = "",
    characters_of_row: int = 0,
) -> tuple[Page, Mapping[str, int]]:
    """Return a page, cut to the allowed length of a reply with a link to the rest, and the metadata sizes of its rows.

    ``sizes_of`` returns the number of metadata characters of rows, by id; it may leave out rows without metadata.
    ``characters_of_row`` is the number of characters that a row counts for without its metadata.
    """
    sizes: dict[str, int] = {}
    length, begun, step = 0, 0, FIRST_ROWS
    while begun < len(page.rows):
        some = page.rows[begun : begun + step]
        found = sizes_of(some)
        for count, (row, *_) in enumerate(some, begun):
            length += characters_of_row + found.get(row.id, 0)
            if count and length > MOST_CHARACTERS:
                link = call.links.next_page(listing.collection + suffix, call.query, page.rows[count - 1][0].id)
                return Page(rows=page.rows[:count], envelope={**page.envelope, listing.links_key: link}), sizes
            if row.id in found:
                sizes[row.id] = found[row.id]
        begun, step = begun + step, step * 4
    return page, sizes


def visible_projects(call: Call, model: Any, *, strict: bool = True) -> list[Condition]:
    """Return the condition that limits a list to the caller's project, or none if an administrator asks for all.

    ``all_tenants`` of other callers is ignored. ``strict``: an administrator's value that is not a boolean is 400;
    without ``strict`` it counts as false.
    """
    try:
        everything = query_flag(call.query, "all_tenants")
    except InvalidInput:
        if strict and call.ctx.is_admin:
            raise
        everything = False
    if everything and call.ctx.is_admin:
        return []
    return [model.project_id == call.ctx.project_id]


# --- filters -----------------------------------------------------------------------------------------------


def _conditions(call: Call, listing: Listing, drop: set[str]) -> list[Condition]:
    given = {
        name: value
        for name, value in call.query.items()
        if name not in SWITCHES
        and name not in drop
        and call.version >= listing.since.get(name.removesuffix("~"), MINIMUM)
    }
    if not call.ctx.is_admin:
        refused = sorted(name for name in given if name not in listing.public)
        if refused and call.version >= FILTERS_CHECKED:
            raise BadRequest(f"Invalid filters {listed(refused)} are found in query options.")
        given = {name: value for name, value in given.items() if name in listing.public}
    return [_condition(call, listing, name, value) for name, value in given.items()]


def _condition(call: Call, listing: Listing, name: str, value: str) -> Condition:
    # compat: an administrator's ~ works at every version in Cinder; 3.34 only let others use it where it is configured.
    if name.endswith("~"):
        column = listing.columns.get(name[:-1])
        if column is None or not isinstance(column.type, String) or len(value) > MAX_NAME:
            return false()
        return column.icontains(value, autoescape=True)  # compat: like LIKE in MySQL, Cinder's database
    if name in listing.special:
        return listing.special[name](call, value)
    column = listing.columns.get(name)
    if column is None:
        return false()  # compat: an administrator's unknown filter matches nothing
    return equals(column, name, value)


def equals(column: InstrumentedAttribute[Any], name: str, value: str) -> Condition:
    """Return the condition that a column has a query's value. Invalid values match nothing; invalid times are 400."""
    if isinstance(column.type, Boolean):
        try:
            return column == bool_like(value)
        except ValidationError:
            return false()
    if isinstance(column.type, Integer):
        # A number that the column cannot hold is not sent: PostgreSQL would refuse the statement.
        number = int(value) if re.fullmatch(r"-?[0-9]{1,10}", value, re.ASCII) else LARGEST_INTEGER + 1
        return column == number if abs(number) <= LARGEST_INTEGER else false()
    if isinstance(column.type, DateTime):
        return column == parse_time(name, value)
    return column == value


def boolean(column: InstrumentedAttribute[Any], name: str, since: Version) -> Filter:
    """Return a filter on a boolean column; from a microversion on it refuses other values."""

    def condition(call: Call, value: str) -> Condition:
        try:
            return column == bool_like(value)
        except ValidationError as exc:
            if call.version >= since:
                raise InvalidInput(name, value, exc.messages[0]) from None
            return false()

    return condition


def compared_time(column: InstrumentedAttribute[Any], name: str, since: Version) -> Filter:
    """Return a filter that compares times: OP:TIME,OP:TIME."""

    def condition(call: Call, value: str) -> Condition:
        if call.version < since:
            return column == parse_time(name, value)
        terms = []
        comparisons = value.split(",")
        if len(comparisons) > MOST_TERMS:
            raise InvalidInput(name, value, f"At most {MOST_TERMS} comparisons are allowed.")
        for term in comparisons:
            operator, colon, at = term.strip().partition(":")
            if operator not in _TIME_OPERATORS or not colon:
                raise InvalidInput(name, value, f"It must be OP:TIME, OP one of {', '.join(_TIME_OPERATORS)}.")
            terms.append(_TIME_OPERATORS[operator](column, parse_time(name, at)))
        return and_(*terms)

    return condition


def parse_time(name: str, text: str) -> datetime.datetime:
    """Return an ISO 8601 time as UTC without zone. Raises InvalidInput."""
    try:
        # A plus sign in a query arrives as a blank.
        at = datetime.datetime.fromisoformat(text.strip().replace(" +", "+").replace("Z", "+00:00"))
        return at.astimezone(datetime.UTC).replace(tzinfo=None) if at.tzinfo else at
    except (ValueError, OverflowError):
        raise InvalidInput(name, text, "It must be a time such as 2026-01-31T12:00:00.") from None


def pairs(owner: InstrumentedAttribute[Any], table: Any, foreign_key: InstrumentedAttribute[Any], name: str) -> Filter:
    """Return a filter on key and value rows: an item matches if it has all pairs of a dictionary literal."""

    def condition(call: Call, value: str) -> Condition:
        return and_(
            *(
                owner.in_(select(foreign_key).where(table.key == key, table.value == wanted))
                for key, wanted in dictionary(name, value).items()
            )
        )

    return condition


def dictionary(name: str, text: str) -> dict[str, str]:
    """Return the value of a dictionary literal such as {"k": "v"} or {'k': 'v'}. Raises InvalidInput."""
    try:
        value = ast.literal_eval(text) if len(text) <= 4096 else None
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        value = None
    if not isinstance(value, dict) or not value or len(value) > 50:
        raise InvalidInput(name, text, 'It must be a dictionary such as {"key": "value"}, of at most 50 keys.')
    if not all(isinstance(word, str | int | float | None) for pair in value.items() for word in pair):
        raise InvalidInput(name, text, "Its keys and values must be strings, numbers or None.")
    try:
        found = {str(k): str(v) for k, v in value.items()}
    except ValueError:
        raise InvalidInput(name, text, "It holds a number that is too long.") from None
    if not all(_storable(word) for pair in found.items() for word in pair):
        raise InvalidInput(name, text, "It must hold neither NUL nor half of a surrogate pair.")
    return found


def _storable(text: str) -> bool:
    return "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


# --- sort order --------------------------------------------------------------------------------------------

Key = tuple[InstrumentedAttribute[Any], bool]
"""A column, and True if it is sorted in descending order."""


def _sort_keys(call: Call, listing: Listing, query: Mapping[str, Any]) -> list[Key]:
    if query.get("sort") and (query.get("sort_key") or query.get("sort_dir")):
        raise BadRequest("The 'sort_key' and 'sort_dir' parameters are deprecated and cannot be used with 'sort'.")
    if query.get("sort"):
        words = [term.strip().partition(":") for term in query["sort"].split(",")]
        pairs_given = [(name.strip(), direction.strip() or "desc") for name, _, direction in words]
    else:
        pairs_given = [(query.get("sort_key", "").strip() or "created_at", query.get("sort_dir", "").strip() or "desc")]
    if len(pairs_given) > 10:
        raise InvalidInput("sort", query["sort"], "At most 10 keys are allowed.")
    keys: list[Key] = []
    for name, direction in pairs_given:
        if direction not in ("asc", "desc"):
            raise BadRequest("Invalid input received: Unknown sort direction, must be 'desc' or 'asc'.")
        # compat: Cinder lets everybody sort by every column, and so reveals the order of hidden values.
        known = name in listing.columns and (call.ctx.is_admin or name in listing.sortable)
        if not known or call.version < listing.sorts_since.get(name, MINIMUM):
            raise BadRequest("Invalid input received: Invalid sort key")
        keys.append((listing.columns[name], direction == "desc"))
    down = keys[0][1]
    # Ties are broken as in Cinder. The id makes the order total, so that a marker is one exact position.
    for column in (listing.columns["created_at"], listing.columns["id"]):
        if all(column is not key for key, _ in keys):
            keys.append((column, down))
    return keys


def _after(call: Call, listing: Listing, statement: Select[Any], marker: str, keys: list[Key]) -> Condition:
    place = call.session.execute(
        statement.with_only_columns(*(column for column, _ in keys)).where(listing.model.id == marker)
    ).one_or_none()
    if place is None:
        raise NotFound.resource(listing.noun, marker)
    down = keys[0][1]
    if all(not column.property.columns[0].nullable and direction == down for column, direction in keys):
        # A row comparison, because an index can seek to it.
        left, right = tuple_(*(column for column, _ in keys)), tuple(place)
        return left < right if down else left > right
    terms: list[Condition] = []
    equal: list[Condition] = []
    for (column, direction), value in zip(keys, place, strict=True):
        terms.append(and_(*equal, _beyond(column, value, direction)))
        equal.append(column.is_(None) if value is None else column == value)
    return or_(*terms)


def _beyond(column: InstrumentedAttribute[Any], value: Any, down: bool) -> Condition:
    """Return the condition that a row comes after a value in one column. Null sorts below all other values."""
    if value is None:
        return false() if down else column.is_not(None)
    place = literal(value, column.type)  # a bare True or False cannot be compared with < and >
    return or_(column < place, column.is_(None)) if down else column > place


def _ordered(column: InstrumentedAttribute[Any], down: bool, dialect: str) -> Any:
    ordered = column.desc() if down else column.asc()
    if dialect == "postgresql" and column.property.columns[0].nullable:
        return ordered.nulls_last() if down else ordered.nulls_first()
    return ordered  # SQLite sorts null below everything by itself
