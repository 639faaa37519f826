"""Configuration: every option is in config.example.ini, and every mistake is one sentence that says where and what."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstore.backends import loader
from blockstore.cli import main
from blockstore.config import SECTIONS, Config, PoolConfig, ServiceConfig, load
from blockstore.errors import ConfigError
from blockstore.plugins import installed
from blockstore.targets import loader as target_loader

from .conftest import ROOT

EXAMPLE = ROOT / "config.example.ini"


def run(*arguments: str) -> str:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    return result.output


# --- the example -------------------------------------------------------------------------------------------


def test_example_is_what_the_command_prints() -> None:
    assert EXAMPLE.read_text() == run("config", "example"), "run: blockstore config example > config.example.ini"


def test_example_has_every_option() -> None:
    text = EXAMPLE.read_text()
    plugins = [loader.plugin(name, "").Options for name in loader.plugins()]
    targets = [target_loader.plugin(name, "").Options for name in installed(target_loader.GROUP)]
    for cls in (*SECTIONS.values(), PoolConfig, *plugins, *targets):
        for f in dataclasses.fields(cls):
            assert re.search(rf"^#{f.name} =", text, re.M), f"{cls.__name__}.{f.name}"
            assert f.metadata["help"].rstrip().endswith("."), f"{cls.__name__}.{f.name} needs a sentence"


def test_example_as_it_is_equals_the_defaults() -> None:
    assert dataclasses.replace(load(EXAMPLE), source=Config.source) == load(None)


@pytest.mark.parametrize("plugin", ["directory", "lvm", "memory", "rbd"])
def test_example_with_every_option_uncommented_equals_the_defaults(plugin: str, tmp_path: Path) -> None:
    common, *parts = EXAMPLE.read_text().split("# The plugin ")
    (own,) = (part for part in parts if part.startswith(f"{plugin} "))
    text = re.sub(r"^#(?=\w+ =|\[)", "", common.replace("#plugin =", "") + "#" + own, flags=re.M)
    path = tmp_path / "all.ini"
    path.write_text(text.replace("[backend:NAME]", "[backend:all]"))
    config = load(path)
    for name in SECTIONS:
        assert getattr(config, name) == getattr(Config(), name)
    (section,) = config.backends
    assert section.pool == PoolConfig(plugin=plugin)
    assert loader.options(section) == loader.plugin(plugin, "").Options()
    for target in config.targets:
        assert target_loader.options(target) == target_loader.plugin(target.plugin, "").Options()
    assert [target.name for target in config.targets] == (installed(target_loader.GROUP) if plugin == "rbd" else [])


# --- mistakes ----------------------------------------------------------------------------------------------

MISTAKES = {
    "[nonsense]\n": "[nonsense] is not a section that blockstore knows."
    " Known: service, identity, keystone, database, log, quota, scheduler, backend:NAME, target:NAME.",
    "[backend:]\nplugin = memory": "[backend:] is not a section that blockstore knows.",
    "[service]\nlissen = 1": "[service] lissen is not an option. Options here: listen, state_dir,",
    "[service]\nworkers = many": "[service] workers is 'many'; it must be a whole number.",
    "[service]\nmigration_workers = 0": "[service] migration_workers is 0; it must be from 1 to 256.",
    "[service]\nworkers = 0": "[service] workers is 0; it must be from 1 to 256.",
    "[service]\napi_threads = 999": "[service] api_threads is 999; it must be from 0 to 256.",
    "[service]\nmax_limit = 0": "[service] max_limit is 0; it must be from 1 to 100000.",
    "[service]\nattachments_per_volume = -2": "attachments_per_volume is -2; it must be from -1 to 2147483647.",
    "[service]\nattachments_per_project = -2": "attachments_per_project is -2; it must be from -1 to 2147483647.",
    "[service]\noperation_attempts = 0": "[service] operation_attempts is 0; it must be from 2 to 1000.",
    "[service]\nreport_interval_s = soon": "[service] report_interval_s is 'soon'; it must be a number.",
    "[service]\nreport_interval_s = 0.1": "[service] report_interval_s is 0.1; it must be from 1 to 86400.",
    "[service]\nreport_interval_s = nan": "[service] report_interval_s is 'nan'; it must be a number.",
    "[service]\ninsecure = maybe": "[service] insecure is 'maybe'; it must be yes or no.",
    "[service]\nauth = guess": "[service] auth is 'guess'; it must be one of builtin, keystone, none.",
    "[service]\ntls_key = /k": "[service] tls_certificate and tls_key go together; one of them is missing.",
    "[identity]\ntoken_lifetime_s = 1": "[identity] token_lifetime_s is 1; it must be from 60 to 31536000.",
    "[keystone]\ntoken_cache_s = -2": "[keystone] token_cache_s is -2; it must be from -1 to 86400.",
    "[service]\nlisten = 8776": "[service] listen is '8776'; it must be HOST:PORT, such as 127.0.0.1:8776.",
    "[service]\nlisten = host:": "[service] listen is 'host:'; it must be HOST:PORT",
    "[service]\nlisten = host:65536": "[service] listen is 'host:65536'; it must be HOST:PORT",
    "[service]\noperation_keep_days = 0": "[service] operation_keep_days is 0; it must be from 1 to 36500.",
    "[service]\ndrain_timeout_s = -1": "[service] drain_timeout_s is -1.0; it must be from 0 to 3600.",
    "[service]\nnode = a@b": "[service] node is 'a@b'; it may hold letters, digits, '-', '_' and '.'.",
    "[service]\nnode =": "[service] node is ''; it may hold",
    "[service]\npublic_endpoint = cloud": "[service] public_endpoint is 'cloud'; it must be an HTTP URL.",
    "[service]\npublic_endpoint = https://a:b@c": "public_endpoint is 'https://a:b@c'; it must be an HTTP URL.",
    "[service]\npublic_endpoint = https://cloud?x": "it must be an HTTP URL of a host and a path.",
    "[service]\npublic_endpoint = https://cloud/v3/": "it must not end in /v3, which the service adds itself.",
    "[service]\ntrusted_proxies = 10.0.0.1, proxy": "[service] trusted_proxies: 'proxy' is neither an address nor",
    "[service]\ntrusted_proxies = 10.0.0.1/8": "[service] trusted_proxies: '10.0.0.1/8' is neither an address nor",
    "[quota]\nvolumes = -2": "[quota] volumes is -2; it must be from -1 to 2147483647.",
    "[scheduler]\nmax_attempts = 0": "[scheduler] max_attempts is 0; it must be from 1 to 100.",
    "[log]\nlevel = loud": "[log] level is 'loud'; it must be one of debug, info, warning, error, critical.",
    "[log]\nformat = xml": "[log] format is 'xml'; it must be one of plain, json.",
    "[quota]\nvolumes = 1.5": "[quota] volumes is '1.5'; it must be a whole number.",
    "[backend:a]\n": "[backend:a] plugin is missing. Name of the plugin:",
    "[backend:a/b]\nplugin = memory": "[backend:a/b] the name may hold letters, digits, '-', '_' and '.'.",
    "[backend:a]\nplugin = memory\n[backend:a]\nplugin = memory": "section 'backend:a' already exists",
    "[backend:a]\nplugin = memory\n[backend: a]\nplugin = memory": "[backend:a] appears twice.",
    "[backend:a]\nplugin = memory\nplugin = lvm": "option 'plugin' in section 'backend:a' already exists",
    "[backend:a]\nplugin = memory\nreserved_percentage = 101": "reserved_percentage is 101; it must be from 0 to 100.",
    "[backend:a]\nplugin = memory\nfill_limit_percentage = 0": "fill_limit_percentage is 0; it must be from 1 to 100.",
    "[backend:a]\nplugin = memory\nmax_over_subscription_ratio = 0.9": "max_over_subscription_ratio is '0.9';"
    " it must be a number from 1, or auto.",
    "[backend:a]\nplugin = memory\nmax_over_subscription_ratio = much": "max_over_subscription_ratio is 'much'; it",
    "[backend:a]\nplugin = memory\nmax_over_subscription_ratio = nan": "max_over_subscription_ratio is 'nan'; it",
    "[target:]\n": "[target:] is not a section that blockstore knows.",
    "[target:a/b]\nplugin = local": "[target:a/b] the name may hold letters, digits, '-', '_' and '.'.",
    "[target:a]\nplugin = local\n[target: a]\nplugin = local": "[target:a] appears twice.",
    "[service]\nattach_timeout_s = 0": "[service] attach_timeout_s is 0.0; it must be from 1 to 3600.",
    "listen = 1": "line 1 is neither a [section] nor NAME = VALUE in one.",
    "[service\n": "line 1 is neither a [section] nor NAME = VALUE in one.",
    "[database]\nurl = x\ns3cret": "line 3 is neither a [section] nor NAME = VALUE in one.",
    "[service]\nlisten = 127.0.0.1:²": "it must be HOST:PORT",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_mistake_is_one_sentence_naming_the_file_and_the_option(text: str, tmp_path: Path) -> None:
    path = tmp_path / "blockstore.ini"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert MISTAKES[text] in caught.value.message
    assert caught.value.message.startswith(f"{path}: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("plugin = cephalopod", "plugin is 'cephalopod'; installed are directory, lvm, memory"),
        ("plugin = memory\nsize = 1", "[backend:a] size is not an option. Options here: size_gib, latency_s, thin."),
        ("plugin = memory\nsize_gib = big", "[backend:a] size_gib is 'big'; it must be a whole number."),
        ("plugin = directory\nformat = vmdk", "[backend:a] format is 'vmdk'; it must be one of raw, qcow2."),
        ("plugin = lvm\nlvm_type = fat", "[backend:a] lvm_type is 'fat'; it must be one of auto, thin, thick."),
    ],
)
def test_mistake_in_a_plugin_s_options_names_the_section(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "blockstore.ini"
    path.write_text(f"[backend:a]\n{text}\n")
    (section,) = load(path).backends
    with pytest.raises(ConfigError) as caught:
        loader.load(section, tmp_path)
    assert sentence in caught.value.message


def test_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.ini: cannot be read: No such file or directory\."):
        load(tmp_path / "nowhere.ini")
    binary = tmp_path / "binary.ini"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"binary\.ini: "):
        load(binary)


def test_percent_sign_needs_no_escape(tmp_path: Path) -> None:
    path = tmp_path / "blockstore.ini"
    path.write_text("[backend:a]\nplugin = lvm\nthin_pool_size = 50%FREE\n")
    assert load(path).backends[0].plugin_options == {"thin_pool_size": "50%FREE"}


# --- show --------------------------------------------------------------------------------------------------


def test_show_hides_secrets(tmp_path: Path) -> None:
    path = tmp_path / "blockstore.ini"
    path.write_text(
        "[database]\nurl = postgresql+psycopg://me:hunter2@db/x\n[backend:m]\nplugin = memory\nsize_gib = 7\n"
    )
    shown = run("config", "show", "--config", str(path))
    assert "hunter2" not in shown
    assert "url = (hidden)" in shown
    assert "[backend:m]" in shown
    assert "size_gib = 7" in shown


def test_what_show_prints_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "shown.ini"
    path.write_text(run("config", "show"))
    assert dataclasses.replace(load(path), backends=()) == dataclasses.replace(
        load(None), backends=(), source=str(path)
    )


def test_default_state_directory_is_below_xdg_state_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert Config(service=ServiceConfig()).state_dir == tmp_path / "blockstore"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Config().state_dir == tmp_path / ".local" / "state" / "blockstore"
