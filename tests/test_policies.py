"""Policies: the table, and a site's own file over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from blockstore.cli import main
from blockstore.context import RequestContext
from blockstore.errors import ConfigError
from blockstore.policies import RULES, Policy
from blockstore.policy_file import PolicyFile, with_implied
from blockstore.service import Service
from tests.conftest import Client


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
