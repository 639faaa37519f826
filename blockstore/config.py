"""Configuration: one ini file read into frozen dataclasses; each mistake is one sentence naming file, section, option.

Read once by ``app/service.py`` and the command line; every component gets only the part it needs.
``config.example.ini`` is compared with these classes by ``tests/test_config.py``.
"""

from __future__ import annotations

import configparser
import dataclasses
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from blockstore import address
from blockstore.errors import ConfigError

T = TypeVar("T")

BACKEND_PREFIX = "backend:"
TARGET_PREFIX = "target:"


def option(
    help: str, default: Any = ..., *, secret: bool = False, secret_file: bool = False, choices: tuple[str, ...] = ()
) -> Any:
    """Declare one option: its sentence for config.example.ini, its default, whether logs must hide it.

    ``secret_file``: the option names a file that holds a secret.
    """
    metadata = {"help": help, "secret": secret, "secret_file": secret_file, "choices": choices}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Section [service]."""

    listen: str = option("Address and port of the API. Port 0 picks a free one.", "127.0.0.1:8776")
    state_dir: Path | None = option(  # noqa: RUF009
        "Directory for database, keys and directory volumes; by default blockstore/ below $XDG_STATE_HOME.", None
    )
    node: str = option("Name of this node in host fields (NODE@BACKEND#POOL). Do not change it later.", "blockstore")
    auth: str = option(
        "How callers are authenticated: builtin has users and tokens of its own, keystone asks the Keystone of "
        "[keystone], none trusts every caller and is for loopback.",
        "builtin",
        choices=("builtin", "keystone", "none"),
    )
    insecure: bool = option("Serve without authentication on an address that others can reach.", False)
    tls_certificate: Path | None = option(  # noqa: RUF009
        "Certificate with its chain, in PEM. The API is then served over HTTPS.", None
    )
    tls_key: Path | None = option("Private key of the certificate, in PEM.", None, secret_file=True)  # noqa: RUF009
    tls_ca: Path | None = option(  # noqa: RUF009
        "CA certificate for clients, named by `blockstore openrc`. Leave it empty if clients know the CA.", None
    )
    policy_file: Path | None = option(  # noqa: RUF009
        "Policy rules in the format of oslo.policy; by default policy.yaml in the state directory, if it exists. "
        "Needs blockstore[policy]. Read again when it changes. Refused if other users could change it.",
        None,
    )
    public_endpoint: str = option(
        "URL by which clients reach the service, without /v3: for links, the catalogue and `blockstore openrc`. By"
        " default the URL of the request.",
        "",
    )
    trusted_proxies: str = option(
        "Addresses and networks of proxies, such as 127.0.0.1, 192.0.2.0/24. X-Forwarded-For, -Proto, -Host and "
        "-Prefix are trusted from these proxies.",
        "",
    )
    availability_zone: str = option("Availability zone of backends without an availability_zone.", "nova")
    default_volume_type: str = option("Volume type of volumes that are created without one.", "__DEFAULT__")
    max_limit: int = option("Maximum number of items on one page of a list.", 1000)
    api_threads: int = option(
        "Threads that answer requests. 0 means 1 with SQLite, where more threads would wait for each other, and 4 "
        "with PostgreSQL.",
        0,
    )
    connections_per_address: int = option("Connections that one address (of IPv6 one /64) may hold open.", 256)
    workers: int = option(
        "Storage operations that may run at once on one pool. One more is allowed for a project without a running one.",
        4,
    )
    migration_workers: int = option(
        "Volumes that may be migrated at once, besides those operations. One more is allowed for a project without"
        " a migration.",
        2,
    )
    attachments_per_volume: int = option(
        "Attachments of one volume, connections of os-initialize_connection included; -1 means no limit.", 16
    )
    attachments_per_project: int = option(
        "Attachments of a project, besides the first one of each of its volumes; -1 means no limit.", 64
    )
    operation_attempts: int = option("Number of times an operation is started before it fails.", 5)
    operation_keep_days: int = option("Days to keep finished operations and messages.", 30)
    attach_timeout_s: float = option(
        "Seconds that a request waits for an attach, a detach or the list of a pool.", 60.0
    )
    report_interval_s: float = option(
        "Seconds between health checks of each backend, which also read its capacity.", 30.0
    )
    drain_timeout_s: float = option("Seconds that a clean stop waits for running operations.", 20.0)


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """Section [identity]: the identity of `auth = builtin`."""

    token_lifetime_s: int = option("Lifetime of a token in seconds.", 3600)
    tokens_per_user: int = option(
        "Tokens of one user. Beyond this number the tokens that expire first are deleted.", 100
    )
    login_failures: int = option("Failed logins for one user from one address before further logins are delayed.", 10)
    login_pause_s: int = option("Maximum delay of a login in seconds. The delay doubles with each failed login.", 30)
    region: str = option("Name of the region in the catalogue.", "RegionOne")


@dataclass(frozen=True, kw_only=True)
class KeystoneConfig:
    """Section [keystone]: the Keystone of `auth = keystone`, and who this service is there."""

    auth_url: str = option("URL of Keystone, such as http://keystone:5000/v3.", "")
    public_url: str = option("URL of Keystone that callers without a token are told; by default auth_url.", "")
    username: str = option("User of this service in Keystone.", "blockstore")
    password: str = option("Password of that user.", "", secret=True)
    project_name: str = option("Project of that user.", "service")
    user_domain_name: str = option("Domain of the user.", "Default")
    project_domain_name: str = option("Domain of the project.", "Default")
    region_name: str = option("Region of the Keystone endpoint to use; by default any.", "")
    interface: str = option(
        "Interface of the Keystone endpoint to use.", "internal", choices=("public", "internal", "admin")
    )
    cafile: str = option("CA certificate to verify Keystone's certificate; by default the system's.", "")
    memcached_servers: str = option(
        "memcached servers that cache tokens, HOST:PORT,...; by default this process caches them.", ""
    )
    token_cache_s: int = option(
        "Seconds to cache a valid token before Keystone is asked again; -1 disables the cache.", 30
    )
    service_token_roles: str = option("Roles that identify the token of another service.", "service")


@dataclass(frozen=True, kw_only=True)
class DatabaseConfig:
    """Section [database]."""

    url: str = option(
        "SQLAlchemy URL, such as postgresql+psycopg://USER:PASSWORD@HOST/NAME;"
        " by default SQLite in the state directory.",
        "",
        secret=True,
    )
    timeout_s: float = option(
        "Time limit of a PostgreSQL statement in seconds. A lock or a connection may take half of it.", 10.0
    )


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """Section [log]."""

    level: str = option(
        "Lowest level to log. SIGHUP reads it again.", "info", choices=("debug", "info", "warning", "error", "critical")
    )
    format: str = option(
        "Format of the log, one line per event: plain text for people, JSON for programs.",
        "plain",
        choices=("plain", "json"),
    )


@dataclass(frozen=True, kw_only=True)
class QuotaConfig:
    """Section [quota]: limits of each project; -1 means none."""

    volumes: int = option("Volumes.", 10)
    snapshots: int = option("Snapshots.", 10)
    gigabytes: int = option("GiB of volumes and snapshots together.", 1000)
    per_volume_gigabytes: int = option("GiB of one volume.", -1)
    groups: int = option("Groups of volumes.", 10)
    backups: int = option("Backups.", 10)
    backup_gigabytes: int = option("GiB of backups.", 1000)


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Section [scheduler]."""

    filters: str = option(
        "Filters that a pool must pass, applied from left to right.",
        "AvailabilityZoneFilter, CapacityFilter, CapabilitiesFilter, DriverFilter, SameBackendFilter,"
        " DifferentBackendFilter",
    )
    weighers: str = option("Weighers whose sum ranks the pools that pass.", "CapacityWeigher")
    capacity_weight_multiplier: float = option(
        "Weight of free capacity. A negative weight fills pools one by one.", 1.0
    )
    allocated_capacity_weight_multiplier: float = option("Weight of allocated capacity.", -1.0)
    volume_number_multiplier: float = option("Weight of the number of volumes.", -1.0)
    goodness_weight_multiplier: float = option("Weight of goodness_function.", 1.0)
    chance_weight_multiplier: float = option("Weight of a random number.", 1.0)
    max_attempts: int = option("Number of pools to try before a create fails.", 3)

    def multiplier(self, name: str) -> float:
        """Return a configured multiplier by option name; 1.0 for a custom weigher."""
        return float(getattr(self, name, 1.0))


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """Options that every [backend:NAME] section has, for any plugin."""

    plugin: str = option("Name of the plugin: directory, lvm, memory, or one that is installed beside blockstore.")
    target: str = option(
        "Target that exports the volumes: a [target:NAME], or the name of a target plugin to use it with its "
        "defaults. By default local, and nbd for qcow2; none for rbd and nfs, whose consumers reach the storage "
        "themselves.",
        "",
    )
    volume_backend_name: str = option(
        "Name that the extra spec volume_backend_name of volume types selects; by default the NAME of the section.", ""
    )
    availability_zone: str = option("Availability zone; by default that of [service].", "")
    reserved_percentage: int = option("Percentage of the pool that new volumes may not use.", 10)
    max_over_subscription_ratio: str = option(
        "Over-subscription of a thin pool: the sum of volume sizes, in multiples of the pool's size. A number from"
        " 1, or auto.",
        "1.5",
    )
    fill_limit_percentage: int = option(
        "Physical fill of a thin pool, in percent, from which new volumes are refused.", 85
    )
    filter_function: str = option("Expression that must be true for a volume to be placed here (DriverFilter).", "")
    goodness_function: str = option("Expression with a value from 0 to 100 for GoodnessWeigher.", "")

    @property
    def over_subscription(self) -> float | typing.Literal["auto"]:
        """Return the ratio in the form that the scheduler uses."""
        return "auto" if self.max_over_subscription_ratio == "auto" else float(self.max_over_subscription_ratio)


