"""The only place that spells LVM's commands, reads their JSON, and gives their errors a name.

Knows nothing of volumes, snapshots or policy: it speaks of logical volumes in one volume group. Every method is one
process, so the number of calls in ``thin.py`` and ``thick.py`` is the number of processes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from blockstore.backends import process
from blockstore.errors import (
    BackendError,
    ConfigError,
    InUse,
    NameTaken,
    NoSpace,
    NotSupported,
    ToolFailed,
    Unreachable,
    VolumeMissing,
)

_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,99}")
_POOL_SIZE = re.compile(r"[1-9][0-9]{0,12}[gGtT]|(?:[1-9][0-9]?|100)%(?:FREE|VG)")

_LV_FIELDS = (
    "lv_name,lv_attr,lv_size,origin,origin_size,pool_lv,lv_tags,data_percent,metadata_percent,"
    "kernel_discards,lv_health_status,lv_check_needed"
)
_VG_FIELDS = "vg_uuid,vg_size,vg_free,vg_extent_size,vg_partial,vg_exported"

CHUNK = 64 * 1024
"""Copy-on-write unit of thick snapshots: at LVM's 4 KiB the kernel would keep 8 GiB of tables for 1 TiB."""

_EXCEPTION_BYTES = 16

Kind = Literal["thin", "pool", "cow", "plain"]


class NoThinTarget(NotSupported):
    """The kernel or the tools have no thin provisioning."""


@dataclass(frozen=True)
class Group:
    """A volume group: its UUID, and its figures in bytes."""

    uuid: str
    size: int
    free: int
    extent: int
    partial: bool
    exported: bool


@dataclass(frozen=True)
class Lv:
    """One logical volume, as ``lvs`` tells it. ``size`` is what its consumer sees, also of a thick snapshot."""

    name: str
    kind: Kind
    size: int
    stored: int
    active: bool
    open: bool
    origin: str
    pool: str
    tags: frozenset[str]
    data_percent: float
    metadata_percent: float
    zeroes: bool
    discards: str
    health: str


def check_group_name(vg: str, where: str) -> str:
    """Return a volume group's name if it is safe on a command line and in a path, else raise ConfigError."""
    if not _GROUP_NAME.fullmatch(vg):
        raise ConfigError(f"{where} is {vg!r}; a name of letters, digits, _, +, . and - is expected.")
    return vg


def check_pool_size(size: str, where: str) -> str:
    """Return a size that ``lvcreate`` takes for a pool, else raise ConfigError."""
    if not _POOL_SIZE.fullmatch(size):
        raise ConfigError(f"{where} is {size!r}; a size such as 500G, 2T or 95%FREE is expected.")
    return size


