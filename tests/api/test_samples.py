"""Every sample of the reference that belongs to what this service offers: same fields, same types, same microversion.

A case is a request, the samples of its body and of its reply. INDEX.tsv names all samples of Cinder, so that a
sample that is neither compared here nor kept for later is noticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from blockstore.api.admin.extensions import EXTENSIONS
from blockstore.backends.contract import Backend
from blockstore.db.models import Message, SnapshotMetadata, new_id, now
from blockstore.microversions import MAXIMUM
from tests.api.conftest import POOL, SharedService
from tests.conftest import Answer, Client

SAMPLES = Path(__file__).parent / "samples"
FREE = frozenset({"metadata", "extra_specs", "levels"})
"""Maps whose keys are the caller's."""
OPEN = frozenset({"connection_info"})
"""Maps whose keys are the target's."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One request; ``body`` and ``reply`` name samples."""

    method: str
    path: str
    version: str = "3.0"
    body: str | None = None
    reply: str | None = None
    status: int = 200
    replies: bool = False
    """There is a reply, of which Cinder has no sample."""

    def __str__(self) -> str:
        return f"{self.method} {self.path} {self.version} {self.reply or self.body}"


def versions_of(folder: str, name: str) -> list[tuple[str, str]]:
    """Return the microversions for which a folder has a sample of that name, and the sample."""
    found = sorted(SAMPLES.glob(f"{folder}/v3.*/{name}"), key=lambda path: int(path.parent.name[3:]))
    return [("3.0", f"{folder}/{name}"), *((p.parent.name[1:], str(p.relative_to(SAMPLES))) for p in found)]


