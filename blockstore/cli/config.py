"""The command group config: the configuration in force, and an example of one."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from blockstore.cli.command import configured
from blockstore.config import SECTIONS, Config, PoolConfig, as_text


@click.group("config")
def config_group() -> None:
    """Print the configuration."""


@config_group.command("show")
@configured
def config_show(config: Config) -> None:
    """Print the configuration in force, with secrets hidden."""
    from blockstore.backends import loader

    click.echo(f"# from {config.source}")
    for section in SECTIONS:
        _section(section, getattr(config, section))
    for configured_backend in config.backends:
        options = loader.options(configured_backend)
        _section(f"backend:{configured_backend.name}", configured_backend.pool, options)


def _section(name: str, *parts: Any) -> None:
    click.echo(f"\n[{name}]")
    for part in parts:
        for f in dataclasses.fields(part):
            value = getattr(part, f.name)
            click.echo(f"{f.name} = {'(hidden)' if f.metadata.get('secret') and value else as_text(value)}".rstrip())


@config_group.command("example")
def config_example() -> None:
    """Print every option with its default and its description, as in config.example.ini."""
    from blockstore.backends import loader
    from blockstore.plugins import installed
    from blockstore.targets import loader as target_loader

    click.echo(_EXAMPLE_HEAD)
    for section, cls in SECTIONS.items():
        _example(f"\n[{section}]", cls)
    click.echo(_EXAMPLE_BACKENDS)
    _example("#[backend:NAME]", PoolConfig)
    for name in loader.plugins():
        _example(f"\n# The plugin {name} has these options too.\n#plugin = {name}", loader.plugin(name, "").Options)
    click.echo(_EXAMPLE_TARGETS)
    for name in installed(target_loader.GROUP):
        _example(f"\n#[target:{name}]\n#plugin = {name}", target_loader.plugin(name, "").Options)


_EXAMPLE_HEAD = """\
# Every option of blockstore with its default. Nothing here needs to be set: `blockstore serve` runs without a file.
# Copy what you want to change, remove the # before it, and name the file: blockstore serve --config FILE
#
# Printed by `blockstore config example`; a test compares the two."""


_EXAMPLE_BACKENDS = """
# One section [backend:NAME] for each backend, as many as you like; without any there is one, of the plugin directory.
# These options are common to all."""


_EXAMPLE_TARGETS = """
# One section [target:NAME] for each way in which volumes leave this node, for the option `target` of backends. Without
# a section a plugin's name stands for the plugin with its defaults. These are the plugins and their options."""


def _example(header: str, cls: Any) -> None:
    click.echo(header)
    _, _, about = (cls.__doc__ or "").partition("]: ")
    if about:
        click.echo(f"# {about[0].upper()}{about[1:]}")
    for f in dataclasses.fields(cls):
        choices = f.metadata.get("choices")
        one_of = f" One of: {', '.join(choices)}." if choices else ""
        click.echo(f"# {f.metadata['help']}{one_of}")
        click.echo(f"#{f.name} = {'' if f.default is dataclasses.MISSING else as_text(f.default)}".rstrip())