def cow_bytes(size: int) -> int:
    """Return the room in which a thick snapshot of this size can never overflow: all its chunks, and their table."""
    chunks = -(-size // CHUNK)
    tables = -(-chunks // (CHUNK // _EXCEPTION_BYTES))
    # One chunk for the header, and one more table because the next is begun when the last is full.
    return (chunks + tables + 2) * CHUNK


class Lvm:
    """LVM's commands on one volume group."""

    def __init__(self, vg: str, *, use_sudo: bool, timeout_s: float):
        self.vg = vg
        self._sudo = ("sudo", "-n") if use_sudo else ()
        self._timeout_s = timeout_s

    def path(self, lv: str) -> Path:
        """Return the device of a logical volume."""
        return Path("/dev") / self.vg / lv

    # --- looking --------------------------------------------------------------------------------------------

    def group(self) -> Group:
        """Return the group's figures. Raises Unreachable."""
        rows = self._report("vgs", "vg", _VG_FIELDS)
        if not rows:
            raise Unreachable(self._no_group())
        row = rows[0]
        return Group(
            uuid=row["vg_uuid"],
            size=_int(row["vg_size"]),
            free=_int(row["vg_free"]),
            extent=_int(row["vg_extent_size"]),
            partial=bool(row["vg_partial"]),
            exported=bool(row["vg_exported"]),
        )

    def lvs(self) -> dict[str, Lv]:
        """Return the group's logical volumes by name, without LVM's internal ones."""
        return {row["lv_name"]: _lv(row) for row in self._report("lvs", "lv", _LV_FIELDS)}

    def group_tags(self) -> frozenset[str]:
        """Return the tags of the group itself."""
        rows = self._report("vgs", "vg", "vg_tags")
        return frozenset(tag for row in rows for tag in row["vg_tags"].split(",") if tag)

    def extents(self, lv: str) -> Sequence[str]:
        """Return the physical extents of a linear volume, as ``lvextend`` takes them."""
        rows = self._report("lvs", "lv", "lv_name,seg_pe_ranges")
        return [piece for row in rows if row["lv_name"] == lv for piece in row["seg_pe_ranges"].split()]

    # --- making ---------------------------------------------------------------------------------------------

    def create_pool(self, pool: str, size: str) -> None:
        """Make a thin pool that zeroes what it hands out and passes discards down. Raises NoThinTarget, NoSpace."""
        amount = ("-l" if "%" in size else "-L", size)
        self._run(
            "lvcreate", "-y", "--type", "thin-pool", *amount, "-Zy", "--discards", "passdown", "-n", pool, "--", self.vg
        )

    def create_thin(self, lv: str, gib: int, pool: str) -> None:
        """Make a thin volume. Raises NameTaken, NoSpace."""
        self._run("lvcreate", "-y", "-Wn", "-V", f"{gib}g", "-T", "-n", lv, "--", f"{self.vg}/{pool}")

    def create_plain(self, lv: str, size: int) -> None:
        """Make a linear volume, with whatever its extents held before. Raises NameTaken, NoSpace."""
        self._run("lvcreate", "-y", "-Wn", "-Zn", "-L", f"{size}b", "-n", lv, "--", self.vg)

    def snapshot_thin(self, origin: str, lv: str, *, tag: str = "", active: bool) -> None:
        """Make a thin volume that shares the origin's blocks. An inactive one stays so until activated with -K."""
        activation = ("-kn", "-ay") if active else ("-ky",)
        self._run("lvcreate", "-y", "-s", *activation, *_tagged(tag), "-n", lv, "--", f"{self.vg}/{origin}")

    def snapshot_thick(self, origin: str, lv: str, stored: int, *, tag: str = "") -> None:
        """Make a copy-on-write snapshot with this much room. Raises NameTaken, NoSpace, VolumeMissing."""
        amount = ("-c", f"{CHUNK // 1024}k", "-L", f"{stored}b")
        self._run("lvcreate", "-y", "-s", *amount, *_tagged(tag), "-n", lv, "--", f"{self.vg}/{origin}")

    # --- changing -------------------------------------------------------------------------------------------

    def extend(self, lv: str, gib: int, extents: Sequence[str] = ()) -> None:
        """Grow to a size, onto these extents if given; a volume that has the size is a success."""
        try:
            self._run("lvextend", "-L", f"{gib}g", "--", f"{self.vg}/{lv}", *extents)
        except ToolFailed as exc:
            if "matches existing size" not in exc.stderr:
                raise

    def reduce(self, lv: str, size: int, *, discard: bool) -> None:
        """Cut a volume to a size in bytes."""
        self._run("lvreduce", "-f", "-y", *_discarding(discard), "-L", f"{size}b", "--", f"{self.vg}/{lv}")

    def rename(self, lv: str, to: str) -> None:
        """Rename, also while open. Raises VolumeMissing, NameTaken."""
        self._run("lvrename", "--", self.vg, lv, to)

    def activate(self, lv: str) -> None:
        """Make the device appear, also that of a thin snapshot, which is skipped otherwise (-K)."""
        self._run("lvchange", "-ay", "-K", "--", f"{self.vg}/{lv}")

    def deactivate(self, lv: str) -> None:
        """Make the device disappear. Raises InUse."""
        self._run("lvchange", "-an", "--", f"{self.vg}/{lv}")

    def tag(self, lv: str, tag: str) -> None:
        """Add a tag."""
        self._run("lvchange", "--addtag", tag, "--", f"{self.vg}/{lv}")

    def untag(self, lv: str, tag: str) -> None:
        """Remove a tag; one that is not there is a success."""
        self._run("lvchange", "--deltag", tag, "--", f"{self.vg}/{lv}")

    def tag_group(self, add: Collection[str], remove: Collection[str]) -> None:
        """Add tags to the group itself, and remove others."""
        words = [word for tag in sorted(add) for word in ("--addtag", tag)]
        words += [word for tag in sorted(remove) for word in ("--deltag", tag)]
        if words:
            self._run("vgchange", *words, "--", self.vg)

    def split(self, snapshot: str) -> None:
        """Turn a thick snapshot into a plain volume that holds its copy-on-write area. Raises InUse."""
        self._run("lvconvert", "-y", "--splitsnapshot", "--", f"{self.vg}/{snapshot}")

    def join(self, origin: str, snapshot: str) -> None:
        """Undo ``split``, while the origin's bytes are the same."""
        chunk = ("-c", f"{CHUNK // 1024}k")
        self._run("lvconvert", "-y", "-Zn", *chunk, "--type", "snapshot", "--", f"{self.vg}/{origin}", snapshot)

    def remove(self, lv: str, *, discard: bool) -> None:
        """Remove; one that is not there is a success. Removes its thick snapshots too. Raises InUse."""
        with suppress(VolumeMissing):
            self._run("lvremove", "-f", "-y", *_discarding(discard), "--", f"{self.vg}/{lv}")

    # --- running and understanding ----------------------------------------------------------------------------

    def _report(self, verb: str, kind: str, fields: str) -> Sequence[Mapping[str, str]]:
        said = self._run(verb, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, "--", self.vg)
        try:
            return [row for part in json.loads(said)["report"] for row in part.get(kind, ())]
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise BackendError(f"{verb} printed something that is not its JSON report: {said[:200]!r}") from exc

    def _run(self, verb: str, *args: str) -> str:
        try:
            return process.run(
                (*self._sudo, verb, *args), timeout_s=self._timeout_s, package="sudo" if self._sudo else "lvm2"
            )
        except ToolFailed as exc:
            raise self._named(exc) from exc

    def _no_group(self) -> str:
        return f"There is no volume group {self.vg}. Make it, with vgcreate {self.vg} DEVICE, or correct volume_group."

    def _named(self, exc: ToolFailed) -> BackendError:
        """Return the error with a name of its own that LVM's words mean, else the error itself."""
        for words, error, sentence in _MEANINGS:
            if words.search(exc.stderr):
                said = sentence.format(vg=self.vg, no_group=self._no_group(), words=_essence(exc.stderr))
                return error(said)
        return exc


# In this order: what prevents everything else comes first, since LVM often adds a consequence or two.
_MEANINGS: Sequence[tuple[re.Pattern[str], type[BackendError], str]] = tuple(
    (re.compile(words), error, sentence)
    for words, error, sentence in (
        (
            r"sudo: .*password|sudo: a terminal is required|not in the sudoers|not allowed to (?:execute|run)",
            Unreachable,
            "sudo does not let this user run LVM without a password; allow in sudoers, with NOPASSWD: vgs, lvs,"
            " lvcreate, lvextend, lvreduce, lvrename, lvremove, lvchange, lvconvert, vgchange. ({words})",
        ),
        (
            r"sudo: .*command not found",
            Unreachable,
            "The LVM tools are not installed. Install them: apt-get install lvm2.",
        ),
        (
            r"open failed: Permission denied|Can't get lock for|Permission denied|Operation not permitted",
            Unreachable,
            "LVM needs root for volume group {vg}: run blockstore as root, or set use_sudo = yes. ({words})",
        ),
        (r"Volume group \"[^\"]*\" not found", Unreachable, "{no_group}"),
        (
            r"while PVs are missing|is missing PV",
            Unreachable,
            "Volume group {vg} misses a physical volume; bring the disk back, or see vgreduce --removemissing.",
        ),
        (
            r"Required device-mapper target\(s\) not detected|thin-pool: .*not detected|Unrecognised segment type",
            NoThinTarget,
            "The kernel or LVM has no thin provisioning: modprobe dm-thin-pool, or set lvm_type = thick. ({words})",
        ),
        (
            r"thin_check: execvp failed|Check of pool .* failed|execvp failed",
            Unreachable,
            "LVM cannot check its thin pool. Install the tool: apt-get install thin-provisioning-tools. ({words})",
        ),
        (
            r"free space in thin pool .* reached threshold|[Tt]hin pool .* is out of (?:data|metadata) space"
            r"|[Ii]nsufficient (?:free )?metadata|metadata space",
            NoSpace,
            "The thin pool in volume group {vg} is full. ({words})",
        ),
        (
            r"[Ii]nsufficient (?:suitable )?(?:allocatable )?(?:free )?(?:space|extents)|insufficient free space",
            NoSpace,
            "Volume group {vg} is full. ({words})",
        ),
        (
            r"Names? (?:starting|including|beginning) |Name \"[^\"]*\" too long|Invalid (?:new )?logical volume name"
            r"|too long",
            BackendError,
            "LVM does not accept this name. ({words})",
        ),
        (r"already exists in [Vv]olume group", NameTaken, "The name is taken in volume group {vg}. ({words})"),
        (r"Pool .* not found in [Vv]olume group", Unreachable, "The thin pool is gone from {vg}. ({words})"),
        (
            r"Failed to find logical volume|[Ll]ogical volume .* not found|Snapshot origin LV .* not found",
            VolumeMissing,
            "It is not in volume group {vg}. ({words})",
        ),
        (
            r" in use\.|contains a filesystem in use|is used by another device|Can't remove open"
            r"|resized only while inactive|Can't deactivate",
            InUse,
            "Something holds it open. ({words})",
        ),
        (r"not larger than existing size", BackendError, "It is larger than that already. ({words})"),
    )
)


_CHATTER = ("WARNING: Sum of all", "WARNING: You have not", "WARNING: Set activation", "WARNING: Running as")


def _essence(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines()]
    useful = [line for line in lines if line and not line.startswith(_CHATTER)]
    return " ".join(useful)[:300].rstrip(".")


def _lv(row: Mapping[str, str]) -> Lv:
    attr = row["lv_attr"].ljust(10, "-")
    stored = _int(row["lv_size"])
    kind = _kind(attr, row["pool_lv"])
    return Lv(
        name=row["lv_name"],
        kind=kind,
        size=_int(row["origin_size"]) if kind == "cow" and row["origin_size"] else stored,
        stored=stored,
        active=attr[4] in "ahcs",
        open=attr[5] == "o",
        origin=row["origin"].strip("[]"),
        pool=row["pool_lv"].strip("[]"),
        tags=frozenset(filter(None, row["lv_tags"].split(","))),
        data_percent=float(row["data_percent"] or 0),
        metadata_percent=float(row["metadata_percent"] or 0),
        zeroes=attr[7] == "z",
        discards=row["kernel_discards"],
        health=row["lv_health_status"] or ("check needed" if row["lv_check_needed"] == "check needed" else ""),
    )


def _kind(attr: str, pool: str) -> Kind:
    if attr[0] == "t":
        return "pool"
    if attr[0] in "sS":
        return "cow"
    return "thin" if pool else "plain"


def _int(text: str) -> int:
    return int(float(text)) if "." in text else int(text)


def _tagged(tag: str) -> tuple[str, ...]:
    return ("--addtag", tag) if tag else ()


def _discarding(discard: bool) -> tuple[str, ...]:
    """Say it both ways, since lvm.conf may have either and an extent to be used again must keep its zeros."""
    return ("--config", f"devices/issue_discards={int(discard)}")
