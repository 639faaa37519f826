"""Find the configured filters and weighers by their entry points, so that a site can add its own.

Called once, at start, when the scheduler is built. It chooses no pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from blockstore import plugins
from blockstore.errors import ConfigError
from blockstore.plugins import entry_points
from blockstore.scheduler.choosing import Filter, Weigher
from blockstore.scheduler.weighers import Declared

FILTERS = "blockstore.scheduler.filters"
WEIGHERS = "blockstore.scheduler.weighers"


def load(group: str, names: Sequence[str]) -> list[tuple[str, Callable[..., Any]]]:
    """Return the functions of the named entry points, in their order. Raise ConfigError if a name is unknown."""
    kind = "scheduler " + group.rpartition(".")[2].removesuffix("s")
    installed = entry_points(group=group)
    loaded: list[tuple[str, Callable[..., Any]]] = []
    for name in names:
        offers = {offer.value: offer for offer in installed.select(name=name)}
        if not offers:
            available = ", ".join(sorted(installed.names)) or "none"
            raise ConfigError(f"There is no {kind} {name!r}; available: {available}.")
        if len(offers) > 1:
            raise ConfigError(f"The {kind} {name!r} is offered more than once: by {' and by '.join(sorted(offers))}.")
        (value,) = offers
        plugins.prove(offers[value], f"The {kind} {name!r}")
        try:
            found = offers[value].load()
        except (ImportError, AttributeError) as exc:
            raise ConfigError(f"The {kind} {name!r} cannot be loaded from {value}: {exc}.") from exc
        if not callable(found):
            raise ConfigError(f"The {kind} {name!r} at {value} is not a function but {type(found).__name__}.")
        loaded.append((name, found))
    return loaded


def load_filters(names: Sequence[str]) -> list[Filter]:
    """Return the filters of these names, in the order in which they are called."""
    return [Filter(name, check) for name, check in load(FILTERS, names)]


def load_weighers(names: Sequence[str], multiplier: Callable[[str], float] | None = None) -> list[Weigher]:
    """Return the weighers of these names; ``multiplier`` gives the configured value of an option by its name."""
    weighers: list[Weigher] = []
    for name, weigh in load(WEIGHERS, names):
        declared = weigh if isinstance(weigh, Declared) else Declared(weigh)
        factor = declared.multiplier
        if multiplier is not None and declared.option is not None:
            factor = multiplier(declared.option)
        weighers.append(Weigher(name, weigh, factor))
    return weighers
