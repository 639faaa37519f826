"""Config -> parts: database URL, backends, targets, policy. For the service, and for commands that run beside it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blockstore import private_files
from blockstore.backends import loader
from blockstore.backends.contract import Backend
from blockstore.config import Config
from blockstore.errors import BackendError, ConfigError
from blockstore.keys.keyring import Keyring
from blockstore.policy.rules import Overrides, Policy
from blockstore.service_names import pool_host
from blockstore.targets import loader as target_loader
from blockstore.targets.contract import ATTACH_LOCAL, LOCAL, Target


def policy_file(config: Config) -> Path:
    """Return the path of the site's policy file, which may not exist. Raise ConfigError if a named file is missing."""
    named = config.service.policy_file
    if named is not None and not named.exists():
        raise ConfigError(f"{config.source}: [service] policy_file: there is no {named}.")
    if named is not None:
        return named
    file = private_files.prove_state_dir(config.state_dir) / "policy.yaml"
    with private_files.explained(config.state_dir):
        private_files.check_file(file)
    return file


def load_policy(config: Config) -> Policy:
    """Return the rules in force. Raises ConfigError."""

    def read(_file: Path) -> Overrides | None:
        file = policy_file(config)  # checked again: it may be another file than at the start
        if not os.path.lexists(file):
            return None
        from blockstore.policy.file import PolicyFile  # it takes longer to import than the rest of a start

        return PolicyFile(file)

    return Policy(policy_file(config), read)


def database_url(config: Config) -> str:
    """Return the URL of the database. Raise ConfigError if another user has planted a file in the state directory."""
    if config.database.url:
        return config.database.url
    file = private_files.prove_state_dir(config.state_dir) / "blockstore.db"
    with private_files.explained(config.state_dir):
        private_files.check_database(file)  # SQLite opens by path, and follows links
    return f"sqlite:///{file}"


def load_backends(config: Config, state_dir: Path) -> dict[str, Backend]:
    """Return every configured backend by pool name, NODE@BACKEND#POOL. Raises ConfigError."""
    found: dict[str, Backend] = {}
    for section in config.backends:
        for backend in loader.load(section, state_dir / section.name):
            found[pool_host(config.service.node, section.name, backend.pool)] = backend
    return found


def load_targets(
    config: Config, backends: Mapping[str, Backend], state_dir: Path, keyring: Keyring
) -> tuple[dict[str, Target], dict[str, str | None]]:
    """Return the targets by name, and the target's name of each pool, None without a target. Raises ConfigError."""
    targets: dict[str, Target] = {}
    serving: dict[str, str | None] = {}
    chosen = {section.name: section.pool.target for section in config.backends}

    def target(name: str) -> Target:
        if name not in targets:
            targets[name] = target_loader.load(config.target(name), state_dir / "targets" / name, keyring.owner)
        return targets[name]

    target(LOCAL)  # for consumers on this node, regardless of the backends
    for section in config.targets:
        target(section.name)  # also targets that no backend names any more, to withdraw their exports
    for pool, backend in backends.items():
        if backend.is_direct and chosen[backend.name] in ("", "direct"):
            serving[pool] = None
            continue
        name = chosen[backend.name] or (LOCAL if backend.file_format == "raw" else "nbd")
        if backend.file_format not in target(name).capabilities().formats:
            raise ConfigError(
                f"{config.source}: [backend:{backend.name}] target is {name}, which cannot export"
                f" {backend.file_format} files; the target nbd can."
            )
        serving[pool] = name
    return targets, serving


def local_connector() -> dict[str, Any]:
    """Return the connector of a consumer on this node that wants the path itself."""
    host = socket.gethostname()
    return {"host": host, "ip": "127.0.0.1", "multipath": False, ATTACH_LOCAL: True}


def configured_targets(config: Config) -> dict[str, Target]:
    """Return the targets for a command beside the service. Raises ConfigError."""
    state_dir = private_files.prepare_state_dir(config.state_dir)
    keyring = Keyring(state_dir / "attachments.key")
    targets, _ = load_targets(config, load_backends(config, state_dir), state_dir, keyring)
    return targets


def probe_sessions(config: Config) -> tuple[dict[str, tuple[str, ...]], dict[str, str]]:
    """Return the connected initiators by attachment id, and errors by target name. Raises ConfigError."""
    connected: dict[str, tuple[str, ...]] = {}
    untold: dict[str, str] = {}
    for name, target in configured_targets(config).items():
        try:
            connected |= target.sessions()
        except BackendError as exc:
            untold[name] = exc.message
    return connected, untold


def words(text: str) -> list[str]:
    """Return the items of a comma-separated list."""
    return [word.strip() for word in text.split(",") if word.strip()]
