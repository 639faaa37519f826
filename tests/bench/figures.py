"""What a measurement says: a figure with its target, and how busy the machine was meanwhile."""

from __future__ import annotations

import dataclasses
import datetime
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Load:
    """How busy the machine was during a measurement."""

    load_1m: float
    idle_percent: float
    others_percent: float
    """What processes other than server and client took, of all cores."""


class Watch:
    """Notes the load from its making to ``read()``; ``pids`` are those that belong to the measurement."""

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._start = (_machine_ticks(), self._own_ticks())

    def read(self) -> Load:
        """Return the load since the beginning."""
        (busy0, total0), own0 = self._start
        busy, total = _machine_ticks()
        span = max(1, total - total0)
        used = busy - busy0
        others = max(0, used - (self._own_ticks() - own0))
        return Load(
            load_1m=round(os.getloadavg()[0], 2),
            idle_percent=round(100 * (span - used) / span, 1),
            others_percent=round(100 * others / span, 1),
        )

    def _own_ticks(self) -> int:
        ticks = 0
        for pid in self._pids:
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists():
                # user, system, and those of children that ended
                ticks += sum(int(word) for word in stat.read_text().rpartition(")")[2].split()[11:15])
        return ticks


def _machine_ticks() -> tuple[int, int]:
    first = Path("/proc/stat").read_text().partition("\n")[0]
    ticks = [int(word) for word in first.split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, sum(ticks)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    name: str
    target: str = ""
    met: bool | None = None
    """None: there is no target, or it could not be measured."""
    unit: str = "ms"
    median: float | None = None
    p95: float | None = None
    p99: float | None = None
    rate: float | None = None
    """Per second."""
    samples: int = 0
    note: str = ""
    load: Load | None = None

    @property
    def verdict(self) -> str:
        """Return what the table says."""
        return {True: "met", False: "MISSED", None: "-"}[self.met]

    def plain(self) -> dict[str, Any]:
        """Return what is written as JSON."""
        return dataclasses.asdict(self)


def timed(name: str, seconds: Sequence[float], **facts: Any) -> Figure:
    """Return the figure of a number of durations."""
    ms = [1000 * s for s in seconds]
    return Figure(
        name=name, median=statistics.median(ms), p95=quantile(ms, 95), p99=quantile(ms, 99), samples=len(ms), **facts
    )


def quantile(values: Sequence[float], percent: int) -> float:
    """Return the value that so many percent do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def machine() -> dict[str, Any]:
    """Return what it was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        os.uname().machine,
    )
    mount = max(
        (line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()),
        key=lambda words: len(words[0]) if Path(tempfile.gettempdir()).is_relative_to(words[0]) else 0,
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "state_on": f"{tempfile.gettempdir()} ({mount[1]})",
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def header() -> str:
    """Return the line above the table."""
    facts = machine()
    load = " ".join(f"{value:.2f}" for value in facts["load"])
    return f"{facts['at']}  {facts['cores']} cores, {facts['cpu']}; load {load}; state on {facts['state_on']}"


def table(figures: Sequence[Figure]) -> str:
    """Return the table."""
    rows = [("WHAT", "TARGET", "MEDIAN", "P95", "P99", "UNIT", "RATE/S", "N", "VERDICT", "LOAD", "IDLE%", "OTHERS%")]
    for figure in figures:
        load = figure.load
        busy = (_number(load.load_1m), _number(load.idle_percent), _number(load.others_percent)) if load else ("-",) * 3
        rows.append(
            (
                figure.name,
                figure.target or "-",
                _number(figure.median),
                _number(figure.p95),
                _number(figure.p99),
                figure.unit if figure.median is not None else "-",
                _number(figure.rate),
                str(figure.samples or "-"),
                figure.verdict,
                *busy,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row, figure in zip(rows, (None, *figures), strict=True):
        note = f"  {figure.note}" if figure is not None and figure.note else ""
        lines.append("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + note)
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
