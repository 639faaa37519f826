"""LVM's tools as far as the plugin uses them, behind ``process.run``: a volume group in a dictionary.

Knows names, sizes, tags, origins and what LVM refuses, in LVM's own words as the lab shows them. Has no bytes: what
is read from devices is the business of tests/lab.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from blockstore_plugins.lvm import devices

from blockstore.backends import process
from blockstore.errors import ToolFailed

GIB = 2**30
EXTENT = 4 * 2**20
UNITS = {"b": 1, "m": 2**20, "g": GIB, "t": 2**40}


@dataclass
class FakeLv:
    """One logical volume."""

    size: int
    kind: str = "-"
    origin: str = ""
    pool: str = ""
    tags: set[str] = field(default_factory=set)
    active: bool = True
    open: bool = False
    seen: int = 0
    zeroes: bool = True
    percent: tuple[float, float] = (0.0, 0.0)
    health: str = ""


class FakeLvm:
    """A volume group ``vg`` and the tools that change it."""

    def __init__(self, patch: pytest.MonkeyPatch, gib: int = 100):
        self.size = gib * GIB
        self.lvs: dict[str, FakeLv] = {}
        self.ran: list[tuple[str, ...]] = []
        self.cleared: list[tuple[str, int, int]] = []
        self.copied: list[tuple[str, str, int]] = []
        self.thin = True
        self.tags: set[str] = set()
        self.uuid = "uGaFQx-0000-0000-0000-0000-0000-000000"
        patch.setattr(process, "run", self.run)
        patch.setattr(devices, "copy", self._copy)
        patch.setattr(devices, "clear", lambda path, *region: self._clear(path, *region))
        patch.setattr(devices, "discard", lambda *_: None)
        patch.setattr(devices, "exclusive", self._exclusive)

    def verbs(self) -> list[str]:
        """Return the tools that ran, and forget them."""
        ran, self.ran = [argv[0] for argv in self.ran], []
        return ran

    def pool(self, **what: Any) -> None:
        """Put the default pool there."""
        self.lvs["vg-pool"] = FakeLv(50 * GIB, "t", **what)

    # --- devices --------------------------------------------------------------------------------------------

    def _clear(self, path: Path, start: int, end: int, progress: Any = lambda _percent: None) -> None:
        progress(0)
        assert self.lvs[path.name].active
        self.cleared.append((path.name, start, end))

    def _copy(self, source: Path, target: Path, length: int, progress: Any, **_options: Any) -> None:
        progress(0)
        assert self.lvs[source.name].active
        assert self.lvs[target.name].active
        self.copied.append((source.name, target.name, length))

    def _exclusive(self, path: Path) -> Any:
        fake = self

        class Held:
            def __enter__(self) -> Held:
                return self

            def __exit__(self, *_: object) -> None:
                pass

            def clear(self, *region: Any) -> None:
                name = next(name for name in (path.name, f"old.{path.name}") if name in fake.lvs)
                fake._clear(Path(name), *region)

        return Held()

    # --- tools ----------------------------------------------------------------------------------------------

    def run(self, argv: Sequence[str], **_options: Any) -> str:
        """Do what a tool does, or raise what process.run raises when it refuses."""
        words = [word for word in argv if word not in ("sudo", "-n" if argv[0] == "sudo" else "")]
        self.ran.append(tuple(words))
        verb, options, rest = words[0], *_parse(words[1:])
        try:
            return str(getattr(self, f"_{verb}")(options, rest) or "")
        except _Refused as exc:
            raise ToolFailed(tuple(argv), 5, str(exc)) from None

    def _lvs(self, options: dict[str, str], rest: list[str]) -> str:
        _vg(rest[0])
        if "seg_pe_ranges" in options["-o"]:
            rows = [{"lv_name": n, "seg_pe_ranges": "/dev/loop0:0-9 /dev/loop1:3-4"} for n in self.lvs]
            return json.dumps({"report": [{"lv": rows}]})
        return json.dumps({"report": [{"lv": [self._row(name, lv) for name, lv in self.lvs.items()]}]})

    def _row(self, name: str, lv: FakeLv) -> dict[str, str]:
        attr = f"{lv.kind}wi-{'a' if lv.active else '-'}{'o' if lv.open else '-'}-{'z' if lv.zeroes else '-'}--"
        pool = lv.kind == "t"
        return {
            "lv_name": name,
            "lv_attr": attr,
            "lv_size": str(lv.size),
            "origin": lv.origin,
            "origin_size": str(lv.seen) if lv.kind == "s" else "",
            "pool_lv": lv.pool,
            "lv_tags": ",".join(sorted(lv.tags)),
            "data_percent": f"{lv.percent[0]:.2f}" if pool else "",
            "metadata_percent": f"{lv.percent[1]:.2f}" if pool else "",
            "kernel_discards": "passdown" if pool else "",
            "lv_health_status": lv.health,
            "lv_check_needed": "" if pool else "unknown",
        }

    def _vgs(self, _options: dict[str, str], rest: list[str]) -> str:
        _vg(rest[0])
        row = {
            "vg_uuid": self.uuid,
            "vg_size": str(self.size),
            "vg_free": str(self._free()),
            "vg_extent_size": str(EXTENT),
        }
        row |= {"vg_partial": "", "vg_exported": "", "vg_tags": ",".join(sorted(self.tags))}
        return json.dumps({"report": [{"vg": [row]}]})

    def _vgchange(self, options: dict[str, str], rest: list[str]) -> None:
        _vg(rest[0])
        self.tags |= set(filter(None, options.get("--addtag", "").split(",")))
        self.tags -= set(options.get("--deltag", "").split(","))

    def _free(self) -> int:
        return self.size - sum(lv.size for lv in self.lvs.values() if lv.kind != "V")

    def _take(self, size: int) -> int:
        if size > self._free():
            have, want = self._free() // EXTENT, size // EXTENT
            raise _Refused(f'  Volume group "vg" has insufficient free space ({have} extents): {want} required.')
        return size

    def _lvcreate(self, options: dict[str, str], rest: list[str]) -> None:
        group, _, of = rest[0].partition("/")
        _vg(group)
        name = options["-n"]
        if name.startswith("snapshot"):
            raise _Refused('  Names starting "snapshot" are reserved. Please choose a different LV name.')
        if options.get("--type") == "thin-pool":
            if not self.thin:
                raise _Refused("  thin-pool: Required device-mapper target(s) not detected in your kernel.")
            self.lvs[name] = FakeLv(self._take(self._free() * 95 // 100), "t")
            return
        if ("-s" in options or "-T" in options) and of not in self.lvs:
            what = f"Snapshot origin LV {of}" if "-s" in options else f"Pool {of}"
            raise _Refused(f"  {what} not found in Volume group vg.")
        if name in self.lvs:
            raise _Refused(f'  Logical Volume "{name}" already exists in volume group "vg"')
        if "-T" in options:
            self._refuse_full(of)
            self.lvs[name] = FakeLv(_bytes(options["-V"]), "V", pool=of)
        elif "-s" in options and self.lvs[of].kind == "V":
            self._refuse_full(self.lvs[of].pool)
            origin = self.lvs[of]
            self.lvs[name] = FakeLv(origin.size, "V", origin=of, pool=origin.pool, active="-ay" in options)
        elif "-s" in options:
            self.lvs[name] = FakeLv(self._take(_bytes(options["-L"])), "s", origin=of, seen=self.lvs[of].size)
        else:
            self.lvs[name] = FakeLv(self._take(_bytes(options["-L"])))
        if "--addtag" in options:
            self.lvs[name].tags.add(options["--addtag"])

    def _refuse_full(self, pool: str) -> None:
        if max(self.lvs[pool].percent) >= 100:
            raise _Refused(f"  Cannot create new thin volume, free space in thin pool vg/{pool} reached threshold.")

    def _lvremove(self, _options: dict[str, str], rest: list[str]) -> None:
        name, lv = self._find(rest[0])
        if lv.open:
            raise _Refused(f"  Logical volume vg/{name} in use.")
        del self.lvs[name]
        for other in list(self.lvs):
            if self.lvs[other].origin == name and self.lvs[other].kind == "s":
                del self.lvs[other]
            elif self.lvs[other].origin == name:
                self.lvs[other].origin = ""

    def _lvrename(self, _options: dict[str, str], rest: list[str]) -> None:
        _, old, new = rest
        if old not in self.lvs:
            raise _Refused(f'  Existing logical volume "{old}" not found in volume group "vg"')
        if new in self.lvs:
            raise _Refused(f'  Logical Volume "{new}" already exists in volume group "vg"')
        self.lvs[new] = self.lvs.pop(old)
        for lv in self.lvs.values():
            lv.origin = new if lv.origin == old else lv.origin

    def _lvextend(self, options: dict[str, str], rest: list[str]) -> None:
        name, lv = self._find(rest[0], "  Logical volume {0} not found in volume group vg.")
        size = _bytes(options["-L"])
        if size == lv.size:
            raise _Refused("  New size (256 extents) matches existing size (256 extents).")
        if size < lv.size:
            raise _Refused("  New size given (1 extents) not larger than existing size (2 extents)")
        if lv.kind == "-":
            if lv.active and any(other.origin == name for other in self.lvs.values()):
                raise _Refused("  Snapshot origin volumes can be resized only while inactive: try lvchange -an.")
            self._take(size - lv.size)
        lv.size = size

    def _lvreduce(self, options: dict[str, str], rest: list[str]) -> None:
        name, lv = self._find(rest[0])
        if any(other.origin == name for other in self.lvs.values()):
            raise _Refused("  Snapshot origin volumes cannot be reduced in size yet.")
        lv.size = _bytes(options["-L"])

    def _lvchange(self, options: dict[str, str], rest: list[str]) -> None:
        _, lv = self._find(rest[0])
        if "--addtag" in options:
            lv.tags.add(options["--addtag"])
        elif "--deltag" in options:
            lv.tags.discard(options["--deltag"])
        else:
            lv.active = "-ay" in options

    def _lvconvert(self, options: dict[str, str], rest: list[str]) -> None:
        if "--splitsnapshot" in options:
            _, lv = self._find(rest[0])
            if lv.open:
                raise _Refused("  Snapshot is in use.")
            lv.kind, lv.origin, lv.seen = "-", "", 0
            return
        name, origin = self._find(rest[0])
        cow = self.lvs[rest[1]]
        cow.kind, cow.origin, cow.seen = "s", name, origin.size

    def _find(self, path: str, words: str = '  Failed to find logical volume "vg/{0}"') -> tuple[str, FakeLv]:
        name = path.removeprefix("vg/")
        if name not in self.lvs:
            raise _Refused(words.format(name))
        return name, self.lvs[name]


class _Refused(Exception):
    """What a tool prints before it ends with an error."""


def _vg(name: str) -> None:
    if name != "vg":
        raise _Refused(f'  Volume group "{name}" not found\n  Cannot process volume group {name}')


def _bytes(size: str) -> int:
    return -(-int(size[:-1]) * UNITS[size[-1].lower()] // EXTENT) * EXTENT


def _parse(words: list[str]) -> tuple[dict[str, str], list[str]]:
    """Return options and the rest, which must be parted by ``--`` for safety."""
    assert "--" in words, words
    end = words.index("--")
    options: dict[str, str] = {}
    given = iter(words[:end])
    for word in given:
        assert word.startswith("-"), words
        takes = ("-o", "-n", "-L", "-l", "-V", "-c", "--units", "--reportformat", "--type", "--addtag", "--deltag")
        takes += ("--config", "--discards")
        value = next(given) if word in takes else ""
        options[word] = f"{options[word]},{value}" if word in options else value
    rest = words[end + 1 :]
    assert not any(word.startswith("-") for word in rest), words
    return options, rest
