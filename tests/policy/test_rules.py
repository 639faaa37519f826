"""Policies: the table, and a site's own file over it."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstore.app.service import Service
from blockstore.cli import main
from blockstore.config import ServiceConfig
from blockstore.context import RequestContext
from blockstore.errors import ConfigError
from blockstore.log_limiter import LogLimiter
from blockstore.policy import file as policy_file
from blockstore.policy.file import PolicyFile, with_implied
from blockstore.policy.rules import RULES, Policy
from tests.conftest import Client, Served


def caller(*roles: str) -> RequestContext:
    return RequestContext(
        request_id="r", user_id="u", project_id="p", roles=with_implied(roles), is_admin="admin" in roles
    )


@pytest.mark.parametrize("roles", [(), ("reader",), ("member",), ("admin",), ("service",), ("auditor",)])
def test_an_empty_file_decides_as_the_table_does(tmp_path: Path, roles: tuple[str, ...]) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("{}")
    by_file, by_table, ctx = Policy(file, PolicyFile), Policy(), caller(*roles)
    assert by_file.is_admin(ctx.roles, "u", "p") == by_table.is_admin(ctx.roles, "u", "p")
    assert {r: by_file.allowed(ctx, r) for r in RULES} == {r: by_table.allowed(ctx, r) for r in RULES}


def test_a_file_changes_rules_at_once_and_again_when_it_changes(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    service = start_service()
    member = Client(service, **{"X-Roles": "member,reader", "X-Project-Id": "p"})
    auditor = Client(service, **{"X-Roles": "auditor", "X-Project-Id": "p"})
    body = {"volume": {"size": 1}}
    assert (member("POST", "/volumes", body).status, auditor("GET", "/volumes").status) == (202, 403)
    file = service.state_dir / "policy.yaml"
    file.write_text('"volume:create": "role:builder"\n"volume:get_all": "role:auditor and project_id:%(project_id)s"\n')
    refused = member("POST", "/volumes", body)
    assert (refused.status, refused.message) == (403, "Policy doesn't allow volume:create to be performed.")
    assert auditor("GET", "/volumes").status == 200
    assert member("GET", "/volumes").status == 403
    # what cannot be used changes nothing
    file.write_text('"volume:create": "rule:')
    os.utime(file, (1, 1))
    assert auditor("GET", "/volumes").status == 200
    file.unlink()
    assert member("POST", "/volumes", body).status == 202
    member.wait_idle()


def test_who_is_an_administrator_can_be_changed(start_service: Callable[..., Service]) -> None:
    service = start_service()
    (service.state_dir / "policy.yaml").write_text('"context_is_admin": "role:storage-admin"\n')
    chief = Client(service, **{"X-Roles": "storage-admin", "X-Project-Id": "p"})
    former = Client(service, **{"X-Roles": "admin", "X-Project-Id": "p"})
    assert chief("POST", "/types", {"volume_type": {"name": "t"}}).status == 200
    assert "os-vol-host-attr:host" in chief.volume()
    assert former("GET", "/volumes?all_tenants=1").json == {"volumes": former.get("/volumes")["volumes"]}


@pytest.mark.parametrize("text", ["[1, 2]", '"a": [', '"volume:get": "rule:nothing_of_that_name"', "- x"])
def test_a_file_that_cannot_be_used_is_one_sentence_at_the_start(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"policy\.yaml: it cannot be used as a policy file"):
        Policy(file, PolicyFile)


def test_check_explains(tmp_path: Path) -> None:
    def said(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["policy", *words, "--state-dir", str(tmp_path)])
        return result.exit_code, result.output

    code, text = said("check", "volume:create", "--role", "reader")
    assert code == 1
    assert "check    member (the default)" in text
    assert "refused: 403" in text
    code, text = said("check", "volume:create", "--role", "member")
    assert (code, "allowed" in text) == (0, True)
    (tmp_path / "policy.yaml").write_text('"volume:create": "role:reader"\n')
    code, text = said("check", "volume:create", "--role", "reader")
    assert (code, f"role:reader (from {tmp_path / 'policy.yaml'})" in text) == (0, True)
    code, text = said("check", "volume:creat")
    assert code == 1
    assert "Did you mean volume:create" in text
    assert "policy file" in said("list")[1]


# --- a file that changes while the service runs --------------------------------------------------------------

OURS = '"volume:create": "role:builder"\n'
BODY = {"volume": {"size": 1}}


@pytest.mark.parametrize(
    "text",
    [
        '"volume:create": "role:nobody\n : [\n',
        "- a\n- b\n",
        "42",
        "7: role:a",
        '!!python/object/apply:os.getpid ["x"]\n',
        "&a [*a, *a]\n",
        '"volume:create": "@@@ not a rule ("\n',
        '"volume:create": "role:a or @@@"\n',
        '"volume:create": "rule:not_there"\n',
        '"volume:create": "rule:volume:create"\n',
        '"volume:create": 7\n',
        "\0",
    ],
)
def test_what_cannot_be_read_leaves_the_rules_and_logs_one_sentence(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(OURS)
    policy = Policy(file, PolicyFile)
    caplog.clear()
    file.write_text(text)
    for _ in range(3):
        policy.reload_if_changed()
        assert policy.allowed(caller("builder"), "volume:create")
        assert not policy.allowed(caller("member"), "volume:create")
    (line,) = [record for record in caplog.records if record.levelname != "DEBUG"]
    assert line.getMessage().startswith(f"policies not changed: {file}: it cannot be used as a policy file: ")
    assert line.exc_info is None
    assert "\n" not in line.getMessage()


def test_whatever_the_reader_raises_leaves_the_rules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(OURS)
    fails = False

    def load(path: Path) -> PolicyFile:
        if fails:
            raise MemoryError("a\nb")
        return PolicyFile(path)

    policy = Policy(file, load)
    fails = True
    file.write_text(OURS * 2)
    policy.reload_if_changed()
    assert policy.allowed(caller("builder"), "volume:create")
    assert caplog.messages == [f"policies not changed: {file} cannot be read: MemoryError: a b"]


def test_a_file_decides_without_a_turn_to_run_python(tmp_path: Path) -> None:
    """If one of its rules asks a server; each other decision would wait for a turn."""
    file = tmp_path / "policy.yaml"
    file.write_text(OURS)
    policy, released = Policy(file, PolicyFile), list[str]()

    @contextmanager
    def note() -> Iterator[None]:
        released.append("begin")
        yield
        released.append("end")

    policy.released = note
    assert policy.allowed(caller("builder"), "volume:create")
    assert released == []
    file.write_text(OURS + '"volume:delete": "http://127.0.0.1:1/decide"\n')
    policy.reload_if_changed()
    assert policy.allowed(caller("builder"), "volume:create")
    assert not policy.is_admin({"builder"}, "u", "p")
    assert released == ["begin", "end"] * 2


@pytest.mark.parametrize("how", ["writable", "link", "dangling", "loop", "pipe", "directory"])
def test_a_file_is_opened_as_at_the_start(start_service: Callable[..., Service], tmp_path: Path, how: str) -> None:
    service = start_service()
    file, elsewhere = service.state_dir / "policy.yaml", tmp_path / "elsewhere"
    builder = Client(service, **{"X-Roles": "builder", "X-Project-Id": "p"})
    file.write_text(OURS)
    assert builder("POST", "/volumes", BODY).status == 202
    elsewhere.write_text('"volume:create": "!"\n')
    file.unlink()
    if how == "writable":
        file.write_text('"volume:create": "!"\n')
        file.chmod(0o666)
    elif how == "pipe":
        os.mkfifo(file)
    elif how == "directory":
        file.mkdir()
    else:
        file.symlink_to({"link": elsewhere, "dangling": tmp_path / "nothing", "loop": file}[how])
    for _ in range(2):
        assert builder("POST", "/volumes", BODY).status == 202
    builder.wait_idle()


def test_a_mode_that_is_mended_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(OURS)
    policy = Policy(file, PolicyFile)
    file.write_text('"volume:create": "role:mender"\n')
    file.chmod(0o666)
    policy.reload_if_changed()
    assert policy.allowed(caller("builder"), "volume:create")
    file.chmod(0o600)
    policy.reload_if_changed()
    assert policy.allowed(caller("mender"), "volume:create")


def test_a_named_file_that_goes_leaves_the_rules(start_service: Callable[..., Service], tmp_path: Path) -> None:
    file = tmp_path / "ours.yaml"
    file.write_text(OURS)
    service = start_service(service=ServiceConfig(policy_file=file))
    file.unlink()
    assert Client(service, **{"X-Roles": "member"})("POST", "/volumes", BODY).status == 403


@pytest.mark.parametrize("hangs", [False, True])
def test_a_rule_that_asks_a_server_that_does_not_answer(
    start_service: Callable[..., Service],
    hangs: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(policy_file, "REMOTE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(policy_file, "log_limiter", LogLimiter(policy_file.log))
    service = start_service()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if hangs:
            server.listen()
        port = server.getsockname()[1]
        (service.state_dir / "policy.yaml").write_text(f'"volume:create": "http://127.0.0.1:{port}/x"\n')
        client = Client(service)
        for _ in range(2):
            refused = client("POST", "/volumes", BODY)
            assert refused.status == 503
            assert refused.message.startswith("The policy rule volume:create could not be evaluated.")
        assert client("GET", "/volumes").status == 200
    assert len([text for text in caplog.messages if text.startswith("the policy rule volume:create cannot")]) == 1
    assert not any(record.exc_info for record in caplog.records)


def test_a_served_process_outlives_what_is_done_to_its_policies(serve: Callable[..., Served]) -> None:
    served = serve("[backend:m]\nplugin = memory\n")
    file = served.state_dir / "policy.yaml"

    def status(roles: str) -> int:
        request = urllib.request.Request(
            f"{served.url}/volumes",
            method="POST",
            data=b'{"volume": {"size": 1}}',
            headers={"Content-Type": "application/json", "X-Roles": roles},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as exc:
            return exc.code

    file.write_text(OURS)
    assert (status("builder"), status("member")) == (202, 403)
    file.write_text("- a\n- b\n")
    assert (status("builder"), status("member")) == (202, 403)
    file.unlink()
    os.mkfifo(file, 0o600)
    assert (status("builder"), status("member")) == (202, 403)
    file.unlink()
    assert (status("builder"), status("member")) == (403, 202)
    said = served.log.read_text()
    assert said.count("policies not changed") == 2
    assert "Traceback" not in said
