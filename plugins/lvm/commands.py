"""Runs LVM's commands, parses their JSON and translates their errors; no other file does.

It knows logical volumes of one volume group, but no volumes, snapshots or policy. Every method runs one process, so the
number of calls in ``thin.py`` and ``thick.py`` is the number of processes.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
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

from .members import Members, Pv, choose

log = logging.getLogger(__name__)

_GROUP_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+.-]{0,99}")
_POOL_SIZE = re.compile(r"[1-9][0-9]{0,12}[gGtT]|(?:[1-9][0-9]?|100)%(?:FREE|VG)")

_LV_FIELDS = (
    "lv_name,lv_attr,lv_size,origin,origin_size,pool_lv,lv_tags,data_percent,metadata_percent,"
    "kernel_discards,lv_health_status,lv_check_needed"
)
_PROOF_FIELDS = "vg_uuid,vg_missing_pv_count"
"""Fields in every report that identify its group."""
_PV_FIELDS = (
    "pv_name,pv_uuid,pv_missing,pv_duplicate,vg_name,vg_uuid,vg_size,vg_free,vg_extent_size,vg_exported,vg_tags,"
    "vg_mda_size,vg_mda_free"
)

_REPORT_CONFIG = (
    'log{prefix="" indent=0 command_names=0 verbose=0 report_command_log=0}'
    ' report{compact_output=0 compact_output_cols="" binary_values_as_numeric=0 prefixes=0 quoted=1 columns_as_rows=0'
    ' list_item_separator="," two_word_unknown_device=0}'
)
"""LVM's default format of reports, independent of the settings in lvm.conf."""
_NO_LVS = "devices/scan_lvs=0"
"""Volumes belong to guests: their contents are not scanned for volume groups."""

_ELSEWHERE = re.compile(r"Volume group \"[^\"]*\" not found|PVs are missing|is missing PV|of partial LV")
_LAST_DEVICE = re.compile(r"is missing PV (\S+) \(last written to (/\S+)\)")
_NO_BACKUPS = "backup{backup=0 archive=0}"
"""The same as ``-A n``, which not every command has."""
_NO_BACKUP = re.compile(r"(/\S+): (?:write error failed|\S+ failed): (?:No space left on device|Read-only file system)")
_NO_OPTION = re.compile(r"(?:unrecognized|unknown) option.*--devices", re.IGNORECASE)
_FREEING = frozenset({"lvremove", "lvrename", "lvconvert", "lvreduce", "lvchange"})
"""Commands that deletes need: they run without LVM's backup of metadata if it cannot be written."""

CHUNK = 64 * 1024
"""Copy-on-write unit of thick snapshots. With LVM's 4 KiB the kernel would need 8 GiB of tables for 1 TiB."""

_EXCEPTION_BYTES = 16

Kind = Literal["thin", "pool", "cow", "plain"]


class NoThinTarget(NotSupported):
    """The kernel or the tools have no thin provisioning."""


class MetadataFull(NoSpace):
    """The volume group's metadata text does not fit into its area any more."""


class PoolFull(NoSpace):
    """The thin pool has no free data blocks, or no space for its own tables."""


class Incomplete(Unreachable):
    """A disk of the group is missing, and LVM refuses the operation because of it."""


@dataclass(frozen=True)
class Group:
    """The state of a volume group; sizes are in bytes."""

    uuid: str
    size: int
    free: int
    extent: int
    exported: bool
    tags: frozenset[str]
    metadata_size: int
    """The largest size of the metadata text."""
    metadata_free: int
    missing: Mapping[str, str]
    """UUIDs of physical volumes without a device, and the last known device of each; empty if unknown."""


@dataclass(frozen=True)
class Lv:
    """One logical volume, as reported by ``lvs``. ``size`` is the size that its consumer sees, also for a thick
    snapshot."""

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
    """Return a volume group's name. Raise ConfigError if it is not safe on a command line and in a path."""
    if not _GROUP_NAME.fullmatch(vg):
        raise ConfigError(f"{where} is {vg!r}; a name of letters, digits, _, +, . and - is expected.")
    return vg


def check_pool_size(size: str, where: str) -> str:
    """Return the size of a pool. Raise ConfigError if ``lvcreate`` would not accept it."""
    if not _POOL_SIZE.fullmatch(size):
        raise ConfigError(f"{where} is {size!r}; a size such as 500G, 2T or 95%FREE is expected.")
    return size


