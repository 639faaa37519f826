"""How many application credentials a user may have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from sqlalchemy import insert

from blockstore.api.identity.credentials import MOST
from blockstore.db.models import ApplicationCredential
from tests.identity.conftest import People, said


def test_a_user_has_so_many_application_credentials(people: People) -> None:
    """Parallel requests count together; whoever removes one may make another; other users are not concerned."""
    project = people.project()
    user, token = people.user(project, "member")
    rows = [
        {
            "id": f"{user[:20]}-{number}", "name": f"c{number}", "user_id": user, "project_id": project,
            "role_ids": [], "secret_hash": "none", "unrestricted": False,
        }
        for number in range(MOST - 2)
    ]  # fmt: skip
    with people.service.db.write() as session:
        session.execute(insert(ApplicationCredential), rows)
    place = f"/users/{user}/application_credentials"

    def make(number: int) -> int:
        body = {"application_credential": {"name": f"new-{number}"}}
        return people.identity("POST", place, body, token).status

    with ThreadPoolExecutor(5) as threads:
        assert sorted(threads.map(make, range(5))) == [201, 201, 403, 403, 403]
    refused = people.identity("POST", place, {"application_credential": {"name": "last"}}, token)
    assert f"maximum of {MOST} already exceeded for user: it has {MOST}" in said(refused)
    assert people.identity("DELETE", f"{place}/{rows[0]['id']}", None, token).status == 204
    assert make(9) == 201
    other, theirs = people.user(project, "member")
    body = {"application_credential": {"name": "ci"}}
    assert people.identity("POST", f"/users/{other}/application_credentials", body, theirs).status == 201
