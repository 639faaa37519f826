"""Health checks, capabilities, connections and secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blockstore.conformance.sandbox import expect
from blockstore.conformance.target.case import case
from blockstore.conformance.target.pair import PairSandbox, keeps_secret


class AnswerCases:
    """Health checks, capabilities, connections and secrets."""

    @case()
    def test_check_twice(self, sandbox: PairSandbox) -> None:
        """check() succeeds, again and again, and exports nothing."""
        sandbox.target.check()
        sandbox.target.check()
        sandbox.lists_exports()

    @case()
    def test_capabilities_are_steady_and_whole(self, sandbox: PairSandbox) -> None:
        """Capabilities stay the same, and name a protocol."""
        has = sandbox.target.capabilities()
        expect(
            has == sandbox.target.capabilities() == sandbox.again().capabilities(), "capabilities() must not change."
        )
        expect(has.protocol, "capabilities() must name a protocol.")

    @case()
    def test_the_connection_can_be_stored(self, sandbox: PairSandbox) -> None:
        """A connection is JSON, and says where its secret belongs without having it."""
        exported = sandbox.exported(sandbox.volume())
        data = dict(exported.connection.data)
        expect(json.loads(json.dumps(data)) == data, f"A connection's data must be JSON: {data}")
        expect(exported.connection.secret_as not in data, "A connection's data must not have the secret's key.")
        keeps_secret(exported.connection, exported.export.secret)
        keeps_secret(exported.export, exported.export.secret)

    @case()
    def test_secrets_stay_secret(self, sandbox: PairSandbox) -> None:
        """A secret is in no log, on no command line, and in no file that others may read."""
        with _logged() as lines:
            exported = sandbox.exported(sandbox.volume())
            sandbox.makes(exported.export)
            for line in _command_lines():
                expect(exported.export.secret not in line, "The secret stands on a command line.")
            for path in sandbox.target.state_dir.rglob("*"):
                if path.is_file() and path.stat().st_mode & 0o077:
                    expect(
                        exported.export.secret.encode() not in path.read_bytes(), f"Others may read a secret: {path}"
                    )
            sandbox.target.withdraw(exported.id)
        expect(not any(exported.export.secret in line for line in lines), "The secret stands in the log.")


@contextmanager
def _logged() -> Iterator[list[str]]:
    """Collect the log messages of blockstore and its plugins, from level DEBUG."""
    lines: list[str] = []
    handler = logging.Handler(logging.DEBUG)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("blockstore", "blockstore_plugins")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def _command_lines() -> Iterator[str]:
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                yield (process / "cmdline").read_text(errors="replace")
            except OSError:
                continue
