"""The owner mark and the identity of the storage."""

from __future__ import annotations

import re

from blockstore.conformance.backend.case import case
from blockstore.conformance.sandbox import Sandbox, expect, refuses
from blockstore.errors import NotSupported, Unreachable

_IDENTITY = re.compile(r"[!-~]{1,200}")


class OwnerCases:
    """The owner mark and the identity of the storage."""

    @case(lacks="owner_mark")
    def test_undeclared_owner_mark_refuses(self, sandbox: Sandbox) -> None:
        """Without owner_mark, asking for it and changing it raise NotSupported."""
        refuses(NotSupported, sandbox.backend.owner)
        refuses(NotSupported, sandbox.backend.change_owner, None, "somebody")

    @case("owner_mark")
    def test_declared_owner_mark_works(self, sandbox: Sandbox) -> None:
        """The mark of an installation stays when another one comes, unless that one names it as the former."""
        backend = sandbox.backend
        before = backend.owner()
        first = before or sandbox.name()
        try:
            backend.change_owner(None, first)
            expect(backend.owner() == first, "owner() must tell the mark that change_owner() made.")
            identity = backend.identity()
            expect(
                _IDENTITY.fullmatch(identity) is not None,
                f"identity() must be 1 to 200 printable characters: {identity!r}.",
            )
            backend.change_owner(None, sandbox.name())
            backend.change_owner("somebody-else", sandbox.name())
            backend.change_owner("somebody-else", None)
            expect(backend.owner() == first, "A mark must stay when its owner is not named as the former one.")
            sandbox.lists({})
            if before is None:  # else a running service would notice the change
                second = sandbox.name()
                backend.change_owner(first, second)
                expect(backend.owner() == second, "A mark must change when its owner is named as the former one.")
                name = sandbox.volume()
                backend.delete_volume(name)
                expect(backend.owner() == second, "A mark must stay when volumes go.")
                backend.change_owner(second, second)
            expect(backend.identity() == identity, "identity() must stay the same, whoever owns the storage.")
        finally:
            if before is None:
                backend.change_owner(backend.owner(), None)
        expect(backend.owner() == before, "change_owner(FORMER, None) must remove the mark.")

    @case("owner_mark")
    def test_storage_that_is_not_recognised_is_not_touched(self, sandbox: Sandbox) -> None:
        """Where another storage is recorded, that is proved, and a missing volume is not taken for a deleted one."""
        backend = sandbox.backend
        name, missing = sandbox.volume(), sandbox.name()
        before = backend.recognised
        backend.recognise(f"{backend.identity()}-not")
        try:
            refuses(Unreachable, backend.prove_identity)
            refuses(Unreachable, backend.delete_volume, missing)
        finally:
            backend.recognise(before)
        backend.prove_identity()
        backend.delete_volume(missing)
        sandbox.lists({name: 1})
