"""The filters: each checks one pool and returns why it cannot take the request, or None if it can.

Found by their entry points (`blockstore.scheduler.filters` in setup.cfg) under Cinder's names.
A reason has the numbers: available and needed. choosing.py adds the names of pool and filter.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

from blockstore.scheduler.choosing import PlacementRequest
from blockstore.scheduler.expressions import ExpressionError, evaluate_for_pool, is_true
from blockstore.scheduler.pools import Pool, gib, is_finite, protocol_spellings


def availability_zone(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool outside the requested zones."""
    if not request.availability_zones or pool.availability_zone in request.availability_zones:
        return None
    return f"in zone {pool.availability_zone}, {' or '.join(request.availability_zones)} asked"


def capacity(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool without enough space, or with thin storage that is physically too full."""
    if request.size_gib == 0:
        return None
    wanted = f"{gib(request.size_gib)} GiB asked"
    if closed_because := pool.capabilities.get("closed_because"):
        return f"{wanted}, but the pool accepts nothing new: {closed_because}"
    if not pool.is_free_reported:
        return f"{wanted}, the free capacity is not reported"
    if not is_finite(pool.free_gib):
        return None  # compat: a pool that reports unknown or infinite always passes
    if not is_finite(pool.total_gib):
        if pool.reserved_percentage == 0:
            return None
        return f"{wanted}, {pool.reserved_percentage} % reserved of a total that is unknown or infinite"
    if pool.total_gib <= 0:
        return f"{wanted}, the pool has {gib(pool.total_gib)} GiB in total"
    ratio = pool.over_subscription
    figures = [f"{gib(pool.total_gib)} GiB in total", f"{pool.reserved_percentage} % reserved"]
    if pool.is_over_subscribed(request.wants_thick):
        if ratio < 1:  # compat: refused even if there is space
            return f"{wanted}, but max_over_subscription_ratio is {gib(ratio)}, below 1"
        figures.append(f"{gib(ratio)} times over-subscribed at most")
    else:
        figures.append(f"{gib(pool.free_gib)} GiB free")
    figures.append(f"{gib(pool.provisioned_gib)} GiB provisioned")
    # Cinder also compares (provisioned + asked) / available with the ratio. The available capacity contains the ratio
    # already, so that check refuses nothing that passes this one (proved by test_filters.py).
    left_gib = pool.virtual_free(request.wants_thick)
    if left_gib < request.size_gib:
        return f"{wanted}, {gib(max(0.0, left_gib))} GiB left ({', '.join(figures)})"
    filled = pool.filled_percentage
    if pool.thin and filled is not None and filled > pool.fill_limit_percentage:
        return (
            f"{wanted}, but the pool is {gib(filled)} % full and accepts nothing new above {pool.fill_limit_percentage}"
            f" % ({gib(pool.free_gib)} of {gib(pool.total_gib)} GiB physically free)"
        )
    return None


def capabilities(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool that does not meet an extra spec of the type, or cannot extend under an attachment."""
    if request.extends_attached and not as_boolean(pool.capabilities.get("online_extend_support", True)):
        return "the volume is attached and online_extend_support is False"
    for key, required in sorted(request.extra_specs.items()):
        path = key.split(":")
        if len(path) > 1 and path.pop(0) != "capabilities":
            continue  # of another scope: for the backend, the API or the user, not for us
        found, reported = _look_up(pool.capabilities, path)
        if not found:
            return f"{':'.join(path)} is not reported, {required!r} required"
        if not _meets(path, reported, required):
            advice = f" (write '<is> {required}')" if isinstance(reported, bool) and _is_word(required) else ""
            return f"{':'.join(path)} is {reported!r}, {required!r} required{advice}"
    return None


def filter_function(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool whose own filter_function is false or cannot be evaluated."""
    function = pool.capabilities.get("filter_function")
    if not function:
        return None
    try:
        outcomes = evaluate_for_pool(function, request, pool)
    except ExpressionError as exc:
        return f"filter_function: {exc}"
    if any(is_true(outcome.value) for outcome in outcomes):
        return None
    return f"filter_function '{function}' is {outcomes[0].value} ({outcomes[0].inputs})"


def same_backend(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool that holds none of the volumes named by the hint same_host."""
    if request.same_pools is None or pool.name in request.same_pools:
        return None
    return f"none of the volumes of the hint same_host is here; they are on {_list(request.same_pools)}"


def different_backend(request: PlacementRequest, pool: Pool) -> str | None:
    """Refuse a pool that holds any of the volumes named by the hint different_host."""
    if request.different_pools is None or pool.name not in request.different_pools:
        return None
    return f"a volume of the hint different_host is here; they are on {_list(request.different_pools)}"


# --- the language of extra specs ---------------------------------------------------------------------------


def meets(reported: Any, required: str | None) -> bool:
    """Return True if a capability value meets the requirement written in an extra spec."""
    if required is None or reported is None:
        return required is None and reported is None
    words = required.split()
    compare = _COMPARISONS.get(words[0]) if words else None
    if compare is None:
        # compat: exactly equal, so a boolean or a number never meets a bare word.
        return type(reported) is str and reported == required
    if words[0] == "<or>":
        return reported in [word for word in words if word != "<or>"]
    if len(words) < 2:
        return False
    try:
        return compare(reported, words[1])
    except (ValueError, TypeError, OverflowError):
        return False


def as_boolean(value: Any) -> bool:
    """Return a boolean from its spelling in a report or extra spec; any text not known as true is false."""
    return str(value).strip().lower() in {"1", "t", "true", "on", "y", "yes"}


def _by_number(compare: Callable[[Any, Any], bool]) -> Callable[[Any, str], bool]:
    return lambda reported, word: compare(float(reported), float(word))


def _by_text(compare: Callable[[Any, Any], bool]) -> Callable[[Any, str], bool]:
    return lambda reported, word: compare(str(reported), word)


_COMPARISONS: Mapping[str, Callable[[Any, str], bool]] = {
    "=": _by_number(operator.ge),  # compat: in Cinder, = means >=
    "==": _by_number(operator.eq),
    "!=": _by_number(operator.ne),
    ">=": _by_number(operator.ge),
    "<=": _by_number(operator.le),
    "s==": _by_text(operator.eq),
    "s!=": _by_text(operator.ne),
    "s<": _by_text(operator.lt),
    "s<=": _by_text(operator.le),
    "s>": _by_text(operator.gt),
    "s>=": _by_text(operator.ge),
    "<in>": lambda reported, word: word in reported,
    "<is>": lambda reported, word: as_boolean(reported) is as_boolean(word),
    "<or>": operator.eq,
}


def _meets(path: list[str], reported: Any, required: str | None) -> bool:
    if path == ["storage_protocol"]:
        # One protocol has several spellings: it differs from a word only if every spelling does.
        quantify = all if required is not None and required.split()[:1] == ["s!="] else any
        return quantify(meets(spelling, required) for spelling in protocol_spellings(reported))
    if isinstance(reported, list | tuple | set | frozenset):
        return any(meets(element, required) for element in reported)
    return meets(reported, required)


def _look_up(reported: Any, path: list[str]) -> tuple[bool, Any]:
    for name in path:
        if not isinstance(reported, Mapping) or name not in reported:
            return False, None
        reported = reported[name]
    return True, reported


def _is_word(required: str | None) -> bool:
    return required is not None and required.lower() in {"true", "false"}


def _list(pools: frozenset[str]) -> str:
    return ", ".join(sorted(pools)) or "no pool that is known"