@dataclass(frozen=True, kw_only=True)
class BackendSection:
    """One [backend:NAME] section: the common options, and those of the plugin."""

    name: str
    pool: PoolConfig
    plugin_options: Mapping[str, str]
    source: str


@dataclass(frozen=True, kw_only=True)
class TargetSection:
    """One [target:NAME] section: the plugin, and the options for it."""

    name: str
    plugin: str
    plugin_options: Mapping[str, str]
    source: str


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration."""

    service: ServiceConfig = ServiceConfig()
    identity: IdentityConfig = IdentityConfig()
    keystone: KeystoneConfig = KeystoneConfig()
    database: DatabaseConfig = DatabaseConfig()
    log: LogConfig = LogConfig()
    quota: QuotaConfig = QuotaConfig()
    scheduler: SchedulerConfig = SchedulerConfig()
    backends: tuple[BackendSection, ...] = ()
    targets: tuple[TargetSection, ...] = ()
    source: str = "the defaults"

    def target(self, name: str) -> TargetSection:
        """Return the section of a target; for a name without a section, one of the plugin with no options."""
        for section in self.targets:
            if section.name == name:
                return section
        return TargetSection(name=name, plugin=name, plugin_options={}, source=f"{self.source}: target {name}")

    @property
    def state_dir(self) -> Path:
        """Return the state directory in force."""
        return self.service.state_dir or default_state_dir()


SECTIONS: Mapping[str, type] = {
    "service": ServiceConfig,
    "identity": IdentityConfig,
    "keystone": KeystoneConfig,
    "database": DatabaseConfig,
    "log": LogConfig,
    "quota": QuotaConfig,
    "scheduler": SchedulerConfig,
}


def default_state_dir() -> Path:
    """Return the XDG state directory of this user."""
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "blockstore"


def load(path: Path | None) -> Config:
    """Read a configuration file. Without one, return the defaults: a `directory` backend in the state directory."""
    if path is None:
        return Config(backends=(_default_backend(),))
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror}.") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{path}: the file is not UTF-8 text.") from exc
    except configparser.ParsingError as exc:  # from None: its text quotes the line, which may hold a password
        line = getattr(exc, "lineno", None) or exc.errors[0][0]
        raise ConfigError(f"{path}: line {line} is neither a [section] nor NAME = VALUE in one.") from None
    except configparser.Error as exc:
        raise ConfigError(f"{path}: {' '.join(str(exc).split())}.") from exc
    parts: dict[str, Any] = {}
    backends: list[BackendSection] = []
    targets: list[TargetSection] = []
    for section in parser.sections():
        values = dict(parser.items(section))
        where = f"{path}: [{section}]"
        if section in SECTIONS:
            parts[section] = parse(SECTIONS[section], values, where)
        elif section.startswith(BACKEND_PREFIX) and section[len(BACKEND_PREFIX) :].strip():
            backends.append(_backend(section[len(BACKEND_PREFIX) :].strip(), values, where))
        elif section.startswith(TARGET_PREFIX) and section[len(TARGET_PREFIX) :].strip():
            targets.append(_target(section[len(TARGET_PREFIX) :].strip(), values, where))
        else:
            known = ", ".join([*SECTIONS, f"{BACKEND_PREFIX}NAME", f"{TARGET_PREFIX}NAME"])
            raise ConfigError(f"{where} is not a section that blockstore knows. Known: {known}.")
    config = Config(
        **parts, backends=tuple(backends) or (_default_backend(),), targets=tuple(targets), source=str(path)
    )
    _check(config)
    return config


def parse(cls: type[T], values: Mapping[str, str], where: str) -> T:
    """Turn the text of one section into its dataclass. Raises ConfigError naming the option."""
    assert dataclasses.is_dataclass(cls)
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{where} {name} is not an option. Options here: {', '.join(fields)}.")
    parsed: dict[str, Any] = {}
    for name, f in fields.items():
        if name in values:
            parsed[name] = _convert(values[name].strip(), hints[name], f.metadata, f"{where} {name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} {name} is missing. {f.metadata.get('help', '')}")
    return cls(**parsed)


def as_text(value: object) -> str:
    """Return a value as it is written in the file."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)


