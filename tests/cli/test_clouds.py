"""clouds.yaml: one more cloud in a file of others, which stay as they are."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from blockstore.cli import clouds, main
from blockstore.errors import ConfigError

CLOUD = {
    "auth": {"auth_url": "http://127.0.0.1:8776/identity/v3", "password": 'a"\\: #\u20ac\x7f\u2028'},
    "volume": "3.60",
}
OTHERS = """\
# mine
clouds:
  work:   # at work
    auth: {auth_url: "https://work/v3", username: me}
    regions:
    - one

  # for play
  play:
    auth:
      auth_url: x
"""


def test_the_document_is_yaml_that_says_the_same() -> None:
    assert yaml.safe_load(clouds.document("blockstore", CLOUD)) == {"clouds": {"blockstore": CLOUD}}
    assert yaml.safe_load(clouds.document("no: 1", CLOUD)) == {"clouds": {"no: 1": CLOUD}}
    assert yaml.safe_load(clouds.document("no", CLOUD)) == {"clouds": {"no": CLOUD}}


@pytest.mark.parametrize(
    "text",
    [
        OTHERS,
        OTHERS + "cache:\n  expiration_time: 3600\n",
        "---\ncache:\n  class: x\n" + OTHERS,
        OTHERS.replace("  ", "    "),
        OTHERS.rstrip("\n"),
        OTHERS.replace("\n", "\r\n"),
        "clouds:\n",
        "clouds:   # none yet\n",
        "cache:\n  class: x\n",
        "# nothing\n",
        "",
        '{"clouds": {"former": {"auth": {"auth_url": "x"}, "regions": ["a", {"b": 1}]}}}',
        OTHERS + "  blockstore:\n    auth:\n      password: old\n\n# the end\n",
        OTHERS.replace("  play:", "  'blockstore':  # old\n    auth: {password: old}\n  # for play\n  play:"),
        OTHERS.replace("  play:", "  blockstore:\n  play:"),
    ],
)
def test_others_stay_and_ours_is_there_once(text: str) -> None:
    before = yaml.safe_load(text) or {}
    merged = clouds.merged(text, "blockstore", CLOUD, "FILE")
    after = yaml.safe_load(merged)
    assert after.pop("clouds") == {**(before.pop("clouds", None) or {}), "blockstore": CLOUD}
    assert after == before
    for line in text.splitlines():
        assert "old" in line or line in merged.splitlines() or text.startswith("{") or "'blockstore'" in line, line
    assert clouds.merged(merged, "blockstore", CLOUD, "FILE") == merged


@pytest.mark.parametrize(
    "text",
    [
        "clouds: {work: {}}\n",
        "{clouds: {work: {}}}\n",
        '"clouds":\n  work: {}\n',
        "clouds:\n\twork: {}\n",
        "clouds:\n  work: {}\nclouds:\n  play: {}\n",
        "- clouds:\n",
        "clouds:\n  blockstore: {auth: {}}\n",
        "clouds:\n  blockstore: &anchor\n    auth: {}\n",
        "clouds:\n    work:\n  play:\n",
        "a: 1\n---\nclouds:\n  work: {}\n",
    ],
)
def test_what_is_not_understood_is_left_alone(text: str, tmp_path: Path) -> None:
    path = tmp_path / "clouds.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        clouds.merge_into(path, "blockstore", CLOUD)
    assert path.read_text() == text
    assert [*tmp_path.iterdir()] == [path]


def test_a_file_keeps_its_mode_and_its_place(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    real.write_text(OTHERS)
    real.chmod(0o640)
    link.symlink_to(real)
    clouds.merge_into(link, "blockstore", CLOUD)
    assert link.is_symlink()
    assert set(yaml.safe_load(real.read_text())["clouds"]) == {"work", "play", "blockstore"}
    assert stat.S_IMODE(real.stat().st_mode) == 0o640


def test_the_command_makes_or_adds_to_the_file_that_clients_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OS_CLIENT_CONFIG_FILE", raising=False)
    config = tmp_path / "c.ini"
    config.write_text("[service]\nauth = none\npublic_endpoint = https://cloud/volume/\n")
    options = ("--config", str(config), "--state-dir", str(tmp_path / "s"))
    path = tmp_path / ".config" / "openstack" / "clouds.yaml"

    def run(*words: str) -> str:
        done = CliRunner().invoke(main, ["clouds-yaml", *words, *options])
        assert done.exit_code == 0, done.output
        return done.output

    assert f"{path} now has the cloud blockstore. To use it: export OS_CLOUD=blockstore\n" in run("--merge")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    run("--merge", str(path), "--name", "second")
    expected = {
        "auth_type": "none",
        "auth": {"endpoint": "https://cloud/volume/v3"},
        "block_storage_default_microversion": "3.64",
        "volume_api_version": "3.64",
    }
    assert yaml.safe_load(path.read_text()) == {"clouds": {"blockstore": expected, "second": expected}}
