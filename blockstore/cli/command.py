"""Common parts of all commands: --config, --state-dir, and errors as one sentence."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blockstore.config import load
from blockstore.errors import BlockstoreError, DatabaseAway
from blockstore.server.logs import printable

_config_option = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="Configuration file. Without it, all options have their defaults.",
)


_state_option = click.option(
    "--state-dir", type=click.Path(path_type=Path), help="Use this state directory instead of the configured one."
)


def configured(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --config and --state-dir, and turn errors into one sentence."""

    @_config_option
    @_state_option
    @click.pass_context
    def command(ctx: click.Context, /, config_path: Path | None, state_dir: Path | None, **kw: Any) -> Any:
        try:
            config = load(config_path)
            if state_dir is not None:
                config = dataclasses.replace(
                    config, service=dataclasses.replace(config.service, state_dir=state_dir.absolute())
                )
            return ctx.invoke(function, config=config, **kw)
        except BlockstoreError as exc:
            text = f"the database cannot be used: {exc.detail}" if isinstance(exc, DatabaseAway) else exc.message
            click.echo(f"blockstore: {printable(text)}", err=True)
            sys.exit(1)
        except _database_errors() as exc:
            text = next(iter(str(getattr(exc, "orig", None) or exc).splitlines()), type(exc).__name__)
            click.echo(f"blockstore: the database cannot be used: {text}", err=True)
            sys.exit(1)

    command.__doc__ = function.__doc__
    command.__click_params__ = [  # type: ignore[attr-defined]
        *getattr(function, "__click_params__", []),
        *getattr(command, "__click_params__", []),
    ]
    command.__name__ = function.__name__
    return command


def _database_errors() -> type[Exception]:
    # Evaluated only when an error was raised, so that a command without a database need not import this.
    from sqlalchemy.exc import DBAPIError

    return DBAPIError