def _backend(name: str, values: dict[str, str], where: str) -> BackendSection:
    _check_name(name, where)
    common = {f.name for f in dataclasses.fields(PoolConfig)}
    pool = parse(PoolConfig, {k: v for k, v in values.items() if k in common}, where)
    _between(pool.reserved_percentage, 0, 100, f"{where} reserved_percentage")
    _between(pool.fill_limit_percentage, 1, 100, f"{where} fill_limit_percentage")
    try:
        fits = pool.over_subscription == "auto" or 1 <= pool.over_subscription < float("inf")
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(
            f"{where} max_over_subscription_ratio is {pool.max_over_subscription_ratio!r};"
            " it must be a number from 1, or auto."
        )
    rest = {k: v for k, v in values.items() if k not in common}
    return BackendSection(name=name, pool=pool, plugin_options=rest, source=where)


def _target(name: str, values: dict[str, str], where: str) -> TargetSection:
    _check_name(name, where)
    rest = dict(values)
    plugin = rest.pop("plugin", name).strip()
    return TargetSection(name=name, plugin=plugin, plugin_options=rest, source=where)


def _check_name(name: str, where: str) -> None:
    if not all(c.isalnum() or c in "-_." for c in name):
        raise ConfigError(f"{where} the name may hold letters, digits, '-', '_' and '.'.")


