"""Names of volumes and snapshots."""

from __future__ import annotations

from blockstore.conformance.backend.case import case, enter
from blockstore.conformance.sandbox import Sandbox, refuses
from blockstore.errors import BackendError

HOSTILE_NAMES = (
    "", ".", "..", "../up", "a/b", "/etc/passwd", "-f", "--config=x", "@tag", "a b", "a\nb", "a\n", "a\0b", "a;reboot",
    "$(id)", "a*", "a.raw", "json:{}", "nbd:x", "a@b", "1st", "_x", "ünicode", "a" * 64,
)  # fmt: skip


class NameCases:
    """Names of volumes and snapshots."""

    @case()
    def test_hostile_names_are_refused(self, sandbox: Sandbox) -> None:
        """A name that is a path, an option, a pattern or too long is refused by every method with BackendError."""
        good = sandbox.volume("kept")
        for bad in HOSTILE_NAMES:
            refuses(BackendError, sandbox.backend.create_volume, bad, 1)
            refuses(BackendError, sandbox.backend.delete_volume, bad)
            refuses(BackendError, sandbox.backend.extend_volume, bad, 2)
            refuses(BackendError, enter, sandbox.backend.open_volume, bad, "r+b")
            if sandbox.has.snapshots:
                refuses(BackendError, sandbox.backend.create_snapshot, good, bad)
                refuses(BackendError, sandbox.backend.create_snapshot, bad, "good")
                refuses(BackendError, sandbox.backend.delete_snapshot, good, bad)
                refuses(BackendError, sandbox.backend.delete_snapshot, bad, "good")
                refuses(BackendError, enter, sandbox.backend.open_snapshot, good, bad)
            if sandbox.has.group_snapshots:
                refuses(BackendError, sandbox.backend.create_group_snapshot, {good: sandbox.prefix + "s", bad: "good"})
                refuses(BackendError, sandbox.backend.create_group_snapshot, {good: bad})
            if sandbox.has.clone:
                refuses(BackendError, sandbox.backend.clone_volume, bad, 1, good)
                refuses(BackendError, sandbox.backend.clone_volume, sandbox.prefix + "x", 1, bad)
                refuses(BackendError, sandbox.backend.create_volume_from_snapshot, bad, 1, good, "good")
                refuses(BackendError, sandbox.backend.create_volume_from_snapshot, sandbox.prefix + "x", 1, good, bad)
            if sandbox.has.revert:
                refuses(BackendError, sandbox.backend.revert_volume, good, bad)
                refuses(BackendError, sandbox.backend.revert_volume, bad, "good")
        sandbox.lists({good: 1})
        sandbox.volume_holds(good, "kept")

    @case()
    def test_names_may_be_long(self, sandbox: Sandbox) -> None:
        """Names of 63 characters work, and differ in their last one."""
        one, two = ((sandbox.name() + "-" + "x" * 63)[:62] + end for end in "ab")
        sandbox.made_volumes += [one, two]
        sandbox.backend.create_volume(one, 1)
        sandbox.backend.create_volume(two, 2)
        sandbox.lists({one: 1, two: 2})
