"""Run the measurements that are named, or all, and print the table."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.bench import attaching, creating, fairness, identity, listing, lvm, migration, rbd, showing, starting
from tests.bench.figures import Figure, header, machine, table

MEASUREMENTS: dict[str, Callable[[bool], Iterator[Figure]]] = {
    "start": starting.measure,
    "show": showing.measure,
    "identity": identity.measure,
    "list": listing.measure,
    "create": creating.measure,
    "fair": fairness.measure,
    "attach": attaching.measure,
    "lvm": lvm.measure,
    "rbd": rbd.measure,
    "move": migration.measure,
}


def main() -> int:
    """Return 1 if --strict was given and a target was missed."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MEASUREMENTS)}; all without")
    parser.add_argument("--quick", action="store_true", help="fewer samples, and 20,000 volumes instead of 100,000")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there, too")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(MEASUREMENTS):
        parser.error(f"no such measurement: {', '.join(sorted(unknown))}")
    print(header(), flush=True)
    figures: list[Figure] = []
    for name in asked.names or MEASUREMENTS:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
        figures += MEASUREMENTS[name](asked.quick)
    print(table(figures))
    if asked.json:
        asked.json.write_text(json.dumps({"machine": machine(), "figures": [f.plain() for f in figures]}, indent=1))
    missed = [figure.name for figure in figures if figure.met is False]
    print(f"missed: {', '.join(missed)}" if missed else "every target that was measured is met")
    return 1 if missed and asked.strict else 0


if __name__ == "__main__":
    sys.exit(main())