def _default_backend() -> BackendSection:
    return BackendSection(
        name="directory",
        pool=PoolConfig(plugin="directory"),
        plugin_options={},
        source="the default [backend:directory]",
    )


def _convert(text: str, hint: Any, metadata: Mapping[str, Any], where: str) -> Any:
    if isinstance(hint, types.UnionType):
        inner = [h for h in typing.get_args(hint) if h is not type(None)]
        return None if text == "" else _convert(text, inner[0], metadata, where)
    if hint is bool:
        try:
            return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
        except KeyError:
            raise ConfigError(f"{where} is {text!r}; it must be yes or no.") from None
    if hint in (int, float):
        try:
            number = hint(text)
            if number - number != 0:  # refuse nan and infinity
                raise ValueError
            return number
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ConfigError(f"{where} is {text!r}; it must be {kind}.") from None
    if hint is Path:
        return Path(text).expanduser()
    choices = metadata.get("choices") or ()
    if choices and text not in choices:
        raise ConfigError(f"{where} is {text!r}; it must be one of {', '.join(choices)}.")
    return text


def _between(value: float, low: float, high: float, where: str) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{where} is {value}; it must be from {low} to {high}.")


def _check(config: Config) -> None:
    where = f"{config.source}: "
    for prefix, names in (
        (BACKEND_PREFIX, [b.name for b in config.backends]),
        (TARGET_PREFIX, [t.name for t in config.targets]),
    ):
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{where}[{prefix}{name}] appears twice.")
    service = config.service
    for name, low, high in (
        ("api_threads", 0, 256),
        ("workers", 1, 256),
        ("migration_workers", 1, 256),
        ("max_limit", 1, 100_000),
    ):
        _between(getattr(service, name), low, high, f"{where}[service] {name}")
    for name, low, high in (
        ("operation_attempts", 2, 1000),
        ("operation_keep_days", 1, 36500),
        ("drain_timeout_s", 0, 3600),
    ):
        _between(getattr(service, name), low, high, f"{where}[service] {name}")
    for name in ("attachments_per_volume", "attachments_per_project"):
        _between(getattr(service, name), -1, 2**31 - 1, f"{where}[service] {name}")
    _between(service.attach_timeout_s, 1, 3600, f"{where}[service] attach_timeout_s")
    _between(service.report_interval_s, 1, 86400, f"{where}[service] report_interval_s")
    if not service.node or not all(c.isalnum() or c in "-_." for c in service.node):
        raise ConfigError(f"{where}[service] node is {service.node!r}; it may hold letters, digits, '-', '_' and '.'.")
    if service.public_endpoint and (mistake := address.check_base_url(service.public_endpoint)):
        raise ConfigError(f"{where}[service] public_endpoint is {service.public_endpoint!r}; {mistake}.")
    try:
        address.parse_networks(service.trusted_proxies)
    except ValueError as exc:
        raise ConfigError(
            f"{where}[service] trusted_proxies: {str(exc)!r} is neither an address nor a network, such as 192.0.2.0/24."
        ) from None
    if (service.tls_certificate is None) != (service.tls_key is None):
        raise ConfigError(f"{where}[service] tls_certificate and tls_key go together; one of them is missing.")
    for name, low, high in (
        ("token_lifetime_s", 60, 31_536_000),
        ("tokens_per_user", 2, 100_000),
        ("login_failures", 1, 1000),
        ("login_pause_s", 1, 86400),
    ):
        _between(getattr(config.identity, name), low, high, f"{where}[identity] {name}")
    _between(config.database.timeout_s, 1, 3600, f"{where}[database] timeout_s")
    _between(config.keystone.token_cache_s, -1, 86400, f"{where}[keystone] token_cache_s")
    for f in dataclasses.fields(QuotaConfig):
        _between(getattr(config.quota, f.name), -1, 2**31 - 1, f"{where}[quota] {f.name}")
    _between(config.scheduler.max_attempts, 1, 100, f"{where}[scheduler] max_attempts")
    parse_listen(service.listen, f"{where}[service] listen")


def parse_listen(text: str, where: str) -> tuple[str, int]:
    """Return host and port of HOST:PORT or [IPV6]:PORT. Raises ConfigError."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigError(f"{where} is {text!r}; it must be HOST:PORT, such as 127.0.0.1:8776.")
    return host.strip("[]"), int(port)