def cow_bytes(size: int) -> int:
    """Return the space with which a thick snapshot of this size can never overflow: all its chunks and their table."""
    chunks = -(-size // CHUNK)
    tables = -(-chunks // (CHUNK // _EXCEPTION_BYTES))
    # One chunk for the header, and one for the next table, which begins when the last one is full.
    return (chunks + tables + 2) * CHUNK


class Lvm:
    """LVM's commands on one volume group; each sees only the devices of that group."""

    def __init__(self, vg: str, *, use_sudo: bool, timeout_s: float):
        self.vg = vg
        self._recorded: str | None = None
        self._sudo = ("sudo", "-n") if use_sudo else ()
        self._timeout_s = timeout_s
        self._members: Members | None = None
        self._finding = threading.Lock()
        self._last_devices: dict[str, str] = {}
        self._strangers: frozenset[Pv] = frozenset()
        self._has_devices_option = True

    def recognise(self, uuid: str | None) -> None:
        """Identify the group by its UUID; None: by its name, while only one group has that name."""
        if uuid != self._recorded:
            self._recorded, self._members = uuid, None

    def path(self, lv: str) -> Path:
        """Return the device of a logical volume."""
        return Path("/dev") / self.vg / lv

    # --- reading --------------------------------------------------------------------------------------------

    def group(self) -> Group:
        """Find the group's devices, and return its data. Raise Unreachable if the group is not found."""
        with self._finding:
            return self._found()

    def _found(self) -> Group:
        rows = self._scanned()
        pvs = [
            Pv(row["pv_name"], row["pv_uuid"], row["vg_name"], row["vg_uuid"], *map(bool, _flags(row)))
            for row in rows
            if row["pv_uuid"]
        ]
        self._members, strangers = choose(self.vg, self._recorded, pvs, no_group=self._no_group())
        self._tell_of(frozenset(strangers))
        row = next(row for row in rows if row["vg_uuid"] == self._members.vg_uuid)
        known = {pv.uuid: pv.device for pv in pvs if pv.vg_uuid == self._members.vg_uuid and not pv.missing}
        self._last_devices |= known
        size = _int(row["vg_mda_size"]) // 2  # LVM keeps the former text until the new one is complete
        return Group(
            uuid=self._members.vg_uuid,
            size=_int(row["vg_size"]),
            free=_int(row["vg_free"]),
            extent=_int(row["vg_extent_size"]),
            exported=bool(row["vg_exported"]),
            tags=frozenset(filter(None, row["vg_tags"].split(","))),
            metadata_size=size,
            metadata_free=min(_int(row["vg_mda_free"]), size),
            missing={uuid: self._last_devices.get(uuid, "") for uuid in self._members.missing},
        )

    def _scanned(self) -> Sequence[Mapping[str, str]]:
        """Return the physical volumes on all devices that LVM scans; on logical volumes only if the group is not found
        elsewhere."""
        words = ("-a", *_REPORT_WORDS, "-o", _PV_FIELDS)
        rows: Sequence[Mapping[str, str]] = ()
        for config in ((_REPORT_CONFIG, _NO_LVS), (_REPORT_CONFIG,)):
            complaints: list[str] = []
            rows = _rows("pvs", "pv", self._call("pvs", words, config=config, complaints=complaints))
            self._last_devices |= dict(_LAST_DEVICE.findall("".join(complaints)))
            if any(row["vg_uuid"] == self._recorded if self._recorded else row["vg_name"] == self.vg for row in rows):
                break
        return rows

    def _tell_of(self, strangers: frozenset[Pv]) -> None:
        for pv in strangers - self._strangers:
            log.warning(
                "%s holds another volume group of the name %s, with the UUID %s, which is not used: keep guests' disks"
                " from LVM by the devices file or global_filter, or rename it: vgrename %s NEW-NAME",
                *(pv.device, self.vg, pv.vg_uuid, pv.vg_uuid),
            )
        self._strangers = strangers

    def lvs(self) -> dict[str, Lv]:
        """Return the group's logical volumes by name, without LVM's internal ones."""
        return {row["lv_name"]: _lv(row) for row in self._report(_LV_FIELDS)}

    def disks(self) -> Sequence[str]:
        """Return the devices of the group's physical volumes."""
        return list(self._there().devices)

    def extents(self, lv: str) -> Sequence[str]:
        """Return the physical extents of a linear volume, as ``lvextend`` takes them."""
        rows = self._report("lv_name,seg_pe_ranges")
        return [piece for row in rows if row["lv_name"] == lv for piece in row["seg_pe_ranges"].split()]

    def activation_lists(self) -> Mapping[str, Sequence[str]]:
        """Return the lists of lvm.conf of volumes that may be activated, and of those only for reading, where
        configured."""
        try:
            output = process.run(
                ("lvmconfig", "--typeconfig", "full", "activation"), timeout_s=self._timeout_s, package="lvm2"
            )
        except BackendError as exc:
            log.debug("the configuration of LVM was not read: %s", exc)
            return {}
        found = re.findall(r"^\s*(volume_list|read_only_volume_list)=(.*)$", output, re.MULTILINE)
        return {key: re.findall(r'"([^"]*)"', value) for key, value in found}

    # --- making ---------------------------------------------------------------------------------------------

    def create_pool(self, pool: str, size: str) -> None:
        """Make a thin pool that zeroes new blocks and passes discards down. Raises: NoThinTarget, NoSpace."""
        amount = ("-l" if "%" in size else "-L", size)
        self._run(
            "lvcreate", "-y", "--type", "thin-pool", *amount, "-Zy", "--discards", "passdown", "-n", pool, "--", self.vg
        )

    def create_thin(self, lv: str, gib: int, pool: str) -> None:
        """Make a thin volume. Raises: NameTaken, NoSpace."""
        self._run("lvcreate", "-y", "-Wn", "-V", f"{gib}g", "-T", "-n", lv, "--", f"{self.vg}/{pool}")

    def create_plain(self, lv: str, size: int) -> None:
        """Make a linear volume that still has the former bytes of its extents. Raises: NameTaken, NoSpace."""
        self._run("lvcreate", "-y", "-Wn", "-Zn", "-L", f"{size}b", "-n", lv, "--", self.vg)

    def snapshot_thin(self, origin: str, lv: str, *, tag: str = "", active: bool) -> None:
        """Make a thin volume that shares the origin's blocks. An inactive volume stays inactive until activated with
        -K."""
        activation = ("-kn", "-ay") if active else ("-ky",)
        self._run("lvcreate", "-y", "-s", *activation, *_tagged(tag), "-n", lv, "--", f"{self.vg}/{origin}")

    def snapshot_thick(self, origin: str, lv: str, stored: int, *, tag: str = "") -> None:
        """Make a copy-on-write snapshot with this much space. Raises: NameTaken, NoSpace, VolumeMissing."""
        amount = ("-c", f"{CHUNK // 1024}k", "-L", f"{stored}b")
        self._run("lvcreate", "-y", "-s", *amount, *_tagged(tag), "-n", lv, "--", f"{self.vg}/{origin}")

    # --- changing -------------------------------------------------------------------------------------------

    def extend(self, lv: str, gib: int, extents: Sequence[str] = ()) -> None:
        """Grow to a size, onto ``extents`` if given; do nothing if the volume has that size."""
        try:
            self._run("lvextend", "-L", f"{gib}g", "--", f"{self.vg}/{lv}", *extents)
        except ToolFailed as exc:
            if "matches existing size" not in exc.stderr:
                raise

    def reduce(self, lv: str, size: int, *, discard: bool) -> None:
        """Reduce a volume to a size in bytes."""
        self._run("lvreduce", "-f", "-y", "-L", f"{size}b", "--", f"{self.vg}/{lv}", config=_discarding(discard))

    def rename(self, lv: str, to: str) -> None:
        """Rename, also while open. Raises: VolumeMissing, NameTaken."""
        self._run("lvrename", "--", self.vg, lv, to)

    def activate(self, lv: str) -> None:
        """Activate a logical volume, which makes its device; without -K LVM would skip a thin snapshot."""
        self._run("lvchange", "-ay", "-K", "--", f"{self.vg}/{lv}")

    def deactivate(self, lv: str) -> None:
        """Deactivate a logical volume, which removes its device. Raises: InUse."""
        self._run("lvchange", "-an", "--", f"{self.vg}/{lv}")

    def tag(self, lv: str, tag: str) -> None:
        """Add a tag."""
        self._run("lvchange", "--addtag", tag, "--", f"{self.vg}/{lv}")

    def untag(self, lv: str, tag: str) -> None:
        """Remove a tag; do nothing if it is missing."""
        self._run("lvchange", "--deltag", tag, "--", f"{self.vg}/{lv}")

    def tag_group(self, add: Collection[str], remove: Collection[str]) -> None:
        """Add tags to the group itself, and remove others."""
        words = [word for tag in sorted(add) for word in ("--addtag", tag)]
        words += [word for tag in sorted(remove) for word in ("--deltag", tag)]
        if words:
            self._run("vgchange", *words, "--", self.vg)

    def split(self, snapshot: str) -> None:
        """Detach a thick snapshot: it becomes a plain volume with the bytes of its copy-on-write area. Raises:
        InUse."""
        self._run("lvconvert", "-y", "--splitsnapshot", "--", f"{self.vg}/{snapshot}")

    def join(self, origin: str, snapshot: str) -> None:
        """Attach a split snapshot again; the origin's bytes must not have changed since."""
        chunk = ("-c", f"{CHUNK // 1024}k")
        self._run("lvconvert", "-y", "-Zn", *chunk, "--type", "snapshot", "--", f"{self.vg}/{origin}", snapshot)

    def remove(self, lv: str, *, discard: bool) -> None:
        """Remove a logical volume with its thick snapshots; do nothing if it is missing. Raises: InUse."""
        with suppress(VolumeMissing):
            self._run("lvremove", "-f", "-y", "--", f"{self.vg}/{lv}", config=_discarding(discard))

    # --- running commands, parsing results --------------------------------------------------------------------

    def _report(self, fields: str) -> Sequence[Mapping[str, str]]:
        """Return the rows of ``lvs`` for the group that was found, and verify that they belong to no other group."""
        words = (*_REPORT_WORDS, "-o", f"{fields},{_PROOF_FIELDS}", "--", self.vg)
        for _ in range(2):
            members = self._there()
            rows = _rows("lvs", "lv", self._run("lvs", *words, config=(_REPORT_CONFIG,)))
            if not rows:  # an empty report does not identify its group
                self.group()
            if all(_proof(row) == (members.vg_uuid, len(members.missing)) for row in rows):
                return rows
            self.group()
        if any(row["vg_uuid"] != self._there().vg_uuid for row in rows):
            raise Unreachable(f"The volume group {self.vg} was replaced by another while it was being read.")
        return rows  # its disks appear and disappear; each command detects that by itself

    def _run(self, verb: str, *args: str, config: Sequence[str] = ()) -> str:
        members = self._there()
        try:
            return self._call(verb, args, config=config, members=members)
        except ToolFailed as exc:
            if not _ELSEWHERE.search(exc.stderr):
                raise self._named(exc) from exc
            self.group()
            again = self._there()
            if again == members:
                raise self._named(exc) from exc
            try:
                return self._call(verb, args, config=config, members=again)
            except ToolFailed as exc:
                raise self._named(exc) from exc

    def _there(self) -> Members:
        """Return the group's devices; find them again if a device name now belongs to another disk."""
        with self._finding:
            if self._members is None or not self._members.are_unchanged():
                self._found()
            assert self._members is not None
            return self._members

    def _call(
        self,
        verb: str,
        args: Sequence[str],
        *,
        config: Sequence[str],
        members: Members | None = None,
        complaints: list[str] | None = None,
    ) -> str:
        """Run a tool on the devices of ``members``, or on all devices. A delete runs without LVM's backup if the backup
        has no space."""
        where: tuple[str, ...] = ()
        if members is not None and self._has_devices_option:
            where = ("--devices", ",".join(members.devices))
        elif members is not None:
            config = (*config, _filter(members.devices))
        argv = (*self._sudo, verb, *where)
        try:
            return self._process((*argv, *_settings(config), *args), complaints)
        except ToolFailed as exc:
            if where and _NO_OPTION.search(exc.stderr):  # before LVM 2.03.12
                self._has_devices_option = False
                return self._call(verb, args, config=config, members=members, complaints=complaints)
            full = _NO_BACKUP.search(exc.stderr)
            if full is None:
                if members is None:
                    raise self._named(exc) from exc
                raise
            if verb not in _FREEING:
                raise NoSpace(
                    f"LVM cannot write its backup of metadata, {full[1]}, so its changes are refused. Free space"
                    f" there. Volumes can be deleted meanwhile. ({_essence(exc.stderr)})"
                ) from exc
            log.warning("%s runs without LVM's backup of metadata, because that has no space: %s", verb, full[1])
            return self._process((*argv, *_settings((*config, _NO_BACKUPS)), *args), complaints)

    def _process(self, argv: Sequence[str], complaints: list[str] | None) -> str:
        package = "sudo" if self._sudo else "lvm2"
        return process.run(argv, timeout_s=self._timeout_s, package=package, complaints=complaints)

    def _no_group(self) -> str:
        return (
            f"There is no volume group {self.vg} on the devices that LVM uses: see pvs -a. If it exists, check that"
            " its disk is present, and that neither global_filter in lvm.conf nor the devices file (lvmdevices) hides"
            f" it. To create it: vgcreate {self.vg} DEVICE. Otherwise correct volume_group."
        )

    def _named(self, exc: ToolFailed) -> BackendError:
        """Return the specific error for LVM's message; if there is none, return a ToolFailed with only the errors."""
        complaint = "\n".join(_complaints(exc.stderr))
        for words, error, sentence in _MEANINGS:
            if words.search(complaint):
                message = sentence.format(vg=self.vg, no_group=self._no_group(), words=_essence(exc.stderr))
                return error(message)
        return ToolFailed(exc.argv, exc.code, complaint)


# The order matters: root causes come first, since LVM often also reports consequences.
_MEANINGS: Sequence[tuple[re.Pattern[str], type[BackendError], str]] = tuple(
    (re.compile(words), error, sentence)
    for words, error, sentence in (
        (
            r"sudo: .*password|sudo: a terminal is required|not in the sudoers|not allowed to (?:execute|run)",
            Unreachable,
            "sudo does not let this user run LVM without a password; allow in sudoers, with NOPASSWD: pvs, lvs,"
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
            r"while PVs are missing|is missing PV|activation of partial LV|Cannot (?:restore|change) .*missing PV",
            Incomplete,
            "Volume group {vg} lacks a physical volume, so LVM refuses the change: bring the disk back, or see"
            " vgreduce --removemissing. ({words})",
        ),
        (
            r"metadata on .* (?:exceeds maximum metadata size|too large for circular buffer)",
            MetadataFull,
            "The metadata area of volume group {vg} is full, and nothing can be added to it. Delete volumes or"
            " snapshots, or add a disk with a larger area: vgextend --metadatasize 64m {vg} DEVICE, and then pvchange"
            " --metadataignore y on the others. ({words})",
        ),
        (
            r"volume_list",
            Unreachable,
            "volume_list in lvm.conf does not let LVM activate volumes of {vg}. Add {vg} to it. ({words})",
        ),
        (
            r"with duplicate PV devices",
            Unreachable,
            "LVM finds a disk of volume group {vg} twice, and changes nothing until one is removed: see pvs -a -o"
            " +pv_duplicate. ({words})",
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
            PoolFull,
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
        (r"Pool .* not found in [Vv]olume group", Unreachable, "The thin pool no longer exists in {vg}. ({words})"),
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


_REPORT_WORDS = ("-qq", "--reportformat", "json", "--units", "b", "--nosuffix")


def _complaints(stderr: str) -> Sequence[str]:
    """Return the lines with errors; if there are none, the warnings."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return [line for line in lines if "WARNING: " not in line] or lines


def _essence(stderr: str) -> str:
    return " ".join(_complaints(stderr))[:300].rstrip(".")


def _rows(verb: str, kind: str, output: str) -> Sequence[Mapping[str, str]]:
    try:
        return [row for part in json.loads(output)["report"] for row in part.get(kind, ())]
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise BackendError(f"{verb} printed something that is not its JSON report: {output[:200]!r}") from exc


def _settings(config: Sequence[str]) -> tuple[str, ...]:
    return ("--config", " ".join(config)) if config else ()


def _flags(row: Mapping[str, str]) -> tuple[str, str]:
    return row["pv_missing"], row["pv_duplicate"]


def _proof(row: Mapping[str, str]) -> tuple[str, int]:
    return row["vg_uuid"], _int(row["vg_missing_pv_count"])


def _filter(devices: Iterable[str]) -> str:
    """Return a setting by which LVM sees only these devices, as with ``--devices``."""
    accepted = ", ".join(f'"a|^{re.escape(device)}$|"' for device in devices)
    return f'devices/global_filter=[{accepted}, "r|.*|"]'


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
    """Return an explicit setting for on and off: lvm.conf may have either, and an extent that is used again must keep
    its zeros."""
    return (f"devices/issue_discards={int(discard)}",)
