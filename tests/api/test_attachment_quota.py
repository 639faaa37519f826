"""How many attachments, and so exports, a volume and a project may have: by every call that makes one, and in races."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from blockstore.app.service import Service
from blockstore.config import ServiceConfig
from blockstore.db.models import Attachment, new_id
from tests.api.conftest import SharedService, at_once
from tests.api.test_attachments import CONNECTOR, complete, remove, reserve
from tests.api.volumes.test_attach_actions import SERVER, SERVICE, attach, initialize
from tests.conftest import Answer, Client

PER_VOLUME, PER_PROJECT = ServiceConfig().attachments_per_volume, ServiceConfig().attachments_per_project


def from_host(number: int) -> dict[str, Any]:
    return {**CONNECTOR, "initiator": f"iqn.2026-01.test:node{number}", "host": f"node{number}"}


def by_initialize(client: Client, volume: str, number: int) -> Answer:
    return initialize(client, volume, from_host(number))


def by_attachment(client: Client, volume: str, number: int) -> Answer:
    answer = reserve(client, volume, instance_uuid=SERVER, connector=from_host(number))
    if answer.status == 200:  # else the next one is not allowed yet
        assert complete(client, answer.json["attachment"]["id"]).status == 204
    return answer


def by_reserving(client: Client, volume: str, number: int) -> Answer:
    return reserve(client, volume, instance_uuid=SERVER)  # the same server may again, as it does when it is migrated


def by_noting(client: Client, volume: str, number: int) -> Answer:
    return attach(client, volume, instance_uuid=new_id())


WAYS = (by_initialize, by_attachment, by_reserving, by_noting)
Way = Callable[[Client, str, int], Answer]


def rows(shared_service: SharedService, volume: str) -> int:
    with shared_service.db.read() as session:
        count = select(func.count()).select_from(Attachment).where(Attachment.volume_id == volume)
        return session.execute(count).scalar_one()


@pytest.mark.parametrize("way", WAYS)
def test_a_volume_has_so_many_attachments_and_no_more(attach_service: SharedService, way: Way) -> None:
    client = attach_service.admin()
    volume = attach_service.volume(client, multiattach=True)
    for number in range(PER_VOLUME):
        assert way(client, volume, number).status in (200, 202)
    refused = way(client, volume, PER_VOLUME)
    assert (refused.status, list(refused.json)) == (413, ["overLimit"])
    assert refused.message == (
        f"AttachmentLimitExceeded: Maximum number of attachments allowed ({PER_VOLUME}) exceeded for volume {volume}:"
        f" it has {PER_VOLUME}. Delete some of them first."
    )
    assert rows(attach_service, volume) == PER_VOLUME
    with attach_service.db.write() as session:
        (one,) = session.scalars(select(Attachment.id).where(Attachment.volume_id == volume).limit(1))
        session.execute(delete(Attachment).where(Attachment.id == one))
    assert way(client, volume, PER_VOLUME).status in (200, 202)


def test_the_ways_count_together_and_a_server_s_own_service_counts(attach_service: SharedService) -> None:
    client = attach_service.admin()
    volume = attach_service.volume(client, multiattach=True)
    # Each only where the ones before leave the volume in a status that allows it.
    for way in (by_reserving, by_attachment, by_initialize):
        for number in range(PER_VOLUME // 3):
            assert way(client, volume, number).status == 200
    assert by_noting(client, volume, 0).status == 202
    assert [way(client, volume, 99).status for way in WAYS] == [413] * 4
    body = {"attachment": {"volume_uuid": volume, "instance_uuid": SERVER}}
    assert client("POST", "/attachments", body, **SERVICE).status == 413
    # What was asked for before is told again.
    assert initialize(client, volume, from_host(0)).status == 200


@pytest.mark.parametrize("way", [by_initialize, by_reserving])
def test_of_parallel_requests_as_many_pass_as_are_allowed(shared_service: SharedService, way: Way) -> None:
    client = shared_service.admin()
    project = client.headers["X-Project-Id"]
    volume = shared_service.volume(client, multiattach=True)
    answers = at_once(PER_VOLUME + 8, lambda n: way(shared_service.admin(project), volume, n))
    assert sorted(answer.status for answer in answers) == [200] * PER_VOLUME + [413] * 8
    assert rows(shared_service, volume) == PER_VOLUME


def test_parallel_requests_for_many_volumes_count_together(shared_service: SharedService) -> None:
    client = shared_service.member()
    project = client.headers["X-Project-Id"]
    volumes = [shared_service.volume(client, status="reserved") for _ in range(12)]
    crowded = [shared_service.volume(client) for _ in range(6)]
    for volume in volumes:
        shared_service.attachment(client, volume, instance_uuid=SERVER)
    for number in range(PER_PROJECT - 5 + 6):  # the first of each is not counted
        shared_service.attachment(client, crowded[number % 6])
    answers = at_once(12, lambda n: reserve(shared_service.member(project), volumes[n], instance_uuid=SERVER))
    assert sorted(answer.status for answer in answers) == [200] * 5 + [413] * 7
    (message,) = {answer.message for answer in answers if answer.status == 413}
    assert message == (
        f"AttachmentLimitExceeded: Maximum number of attachments allowed ({PER_PROJECT} in a project, not counting the"
        f" first of each volume) exceeded for project {project}: it has {PER_PROJECT}. Delete some of them first."
    )
    # Every further volume may still be attached once, and other projects are not concerned.
    assert reserve(client, shared_service.volume(client)).status == 200
    stranger = shared_service.member()
    theirs = shared_service.volume(stranger)
    assert [reserve(stranger, theirs, instance_uuid=SERVER).status for _ in range(2)] == [200, 200]
    kept = next(answer.json["attachment"]["id"] for answer in answers if answer.status == 200)
    assert remove(client, kept).status == 200
    free = next(volume for volume in volumes if rows(shared_service, volume) == 1)
    assert reserve(client, free, instance_uuid=SERVER).status == 200


def test_minus_one_is_no_limit(start_service: Callable[..., Service]) -> None:
    service = start_service(service=ServiceConfig(attachments_per_volume=-1, attachments_per_project=-1))
    client = Client(service)
    volume = client.volume()["id"]
    for _ in range(PER_VOLUME + PER_PROJECT + 2):
        assert by_reserving(client, volume, 0).status == 200