V, S, A = "/volumes/{volume}", "/snapshots/{snapshot}", "/attachments/{attachment}"
TYPE = "/types/{type}"
CASES = [
    *(
        Case(
            method="POST",
            path="/volumes",
            version=v,
            body="volumes/volume-create-request.json",
            reply=reply,
            status=202,
        )
        for v, reply in versions_of("volumes", "volume-create-response.json")
    ),
    *(
        Case(method="PUT", path=V, version=v, body="volumes/volume-update-request.json", reply=reply)
        for v, reply in versions_of("volumes", "volume-update-response.json")
    ),
    *(
        Case(method="GET", path=V, version=v, reply=reply)
        for v, reply in versions_of("volumes", "volume-show-response.json")
    ),
    *(
        Case(method="GET", path="/volumes/detail", version=v, reply=reply)
        for v, reply in versions_of("volumes", "volumes-list-detailed-response.json")
    ),
    *(
        Case(
            method="POST",
            path="/snapshots",
            version=v,
            body="snapshots/snapshot-create-request.json",
            reply=reply,
            status=202,
        )
        for v, reply in versions_of("snapshots", "snapshot-create-response.json")
    ),
    *(
        Case(method="PUT", path=S, version=v, body="snapshots/snapshot-update-request.json", reply=reply)
        for v, reply in versions_of("snapshots", "snapshot-update-response.json")
    ),
    *(
        Case(method="GET", path=S, version=v, reply=reply)
        for v, reply in versions_of("snapshots", "snapshot-show-response.json")
    ),
    *(
        Case(method="GET", path="/snapshots/detail", version=v, reply=reply)
        for v, reply in versions_of("snapshots", "snapshots-list-detailed-response.json")
    ),
    Case(method="GET", path="/volumes", reply="volumes/volumes-list-response.json"),
    Case(method="GET", path="/snapshots", reply="snapshots/snapshots-list-response.json"),
    Case(method="GET", path="/snapshots", version="3.71", reply="snapshots/snapshots-list-response.json"),
    Case(method="GET", path="/volumes/summary", version="3.36", reply="volumes/volumes-list-summary-response.json"),
    *(
        Case(
            method=method,
            path=f"{base}/metadata{key}",
            body=f"{folder}-metadata-{word}-request.json" if method != "GET" else None,
            reply=f"{folder}-metadata-{word}-response.json",
        )
        for base, folder, key_name in ((V, "volumes/volume", "name"), (S, "snapshots/snapshot", "key"))
        for method, key, word in (
            ("POST", "", "create"),
            ("PUT", "", "update"),
            ("PUT", f"/{key_name}", "update-key"),
            ("GET", "", "show"),
            ("GET", f"/{key_name}", "show-key"),
        )
    ),
    Case(method="POST", path=f"{V}/action", body="volume-extend-request.json", status=202),
    Case(method="POST", path="/volumes/{spare}/action", body="volume-force-delete-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-bootable-status-update-request.json"),
    Case(method="POST", path=f"{V}/action", body="volume-readonly-update-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-status-reset-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-revert-to-snapshot-request.json", version="3.40", status=202),
    Case(method="POST", path=f"{S}/action", body="snapshot-force-delete-request.json", status=202),
    Case(method="POST", path=f"{S}/action", body="snapshot-status-reset-request.json", status=202),
    Case(method="POST", path="/snapshots/{creating}/action", body="snapshot-status-update-request.json", status=202),
    Case(
        method="POST",
        path="/attachments",
        version="3.27",
        body="attachment-create-request.json",
        reply="attachment-create-response.json",
    ),
    Case(
        method="PUT",
        path=A,
        version="3.27",
        body="attachment-update-request.json",
        reply="attachment-update-response.json",
    ),
    Case(method="GET", path=A, version="3.27", reply="attachment-show-response.json"),
    Case(method="GET", path="/attachments", version="3.27", reply="attachment-list-response.json"),
    Case(method="GET", path="/attachments/detail", version="3.27", reply="attachment-list-detailed-response.json"),
    Case(method="POST", path=f"{A}/action", version="3.44", body="attachment-complete.json", status=204),
    Case(method="POST", path=f"{V}/action", body="volume-attach-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="host-attach-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-reserve-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-unreserve-request.json", status=202),
    Case(method="POST", path="/volumes/{used}/action", body="volume-begin-detaching-request.json", status=202),
    Case(method="POST", path="/volumes/{used}/action", body="volume-roll-detaching-request.json", status=202),
    Case(method="POST", path="/volumes/{used}/action", body="volume-detach-request.json", status=202),
    Case(method="POST", path="/volumes/{used}/action", body="volume-force-detach-request.json", status=202),
    Case(method="POST", path=f"{V}/action", body="volume-initialize-connection-request.json", replies=True),
    Case(method="POST", path=f"{V}/action", body="volume-terminate-connection-request.json", status=202),
    Case(
        method="POST",
        path=f"{V}/action",
        version="3.71",
        body="volume-os-extend_volume_completion-request.json",
        # here no extension waits to be completed
        status=400,
        replies=True,
    ),
    Case(
        method="POST",
        path="/types",
        body="volume_type/volume-type-create-request.json",
        reply="volume_type/volume-type-create-response.json",
    ),
    Case(
        method="PUT",
        path=TYPE,
        body="volume_type/volume-type-update-request.json",
        reply="volume_type/volume-type-update-response.json",
    ),
    Case(method="GET", path=TYPE, reply="volume_type/volume-type-show-response.json"),
    Case(method="GET", path="/types", reply="volume_type/volume-types-list-response.json"),
    Case(method="GET", path="/types/default", reply="volume_type/volume-type-default-response.json"),
    Case(method="GET", path=f"{TYPE}/extra_specs", reply="volume_type/volume-type-all-extra-specs-show-response.json"),
    Case(
        method="POST",
        path=f"{TYPE}/extra_specs",
        body="volume_type/volume-type-extra-specs-create-update-request.json",
        reply="volume_type/volume-type-extra-specs-create-update-response.json",
    ),
    Case(
        method="GET",
        path=f"{TYPE}/extra_specs/capabilities",
        reply="volume_type/volume-type-specific-extra-specs-show-response.json",
    ),
    Case(
        method="PUT",
        path=f"{TYPE}/extra_specs/key1",
        body="volume_type/volume-type-specific-extra-specs-update-request.json",
        reply="volume_type/volume-type-specific-extra-specs-update-response.json",
    ),
    Case(
        method="POST",
        path="/types/{private}/action",
        body="volume_type/volume-type-access-add-request.json",
        status=202,
    ),
    Case(method="POST", path="/types/{private}/action", body="volume-type-access-delete-request.json", status=202),
    Case(
        method="GET",
        path="/types/{private}/os-volume-type-access",
        reply="volume_type/volume-type-access-list-response.json",
    ),
    *(
        Case(
            method="PUT",
            path=f"/os-services/{word}",
            body=f"os-services/service-{word}-request.json",
            reply=f"os-services/service-{word}-response.json",
        )
        for word in ("enable", "disable", "disable-log-reason")
    ),
    *(
        Case(
            method="PUT",
            path=f"/os-services/{path}",
            body=f"services-{word}-request.json",
            reply=f"services-{word}-response.json",
        )
        for path, word in (("enable", "enable"), ("disable", "disable"), ("disable-log-reason", "disable-log"))
    ),
    Case(method="GET", path="/os-services", version="3.0", reply="services-list-response.json"),
    Case(method="GET", path="/os-services", version="3.49", reply="os-services/v3.49/services-list-response.json"),
    *(
        Case(
            method="PUT",
            path="/os-services/get-log",
            version="3.32",
            body=f"{name}-get-log-request.json",
            reply=f"{name}-get-log-response.json",
        )
        for name in ("os-services/v3.32/service", "services")
    ),
    *(
        Case(method="PUT", path="/os-services/set-log", version="3.32", body=f"{name}-set-log-request.json", status=202)
        for name in ("os-services/v3.32/service", "services")
    ),
    Case(method="GET", path="/scheduler-stats/get_pools?detail=true", reply="pools-list-detailed-response.json"),
    Case(method="GET", path="/os-availability-zone", reply="availability-zone-list-response.json"),
    Case(method="GET", path="/limits", reply="limits/limits-show-response.json"),
    Case(method="GET", path="/extensions", reply="extensions/extensions-list-response.json"),
    Case(method="GET", path="/", reply="versions/version-show-response.json"),
    Case(method="GET", path="//", reply="versions/versions-response.json", status=300),
    Case(method="POST", path="/qos-specs", body="qos/qos-create-request.json", reply="qos/qos-create-response.json"),
    Case(method="GET", path="/qos-specs?id={qos}", reply="qos/qos-list-response.json"),
    Case(method="GET", path="/qos-specs/{qos}", reply="qos/qos-show-response.json"),
    Case(method="GET", path="/qos-specs/{qos}/associations", reply="qos/qos_show_response.json"),
    Case(
        method="PUT", path="/qos-specs/{qos}", body="qos/qos-update-request.json", reply="qos/qos-update-response.json"
    ),
    Case(method="PUT", path="/qos-specs/{limits}/delete_keys", body="qos/qos-unset-request.json", status=202),
    Case(
        method="POST",
        path=f"{TYPE}/encryption",
        body="volume_type/encryption-type-create-request.json",
        reply="volume_type/encryption-type-create-response.json",
    ),
    Case(method="GET", path="/types/{private}/encryption", reply="volume_type/encryption-type-show-response.json"),
    Case(
        method="GET",
        path="/types/{private}/encryption/cipher",
        reply="volume_type/encryption-type-specific-specs-show-response.json",
    ),
    Case(
        method="PUT",
        path="/types/{private}/encryption/any",
        body="volume_type/encryption-type-update-request.json",
        reply="volume_type/encryption-type-update-response.json",
    ),
    Case(
        method="PUT",
        path="/default-types/{grantee}",
        version="3.62",
        body="set-default-type-request.json",
        reply="set-default-type-response.json",
    ),
    Case(method="GET", path="/default-types", version="3.62", reply="get-default-types-response.json"),
    Case(method="GET", path="/default-types/other", version="3.62", reply="get-default-type-response.json"),
    *(
        Case(method="GET", path=f"/os-quota-sets/other{suffix}", reply=f"quota_sets/quotas-show{word}-response.json")
        for suffix, word in (("", ""), ("/defaults", "-defaults"), ("?usage=True", "-usage"))
    ),
    Case(
        method="PUT",
        path="/os-quota-sets/nobody",
        body="quota_sets/quotas-update-request.json",
        reply="quota_sets/quotas-update-response.json",
    ),
    Case(method="GET", path="/os-quota-class-sets/some", reply="quota_classes/quota-classes-show-response.json"),
    Case(
        method="PUT",
        path="/os-quota-class-sets/some",
        body="quota_classes/quota-classes-update-request.json",
        reply="quota_classes/quota-classes-update-response.json",
    ),
    Case(method="GET", path="/os-hosts", reply="hosts-list-response.json"),
    Case(method="GET", path="/os-hosts/blockstore@memory", reply="hosts-get-response.json"),
    Case(method="GET", path="/resource_filters", version="3.33", reply="resource-filters-list-response.json"),
    *(
        Case(method="PUT", path="/os-services/freeze", body=name)
        for name in ("os-services/service-freeze-request.json", "services-freeze-request.json")
    ),
    *(
        Case(method="PUT", path="/os-services/thaw", body=name, status=400, replies=True)  # nothing is frozen
        for name in ("os-services/service-thaw-request.json", "services-thaw-request.json")
    ),
    Case(
        method="POST",
        path=f"{V}/action",
        body="volume-image-metadata-set-request.json",
        reply="volume-image-metadata-update-response.json",
    ),
    Case(method="POST", path=f"{V}/action", body="volume-image-metadata-unset-request.json", status=404, replies=True),
    Case(
        method="POST",
        path=f"{V}/action",
        body="image-metadata-show-request.json",
        reply="image-metadata-show-response.json",
    ),
    Case(method="POST", path=f"{V}/action", body="volume-os-retype-request.json", status=202),
    *(
        Case(
            method="POST",
            path=path,
            version=version,
            body=f"{folder}-create-request.json",
            reply=f"{folder}-create-response.json",
            status=202,
        )
        for path, version, folder in (
            ("/os-volume-transfer", "3.0", "volume_transfer/volume-transfer"),
            ("/volume-transfers", "3.55", "volume_transfers/v3.55/volume-transfers"),
            ("/volume-transfers", "3.57", "volume_transfers/v3.57/volume-transfers"),
        )
    ),
    *(
        Case(method="GET", path=f"{path}/{{transfer}}", version=version, reply=f"{folder}-show-response.json")
        for path, version, folder in (
            ("/os-volume-transfer", "3.54", "volume_transfer/volume-transfer"),
            ("/os-volume-transfer", "3.71", "volume_transfers/v3.57/volume-transfers"),
            ("/volume-transfers", "3.55", "volume_transfers/v3.55/volume-transfers"),
            ("/volume-transfers", "3.57", "volume_transfers/v3.57/volume-transfers"),
        )
    ),
    Case(method="GET", path="/os-volume-transfer", reply="volume_transfer/volume-transfers-list-response.json"),
    Case(
        method="GET",
        path="/os-volume-transfer/detail",
        reply="volume_transfer/volume-transfers-list-detailed-response.json",
    ),
    *(
        Case(
            method="POST",
            path=f"{path}/{{transfer}}/accept",
            version="3.57",
            body=f"{folder}-accept-request.json",
            reply=f"{folder}-accept-response.json",
            status=202,
        )
        for path, folder in (
            ("/os-volume-transfer", "volume_transfer/volume-transfer"),
            ("/volume-transfers", "volume_transfers/volume-transfers"),
        )
    ),
    *(
        Case(
            method="GET",
            path=f"{path}{detail}?host=blockstore@memory",
            version=version,
            reply=f"{kind}-manage-list{word}-response.json",
        )
        for kind, paths in (
            ("volume", (("/manageable_volumes", "3.8"), ("/os-volume-manage", "3.0"))),
            ("snapshot", (("/manageable_snapshots", "3.8"), ("/os-snapshot-manage", "3.0"))),
        )
        for path, version in paths
        for detail, word in (("", ""), ("/detail", "-detail"))
    ),
    *(
        Case(
            method="POST",
            path=path,
            version=version,
            body=f"{kind}_manage_extensions/{kind}-manage-request.json",
            reply=f"{kind}_manage_extensions/{kind}-manage-response.json",
            status=202,
        )
        for kind, path, version in (
            ("volume", "/manageable_volumes", "3.71"),
            ("volume", "/os-volume-manage", "3.0"),
            ("snapshot", "/manageable_snapshots", "3.71"),
            ("snapshot", "/os-snapshot-manage", "3.0"),
        )
    ),
    Case(
        method="POST",
        path="/manageable_volumes",
        version="3.16",
        body="volume-manage-request-cluster.json",
        status=400,  # there are no clusters
        replies=True,
    ),
    *(
        Case(method="POST", path=f"{path}/action", body="volume-unmanage-request.json", status=202)
        for path in ("/volumes/{spare}", S)
    ),
    Case(
        method="POST",
        path=f"{V}/action",
        body="volume-os-migrate_volume-request.json",
        status=400,  # there is no other backend
        replies=True,
    ),
    Case(
        method="POST",
        path=f"{V}/action",
        body="volume-os-migrate_volume_completion-request.json",
        status=400,  # no migration waits to be completed
        replies=True,
    ),
    Case(method="GET", path="/messages", version="3.3", reply="messages-list-response.json"),
    Case(method="GET", path="/messages/{message}", version="3.3", reply="messages-show-response.json"),
]


def _as_the_code_says(sample: Any) -> None:
    """The sample is of 2014; since then Cinder shows every field of 3.0, none that a policy opens, and types."""
    del sample["volume"]["os-vol-tenant-attr:tenant_id"]
    sample["volume"] |= {"consistencygroup_id": None, "multiattach": False, "replication_status": None}
    sample["volume"] |= {"encrypted": False, "updated_at": None, "bootable": "true"}


CONTRADICTED: dict[str, Callable[[Any], Any]] = {
    # Two samples of one reply differ; the one that Cinder's own functional tests use is followed.
    "services-enable-response.json": lambda sample: sample.pop("disabled_reason"),
    # The sample is of 3.7, where only one of three services shows what 3.7 added.
    "services-list-response.json": lambda sample: sample["services"][2].pop("cluster"),
    # What was never attached or detached has an empty text there, says Cinder's code.
    "attachment-create-response.json": lambda sample: sample["attachment"].update(attached_at="", detached_at=""),
    **dict.fromkeys(
        ("attachment-update-response.json", "attachment-show-response.json"),
        lambda sample: sample["attachment"].update(detached_at=""),
    ),
    "attachment-list-detailed-response.json": lambda sample: sample["attachments"][0].update(detached_at=""),
    "volume_manage_extensions/volume-manage-response.json": _as_the_code_says,
    # Cinder's schema needs it.
    "host-attach-request.json": lambda sample: sample["os-attach"].update(mountpoint="/dev/vdc"),
}


def sample(name: str) -> Any:
    """Read a sample."""
    content = json.loads((SAMPLES / name).read_text())
    if name in CONTRADICTED:
        CONTRADICTED[name](content)
    return content


class Scene:
    """A project with a volume, a snapshot, types and a message."""

    def __init__(self, shared_service: SharedService) -> None:
        self.project = "89afd400b6464bbcb12bc0a4d63e5bd3"
        shared_service.clear()
        self.client = Client(
            shared_service.service,
            **{"X-Roles": "admin,member,reader", "X-User-Id": "c853ca26e8ea47978a52ee124a013d0e"},
        )
        owner = Client(shared_service.service, **{"X-Project-Id": self.project})
        self.ids = {"volume": shared_service.volume(owner, size=1)}
        self.ids["snapshot"] = shared_service.snapshot(owner, self.ids["volume"], progress="100%")
        self.ids["spare"] = shared_service.volume(owner)
        self._fill(shared_service.service.backends[POOL])
        # In a project of its own: in the samples, lists hold nothing that is attached.
        other = Client(shared_service.service, **{"X-Project-Id": "other"})
        self.ids["used"] = shared_service.volume(other, status="in-use", attach_status="attached")
        times = {"created_at": now(), "attached_at": now()}
        facts = {"instance_uuid": new_id(), "attach_mode": "rw", **times}
        self.ids["use"] = shared_service.attachment(other, self.ids["used"], status="attached", **facts)
        self.ids["attachment"] = shared_service.attachment(
            owner, shared_service.volume(owner, status="reserved"), **facts
        )
        self.ids["creating"] = shared_service.snapshot(owner, shared_service.volume(owner), status="creating")
        self.ids["message"] = shared_service.add(
            Message,
            project_id=self.project,
            event_id="VOLUME_VOLUME_001_003",
            action_id="001",
            detail_id="003",
            message_level="ERROR",
            user_message="schedule allocate volume: no",
            resource_type="VOLUME",
            resource_uuid=self.ids["volume"],
        )
        with shared_service.db.write() as session:
            session.add(SnapshotMetadata(snapshot_id=self.ids["snapshot"], key="key", value="v3"))
        self("PUT", f"/volumes/{self.ids['volume']}/metadata", {"metadata": {"name": "metadata1"}})
        for project in ("other", self.client.headers.get("X-Project-Id", ""), "f270b245cb11498ca4031deb7e141cfa"):
            self("DELETE", f"/default-types/{project}")
        for name in ("vol-type-001", "a", "b", "lvm_backend", "dedup-tier-replicaton"):
            self._forget_type(name)
        self.ids["type"] = self._type("a", {"capabilities": "gpu"}, True)
        self.ids["private"] = self._type("b", {}, False)
        self.ids["grantee"] = "f270b245cb11498ca4031deb7e141cfa"
        self("POST", f"/types/{self.ids['private']}/action", {"addProjectAccess": {"project": self.ids["grantee"]}})
        self(
            "POST",
            f"/types/{self.ids['private']}/encryption",
            sample("volume_type/encryption-type-create-request.json"),
        )
        for name in ("lvm_backend", "dedup-tier-replicaton"):
            self._type(name, {}, True)
        self("PUT", "/default-types/other", {"default_type": {"volume_type": "lvm_backend"}})
        for row in self("GET", "/qos-specs").json["qos_specs"]:
            self("DELETE", f"/qos-specs/{row['id']}")
        for word, specs in (("qos", {}), ("limits", {"key1": "1"})):
            made = self("POST", "/qos-specs", {"qos_specs": {"name": word, **specs}})
            self.ids[word] = made.json["qos_specs"]["id"]
        self("PUT", "/os-services/thaw", {"host": "blockstore@memory"})
        self("PUT", "/os-services/enable", {"host": "blockstore@memory", "binary": "cinder-volume"})
        given = {"transfer": {"volume_id": shared_service.volume(owner), "name": "first volume"}}
        offered = self("POST", "/volume-transfers", given).json["transfer"]
        self.ids["transfer"], self.ids["key"] = offered["id"], offered["auth_key"]

    def __call__(self, method: str, path: str, body: Any = None, version: str = "3.71") -> Answer:
        if path == "/":
            return self.client(method, path, body, version=version)
        if path == "//":  # the root, above /v3
            got = self.client.http.get("/")
            return Answer(got.status_code, dict(got.headers), got.data)
        return self.client(method, f"/{self.project}{path}", body, version=version)

    def _fill(self, pool: Backend) -> None:
        """Have a volume of others beside ours on the pool, each with a snapshot."""
        for name, origin in dict(pool.list_snapshots()).items():
            pool.delete_snapshot(origin, name)
        for name in list(pool.list_volumes()):
            pool.delete_volume(name)
        for volume, snapshot in (
            ("existingLV", "lvol0"),
            (f"volume-{self.ids['volume']}", f"snap-{self.ids['snapshot']}"),
        ):
            pool.create_volume(volume, 1)
            pool.create_snapshot(volume, snapshot)

    def _type(self, name: str, specs: dict[str, str], is_public: bool) -> str:
        asked = {"name": name, "extra_specs": specs, "os-volume-type-access:is_public": is_public}
        answer = self("POST", "/types", {"volume_type": asked})
        assert answer.status == 200, answer.body
        return str(answer.json["volume_type"]["id"])

    def _forget_type(self, name: str) -> None:
        for row in self("GET", "/types?is_public=none").json["volume_types"]:
            if row["name"] == name:
                assert self("DELETE", f"/types/{row['id']}").status == 202

    def filled_in(self, name: str) -> Any:
        """Return the body of a request sample with ids and hosts that exist here."""
        content = sample(name)
        inner: Any = next(iter(content.values()))
        if name == "snapshots/snapshot-create-request.json":
            inner["volume_id"] = self.ids["volume"]
        if "snapshot_id" in inner and "revert" in content:
            inner["snapshot_id"] = self.ids["snapshot"]
        if "host" in content:
            content["host"] = "blockstore@memory"
        if "transfer" in content:
            inner["volume_id"] = self.ids["spare"]
        if "accept" in content:
            inner["auth_key"] = self.ids["key"]
        if "volume_uuid" in inner:
            inner["volume_uuid"] = self.ids["volume"]
        if "ref" in inner:
            inner |= {"host": "blockstore@memory"} if inner.get("host") else {}
            inner |= {"volume_id": self.ids["volume"]} if "volume_id" in inner else {}
        if "new_volume" in inner:
            inner["new_volume"] = self.ids["spare"]
        if "attachment_id" in inner:
            inner["attachment_id"] = self.ids["use"]
        if "server" in content:
            content |= {"server": "", "prefix": "blockstore.volume"}
        return content


@pytest.fixture
def scene(sqlite_service: SharedService) -> Scene:
    """What the samples show, made anew."""
    return Scene(sqlite_service)


PER_TYPE = ("volumes_", "gigabytes_", "snapshots_")


def assert_like(wanted: Any, ours: Any, where: str = "") -> None:
    """Fail unless our value has the fields and types of the sample's."""
    if wanted is None or ours is None:
        assert not isinstance(wanted or ours, dict | list), where
    elif isinstance(wanted, dict):
        assert isinstance(ours, dict), where
        key = where.rpartition(".")[2]
        if key == "capabilities":  # a pool says what it likes beside what all say
            ours = {name: ours[name] for name in wanted}
        if key in ("quota_set", "quota_class_set"):  # there are more types than in the sample
            ours = {name: ours[name] for name in ours if name in wanted or not name.startswith(PER_TYPE)}
        if key in OPEN:
            return
        if key in FREE:
            assert all(isinstance(value, type(next(iter(wanted.values()), ""))) for value in ours.values()), where
            return
        assert sorted(wanted) == sorted(ours), where
        for name, value in wanted.items():
            assert_like(value, ours[name], f"{where}.{name}")
    elif isinstance(wanted, list):
        assert isinstance(ours, list), where
        assert bool(wanted) == bool(ours), where
        for item in ours:
            assert_like(_counterpart(wanted, item), item, f"{where}[]")
    elif isinstance(wanted, bool) or isinstance(ours, bool):
        assert type(wanted) is type(ours), where
    elif isinstance(wanted, int | float):
        assert isinstance(ours, int | float), where
    else:
        assert isinstance(ours, str), where
        assert _form(wanted) == _form(ours), where


def _counterpart(wanted: list[Any], item: Any) -> Any:
    """Return the sample's item of the same kind as ours."""
    for name in ("rel", "binary", "alias"):
        if isinstance(item, dict) and name in item:
            return next((w for w in wanted if w.get(name) == item[name]), wanted[0])
    return wanted[0]


def _form(text: str) -> str:
    """Return what kind of text this is, with ids, hosts and times replaced."""
    if re.match(r"https?://(localhost|[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+)", text):
        path = re.sub(r"^https?://[^/]*", "", text)
        return re.sub(r"[0-9a-f-]{32,36}(?=/|$)", "ID", re.sub(r"[0-9a-f-]{16,36}gt(?=/|$)", "ID", path))
    if re.match(r"\d{4}-\d\d-\d\dT", text):
        return "TIME"
    return text if text in ("true", "false") else "TEXT"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_reply_is_as_in_the_sample(scene: Scene, case: Case) -> None:
    body = scene.filled_in(case.body) if case.body else None
    answer = scene(case.method, case.path.format(**scene.ids), body, case.version)
    assert answer.status == case.status, answer.body
    if case.reply is None:
        assert bool(answer.body) == case.replies, answer.body
    else:
        assert_like(sample(case.reply), answer.json)


@pytest.mark.parametrize(
    ("folder", "name", "path"),
    [
        ("volumes", "volume-show-response.json", V),
        ("volumes", "volumes-list-detailed-response.json", "/volumes/detail"),
        ("snapshots", "snapshot-show-response.json", S),
        ("snapshots", "snapshots-list-detailed-response.json", "/snapshots/detail"),
    ],
)
def test_each_version_shows_the_fields_that_it_knows_and_no_others(
    scene: Scene, folder: str, name: str, path: str
) -> None:
    samples = versions_of(folder, name)
    for minor in range(MAXIMUM.minor + 1):
        known = [reply for version, reply in samples if int(version[2:]) <= minor][-1]
        assert_like(sample(known), scene("GET", path.format(**scene.ids), version=f"3.{minor}").json, f"3.{minor} ")


def test_summary_has_no_metadata_before_it_was_added(scene: Scene) -> None:
    answer = scene("GET", "/volumes/summary", version="3.35")
    assert answer.json == {"volume-summary": {"total_count": 5, "total_size": 5}}


def test_services_show_cluster_and_state_since_their_versions(scene: Scene) -> None:
    def fields(version: str) -> set[str]:
        services = scene("GET", "/os-services", version=version).json["services"]
        return set(next(s for s in services if s["binary"] == "cinder-volume"))

    assert fields("3.7") - fields("3.6") == {"cluster"}
    assert fields("3.49") - fields("3.48") == {"backend_state"}


def test_extensions_are_described_in_the_reference_s_words() -> None:
    known = {e["alias"]: e for e in sample("extensions/extensions-list-response.json")["extensions"]}
    assert {alias: known[alias] for alias in EXTENSIONS if alias in known} == {
        alias: extension for alias, extension in EXTENSIONS.items() if alias in known
    }


def _index() -> Iterator[tuple[str, str]]:
    for line in (SAMPLES / "INDEX.tsv").read_text().splitlines():
        part, name = line.split("\t")
        yield name, part


def test_no_sample_is_left_out() -> None:
    compared = {name for case in CASES for name in (case.body, case.reply) if name}
    here = {name for name, part in _index() if part == "here"}
    assert compared == here
    assert here == {str(path.relative_to(SAMPLES)) for path in SAMPLES.rglob("*.json")}
    assert len(dict(_index())) == 310
