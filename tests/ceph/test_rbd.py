"""What is rbd's own: clones and their parents, limits, connections, taking over, figures, faults."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from blockstore_plugins.rbd import RbdBackend

from blockstore.backends.contract import GIB, Progress
from blockstore.errors import BackendError, InUse, NameTaken, NoSpace, Unreachable, VolumeMissing
from tests.ceph.conftest import Ceph, down
from tests.contents import read, write

pytestmark = pytest.mark.ceph


@pytest.fixture
def backend(ceph: Ceph, way: str, tmp_path: Path) -> RbdBackend:
    return ceph.backend(tmp_path, bindings=way)


def name(what: str = "volume") -> str:
    return f"{what}-{uuid.uuid4()}"


def trash(ceph: Ceph) -> list[str]:
    return [row["name"] for row in json.loads(ceph.run("rbd", "trash", "ls", "volumes", "--format", "json"))]


def parent(ceph: Ceph, image: str) -> Any:
    return json.loads(ceph.run("rbd", "info", f"volumes/{image}", "--format", "json")).get("parent")


def tidied(backend: RbdBackend) -> None:
    assert backend._trash.wait_idle(600)


def test_a_parent_waits_in_the_trash_for_its_last_clone(ceph: Ceph, backend: RbdBackend) -> None:
    first, second, third = name(), name(), name()
    backend.create_volume(first, 1)
    write(backend, first, b"bytes")
    backend.clone_volume(second, 1, first)
    backend.clone_volume(third, 1, second)
    backend.delete_volume(first)
    backend.delete_volume(second)
    tidied(backend)
    assert len([one for one in trash(ceph) if first in one or second in one]) == 2
    assert not set(backend.list_volumes()) & {first, second}
    assert read(backend, third, 5) == b"bytes"
    backend.delete_volume(third)
    tidied(backend)
    assert not [one for one in trash(ceph) if first in one or second in one]


def test_a_chain_that_grows_too_long_is_cut(ceph: Ceph, way: str, tmp_path: Path) -> None:
    backend = ceph.backend(tmp_path, bindings=way, max_clone_depth=2)
    chain = [name()]
    backend.create_volume(chain[0], 1)
    write(backend, chain[0], b"bytes")
    for _ in range(3):
        chain.append(name())
        backend.clone_volume(chain[-1], 1, chain[-2])
    tidied(backend)
    assert [parent(ceph, one) is not None for one in chain] == [False, True, True, False]
    assert read(backend, chain[-1], 5) == b"bytes"
    backend.delete_volume(chain[1])  # what lies in the trash counts as well
    chain.append(name())
    backend.clone_volume(chain[-1], 1, chain[2])
    tidied(backend)
    assert not parent(ceph, chain[-1])
    for one in chain:
        backend.delete_volume(one)
    tidied(backend)
    assert not [one for one in trash(ceph) if any(word in one for word in chain)]


def test_a_chain_that_a_kill_left_too_long_is_cut_at_the_next_start(ceph: Ceph, way: str, tmp_path: Path) -> None:
    first = ceph.backend(tmp_path, bindings=way)
    chain = [name() for _ in range(4)]
    first.create_volume(chain[0], 1)
    for below, above in itertools.pairwise(chain):
        first.clone_volume(above, 1, below)
    tidied(first)
    first.delete_volume(chain[1])
    tidied(first)
    again = ceph.backend(tmp_path, bindings=way, max_clone_depth=2)
    tidied(again)
    assert [parent(ceph, one) is not None for one in (chain[0], *chain[2:])] == [False, True, False]
    for one in chain:
        again.delete_volume(one)
    tidied(again)


def test_looks_open_no_image(ceph: Ceph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that goes while librbd opens it takes the process down; the headers tell the same."""
    place = f"h{uuid.uuid4().hex[:8]}"
    ceph.run("rbd", "namespace", "create", f"volumes/{place}")
    asked = ceph.backend(tmp_path / "asked", bindings="no", namespace=place, max_clone_depth=9)
    looked = ceph.backend(tmp_path / "looked", bindings="yes", namespace=place, max_clone_depth=9)
    for volume, size_gib in ("plain", 1), ("source", 2), ("gone", 1):
        looked.create_volume(volume, size_gib)
    looked.create_snapshot("source", "first")
    looked.extend_volume("source", 3)
    looked.create_snapshot("source", "second")
    looked.create_snapshot("source", "removed-and-needed")
    looked.create_volume_from_snapshot("clone", 4, "source", "first")
    looked.create_volume_from_snapshot("other", 3, "source", "removed-and-needed")
    looked.delete_snapshot("source", "removed-and-needed")
    looked.clone_volume("clone-of-gone", 1, "gone")
    looked.clone_volume("below-clone", 4, "clone")
    looked.delete_volume("gone")
    ceph.run("rbd", "create", "--size", "1M", "fast/elsewhere")
    ceph.run("rbd", "snap", "create", "fast/elsewhere@s")
    words = ("clone", "--rbd-default-clone-format", "2", "fast/elsewhere@s", f"volumes/{place}/clone-from-elsewhere")
    ceph.run("rbd", *words)
    tidied(looked)
    ways = asked._cluster, looked._cluster
    sizes, snapshots, parents = (
        [dict(one.sizes()) for one in ways],
        [sorted(one.all_snapshots()) for one in ways],
        [dict(one.parents()) for one in ways],
    )
    monkeypatch.setattr(type(looked._cluster), "_image", None)
    assert dict(looked._cluster.sizes()) == sizes[0] == sizes[1]
    assert sorted(looked._cluster.all_snapshots()) == snapshots[0] == snapshots[1]
    assert [row for row in snapshots[0] if row[0] == "source"] == [
        ("source", "first", 2 * GIB),
        ("source", "second", 3 * GIB),
    ]
    assert dict(looked._cluster.parents()) == parents[0] == parents[1]
    in_trash = next(one for one in trash_of(ceph, place))
    assert parents[0] == {
        "clone": "source",
        "other": "source",
        "below-clone": "clone",
        "clone-of-gone": in_trash,
        "clone-from-elsewhere": "",
    }
    for image in (*sizes[0], in_trash, "never-there"):
        assert looked._cluster.parent(image) == asked._cluster.parent(image) == parents[0].get(image), image
    assert looked._cluster.snapshots("source")
    assert looked._cluster.snapshots("plain") == []
    ceph.run("rbd", "rm", f"volumes/{place}/clone-from-elsewhere")
    ceph.run("rbd", "snap", "rm", "fast/elsewhere@s")  # the pool is other tests', too
    ceph.run("rbd", "rm", "fast/elsewhere")


def trash_of(ceph: Ceph, place: str) -> list[str]:
    return [row["name"] for row in json.loads(ceph.run("rbd", "trash", "ls", f"volumes/{place}", "--format", "json"))]


def test_a_snapshot_that_ceph_says_is_removed_is_gone(backend: RbdBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever flattens an image removes its snapshots, and may not have heard yet of the one that is meant."""
    volume, snapshot = name(), name("snapshot")
    backend.create_volume(volume, 1)
    backend.create_snapshot(volume, snapshot)
    ask, unheard = backend._cluster.ask_to_remove_snapshot, 1000

    def ask_in_vain(of: str, one: str) -> None:
        nonlocal unheard
        if not unheard:
            ask(of, one)
        unheard = max(0, unheard - 1)

    monkeypatch.setattr(backend._cluster, "ask_to_remove_snapshot", ask_in_vain)
    with pytest.raises(InUse, match=f"Snapshot {snapshot} of {volume} cannot be removed while"):
        backend.delete_snapshot(volume, snapshot)
    unheard = 2
    backend.delete_snapshot(volume, snapshot)
    assert snapshot not in backend.list_snapshots()
    backend.delete_volume(volume)


def test_a_flatten_tells_how_far_it_is_and_makes_way_for_a_delete(ceph: Ceph, way: str, tmp_path: Path) -> None:
    backend = ceph.backend(tmp_path, bindings=way, max_clone_depth=1)
    chain = [name() for _ in range(3)]
    backend.create_volume(chain[0], 1)
    for at in range(0, GIB, GIB // 32):
        write(backend, chain[0], b"bytes", at)
    tidied(backend)
    half, go_on = threading.Event(), threading.Event()
    cluster = backend._cluster
    flatten = cluster.flatten

    def slowly(image: str, progress: Progress) -> None:
        def tell(percent: int) -> None:
            progress(percent)
            if percent >= 50:
                half.set()
                assert go_on.wait(600)

        flatten(image, tell)

    cluster.flatten = slowly  # type: ignore[method-assign]
    for below, above in itertools.pairwise(chain):
        backend.clone_volume(above, 1, below)
    assert half.wait(600)
    (told,) = [task for task in backend.background_tasks() if chain[2] in task.what]
    assert 50 <= told.percent < 100
    assert "independent of its parents" in told.what
    with ThreadPoolExecutor(1) as thread:
        deleted = thread.submit(backend.delete_volume, chain[2])
        with pytest.raises(TimeoutError):
            deleted.result(0.5)
        assert not [task for task in backend.background_tasks() if task.what == told.what and task != told]
        go_on.set()
        deleted.result(60)
    tidied(backend)
    assert backend.background_tasks() == []
    assert chain[2] not in backend.list_volumes()
    for one in chain[:2]:
        backend.delete_volume(one)
    tidied(backend)


def test_what_a_kill_leaves_of_a_clone_is_completed(ceph: Ceph, backend: RbdBackend) -> None:
    source, target = name(), name()
    backend.create_volume(source, 1)
    write(backend, source, b"first")
    ceph.run("rbd", "snap", "create", "--no-progress", f"volumes/{source}@clone-{target}")
    write(backend, source, b"later")
    backend.clone_volume(target, 2, source)  # a snapshot nobody cloned from is old: its bytes are not the present ones
    assert read(backend, target, 5) == b"later"
    other = name()
    ceph.run("rbd", "snap", "create", "--no-progress", f"volumes/{source}@clone-{other}")
    ceph.run("rbd", "clone", "--rbd-default-clone-format", "2", f"volumes/{source}@clone-{other}", f"volumes/{other}")
    backend.clone_volume(other, 3, source)
    assert backend.list_volumes()[other] == 3
    assert not [snapshot for snapshot, volume in backend.list_snapshots().items() if volume == source]
    assert ceph.run("rbd", "snap", "ls", f"volumes/{source}") == ""
    for one in (source, target, other):
        backend.delete_volume(one)


def test_what_a_kill_leaves_of_a_burial_is_completed(ceph: Ceph, way: str, backend: RbdBackend, tmp_path: Path) -> None:
    source, clone = name(), name()
    backend.create_volume(source, 1)
    backend.clone_volume(clone, 1, source)
    gone = f"blockstore-gone-{source}-0"
    ceph.run("rbd", "rename", f"volumes/{source}", f"volumes/{gone}")
    assert source not in backend.list_volumes()
    assert gone not in backend.list_volumes()
    again = ceph.backend(tmp_path, bindings=way)
    tidied(again)
    assert gone in trash(ceph)
    again.delete_volume(clone)
    tidied(again)
    assert gone not in trash(ceph)


def test_what_is_open_in_the_trash_goes_once_it_is_closed(ceph: Ceph, tmp_path: Path) -> None:
    """A killed process has its images open until Ceph gives it up, after half a minute."""
    backend = ceph.backend(tmp_path, bindings="yes")
    source, clone = name(), name()
    backend.create_volume(source, 1)
    backend.clone_volume(clone, 1, source)
    backend.delete_volume(source)
    tidied(backend)
    gone = next(row for row in json.loads(ceph.run("rbd", "trash", "ls", "volumes", "--format", "json"))
                if source in row["name"])  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_OPEN, str(ceph.folder), str(tmp_path), gone["id"]], stdin=PIPE, stdout=PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        backend.delete_volume(clone)
        tidied(backend)
        assert gone["name"] in trash(ceph)
        holder.communicate()
    backend.check()
    tidied(backend)
    assert gone["name"] not in trash(ceph)


HOLD_OPEN = """
import sys
from pathlib import Path
from tests.ceph.conftest import Ceph
folder, state, image_id = sys.argv[1:]
cluster = Ceph(Path(folder)).backend(Path(state), bindings="yes")._cluster
with cluster._asking("the test") as pool, cluster._rbd.Image(pool, image_id=image_id):
    print("open", flush=True)
    sys.stdin.read()
"""


def test_limits_are_the_images_own(ceph: Ceph, backend: RbdBackend) -> None:
    volume = name()
    backend.create_volume(volume, 1)

    def kept() -> dict[str, str]:
        rows = json.loads(ceph.run("rbd", "config", "image", "ls", f"volumes/{volume}", "--format", "json"))
        return {row["name"]: row["value"] for row in rows if row["source"] == "image"}

    backend.limit_volume(volume, {"total_iops_sec": 500, "read_bytes_sec_max": 1000, "size_iops_sec": 1})
    assert kept() == {"rbd_qos_iops_limit": "500", "rbd_qos_read_bps_burst": "1000"}
    backend.limit_volume(volume, {"write_iops_sec": 7})
    assert kept() == {"rbd_qos_write_iops_limit": "7"}
    backend.limit_volume(volume, {})
    assert kept() == {}
    backend.delete_volume(volume)


def test_consumers_are_told_all_but_the_key(ceph: Ceph, backend: RbdBackend) -> None:
    volume = name()
    with pytest.raises(VolumeMissing):
        backend.direct(volume)
    backend.create_volume(volume, 1)
    told = backend.direct(volume)
    fsid = ceph.run("ceph", "fsid").strip()
    address = json.loads(ceph.run("ceph", "mon", "dump", "--format", "json"))["mons"][0]["addr"]
    assert told.driver_volume_type == "rbd"
    assert told.data == {
        "name": f"volumes/{volume}", "hosts": ["127.0.0.1"], "ports": [address.partition("/")[0].rpartition(":")[2]],
        "cluster_name": "ceph", "auth_enabled": True, "auth_username": "cinder", "secret_type": "ceph",
        "secret_uuid": fsid, "discard": True,
    }  # fmt: skip
    key = (ceph.folder / "cinder.secret").read_text().strip()
    assert key not in json.dumps(told.data)
    backend.delete_volume(volume)


def test_images_of_others_are_taken_over(ceph: Ceph, backend: RbdBackend) -> None:
    theirs, ours = f"vm.{uuid.uuid4().hex}", name()
    ceph.run("rbd", "create", "--size", "1500M", f"volumes/{theirs}")
    ceph.run("rbd", "create", "--size", "1G", f"volumes/{theirs}.b")
    ceph.run("rbd", "snap", "create", "--no-progress", f"volumes/{theirs}.b@their-own")
    listed = {one.reference: one for one in backend.list_manageable()}
    assert (listed[theirs].size_bytes, listed[theirs].reason) == (1500 * 2**20, None)
    assert backend.manage_volume(theirs, ours) == 2
    assert backend.manage_volume(theirs, ours) == 2
    assert backend.list_volumes()[ours] == 2
    other, shot = name(), name("snap")
    assert backend.manage_volume(f"{theirs}.b", other) == 1
    assert ("their-own", other) in [(one.reference, one.volume) for one in backend.list_manageable_snapshots()]
    for _ in range(2):
        backend.manage_snapshot(other, "their-own", shot)
    assert backend.list_snapshots()[shot] == other
    with pytest.raises(VolumeMissing):
        backend.manage_volume("nothing", name())
    with pytest.raises(NameTaken):
        backend.manage_volume(ours, other)
    for bad in ("../x", "a/b", "a@b", "--size=1", ""):
        with pytest.raises(BackendError):
            backend.manage_volume(bad, name())
    with backend.open_volume(other, "r+b"), pytest.raises(InUse):
        backend.manage_volume(other, name())
    backend.delete_snapshot(other, shot)
    backend.delete_volume(other)
    backend.delete_volume(ours)


def test_snapshots_that_cinder_protected_can_be_deleted(ceph: Ceph, backend: RbdBackend, tmp_path: Path) -> None:
    """Cinder protects all of its snapshots. Only clones of the old format need that: these are named."""
    volume, new, shot = name(), name(), name("snap")
    old = f"volume-{uuid.uuid4()}"
    ceph.run("rbd", "create", "--size", "1G", f"volumes/{old}")
    ceph.run("rbd", "snap", "create", "--no-progress", f"volumes/{old}@snapshot-1")
    ceph.run("rbd", "snap", "protect", f"volumes/{old}@snapshot-1")
    for format, clone in (("1", f"volumes/{old}.v1"), ("2", f"volumes/{old}.v2")):
        ceph.run("rbd", "clone", "--rbd-default-clone-format", format, f"volumes/{old}@snapshot-1", clone)
    own = f"volumes/{old}@volume-{uuid.uuid4()}.clone_snap"  # Cinder makes one for each clone of a volume
    ceph.run("rbd", "snap", "create", "--no-progress", own)
    ceph.run("rbd", "snap", "protect", own)
    ceph.run("rbd", "clone", "--rbd-default-clone-format", "1", own, f"volumes/{old}.v3")
    backend.manage_volume(old, volume)
    write(backend, volume, b"later")
    backend.manage_snapshot(volume, "snapshot-1", shot)
    backend.manage_volume(f"{old}.v2", new)
    with pytest.raises(InUse) as refused:
        backend.delete_snapshot(volume, shot)
    assert f"its clones of the old format: volumes/{old}.v1." in str(refused.value)
    assert f"rbd flatten volumes/{old}.v1" in str(refused.value)
    assert backend.list_snapshots()[shot] == volume
    ceph.run("rbd", "flatten", "--no-progress", f"volumes/{old}.v1")
    for _ in range(2):
        backend.delete_snapshot(volume, shot)
    assert shot not in backend.list_snapshots()
    assert parent(ceph, new)
    assert read(backend, new, 5) == bytes(5)
    with pytest.raises(InUse, match=f"its clones of the old format: volumes/{old}.v3"):
        backend.delete_volume(volume)
    ceph.run("rbd", "rm", "--no-progress", f"volumes/{old}.v3")
    backend.delete_volume(volume)
    assert volume not in backend.list_volumes()
    ceph.run("rbd", "rm", "--no-progress", f"volumes/{old}.v1")
    backend.delete_volume(new)
    tidied(backend)


def test_regions_are_where_data_is(backend: RbdBackend) -> None:
    volume, clone = name(), name()
    backend.create_volume(volume, 1)
    write(backend, volume, b"x", GIB // 2)
    backend.clone_volume(clone, 2, volume)
    write(backend, clone, b"x", 2 * GIB - 1)
    found = list(backend.regions(clone, 2 * GIB))
    assert sum(length for _offset, length in found) <= 8 * 2**20
    assert [any(offset <= at < offset + length for offset, length in found) for at in (0, GIB // 2, 2 * GIB - 1)] == [
        False, True, True,
    ]  # fmt: skip
    backend.delete_volume(clone)
    backend.delete_volume(volume)


def test_a_namespace_is_a_pool_of_its_own(ceph: Ceph, way: str, tmp_path: Path) -> None:
    place = f"n{uuid.uuid4().hex[:8]}"
    with pytest.raises(Unreachable, match=f"rbd namespace create volumes/{place}"):
        ceph.backend(tmp_path, bindings=way, namespace=place)
    ceph.run("rbd", "namespace", "create", f"volumes/{place}")
    backend = ceph.backend(tmp_path, bindings=way, namespace=place)
    source, clone = name(), name()
    backend.create_volume(source, 1)
    write(backend, source, b"bytes")
    backend.clone_volume(clone, 1, source)
    assert read(backend, clone, 5) == b"bytes"
    assert set(backend.list_volumes()) == {source, clone}
    assert backend.direct(clone).data["name"] == f"volumes/{place}/{clone}"
    for one in (clone, source):
        backend.delete_volume(one)


def test_several_pools_are_several_backends(ceph: Ceph, tmp_path: Path) -> None:
    pools = RbdBackend.open_pools("ceph", ceph.options(pools="volumes, fast"), tmp_path)
    assert [backend.pool for backend in pools] == ["volumes", "fast"]
    volume = name()
    pools[1].check()
    pools[1].create_volume(volume, 1)
    assert volume in pools[1].list_volumes()
    assert volume not in pools[0].list_volumes()
    pools[1].delete_volume(volume)


def test_figures_count_what_the_pool_may_take(ceph: Ceph, way: str, tmp_path: Path) -> None:
    backend = ceph.backend(tmp_path, bindings=way, pools="fast")
    before = backend.capacity()
    assert 10 < before.total_gib < 17
    ceph.run("ceph", "osd", "pool", "set-quota", "fast", "max_bytes", str(3 * GIB))
    assert backend.capacity().total_gib == 3
    ceph.run("ceph", "osd", "pool", "set-quota", "fast", "max_bytes", "0")


def data_pool(ceph: Ceph, image: str) -> str:
    return str(json.loads(ceph.run("rbd", "info", f"volumes/{image}", "--format", "json")).get("data_pool", ""))


def test_data_in_a_pool_of_its_own(ceph: Ceph, way: str, tmp_path: Path) -> None:
    """New images have their data where the option says, else the pool's own; capacity is that pool's, and its quota."""
    backend = ceph.backend(tmp_path, bindings=way, data_pool="small")
    volume, clone, other = name(), name(), name()
    backend.create_volume(volume, 1)
    write(backend, volume, b"bytes")
    backend.clone_volume(clone, 1, volume)
    assert [data_pool(ceph, image) for image in (volume, clone)] == ["small", "small"]
    assert read(backend, clone, 5) == b"bytes"
    ceph.run("ceph", "osd", "pool", "set-quota", "small", "max_bytes", str(3 * GIB))
    ceph.run("rbd", "config", "pool", "set", "volumes", "rbd_default_data_pool", "small")
    try:
        assert backend.capacity().total_gib == 3
        plain = ceph.backend(tmp_path, bindings=way)
        assert plain.capacity().total_gib == 3
        plain.create_volume(other, 1)
        assert data_pool(ceph, other) == "small"
    finally:
        ceph.run("rbd", "config", "pool", "rm", "volumes", "rbd_default_data_pool")
        ceph.run("ceph", "osd", "pool", "set-quota", "small", "max_bytes", "0")
    assert plain.capacity().total_gib > 3
    for image in (other, clone, volume):
        backend.delete_volume(image)
    tidied(backend)
    assert "rbd_data" not in ceph.run("rados", "--pool", "small", "ls")


def test_a_user_that_may_not_blocklist_is_told_its_caps(ceph: Ceph, way: str, tmp_path: Path) -> None:
    """The lock of a client that died would stay for ever. The look asks the monitors, and changes nothing."""
    file = tmp_path / "old.keyring"
    caps = ("mon", "allow r", "osd", "allow rwx pool=volumes, allow class-read object_prefix rbd_children")
    ceph.run("ceph", "auth", "get-or-create", "client.old", *caps, "-o", str(file))
    before = json.loads(ceph.run("ceph", "osd", "dump", "--format", "json"))["blocklist"]
    backend = RbdBackend("ceph", ceph.options(bindings=way, user="old", keyring=file), tmp_path)
    with pytest.raises(Unreachable, match=r"may not `osd blocklist`.*ceph auth caps client.old mon 'profile rbd'"):
        backend.check()
    ceph.run("ceph", "auth", "caps", "client.old", "mon", "profile rbd", *caps[2:])
    backend.check()  # without a new start
    assert json.loads(ceph.run("ceph", "osd", "dump", "--format", "json"))["blocklist"].items() <= before.items()
    ceph.run("ceph", "auth", "rm", "client.old")


def test_nothing_is_gone_because_the_key_or_the_pool_is(ceph: Ceph, way: str, tmp_path: Path) -> None:
    for options, words in (({"keyring": tmp_path / "none"}, "keyring"), ({"pools": "none"}, "The pool none")):
        backend = RbdBackend("ceph", ceph.options(bindings=way, **options), tmp_path)
        with pytest.raises(Unreachable, match=words):
            backend.delete_volume(name())
        with pytest.raises(Unreachable, match=words):
            backend.delete_snapshot(name(), name("snap"))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ceph_conf": Path("/nowhere/ceph.conf")}, "/nowhere/ceph.conf does not exist"),
        ({"pools": "none"}, "Create it: ceph osd pool create none"),
        ({"data_pool": "none"}, "The pool none, for the data of new images in volumes,.*ceph osd pool create none"),
        ({"user": "stranger", "timeout_s": 60}, "does not admit client.stranger.*ceph auth get client.stranger"),
        ({"keyring": Path("/nowhere/key")}, "The keyring of client.cinder does not exist: /nowhere/key"),
    ],
)
def test_what_is_set_up_wrongly_says_so(
    ceph: Ceph, way: str, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(BackendError, match=words):
        ceph.backend(tmp_path, bindings=way, **options)


def test_a_key_that_ceph_did_not_find_is_no_missing_pool(ceph: Ceph, way: str, tmp_path: Path) -> None:
    """Without the option keyring Ceph looks where its configuration says."""
    conf = tmp_path / "ceph.conf"
    text = ceph.conf.read_text()
    conf.write_text(text.replace(f"keyring = {ceph.folder}/keyring", f"keyring = {tmp_path}/$name.keyring"))
    with pytest.raises(
        Unreachable, match=f"The keyring of client.cinder does not exist: {tmp_path}/client.cinder.keyring"
    ):
        ceph.backend(tmp_path, bindings=way, ceph_conf=conf, keyring=None)


# --- faults: on a cluster of their own ------------------------------------------------------------------------


@pytest.fixture
def hurt(new_ceph: Callable[..., Ceph]) -> Iterator[Ceph]:
    cluster = new_ceph("--size", "2G")
    yield cluster
    down(cluster)


def stop(ceph: Ceph, daemon: str) -> None:
    os.kill(ceph.pid(daemon), signal.SIGSTOP)


def _ask(backend: RbdBackend) -> None:
    backend.check()
    backend.create_volume(name(), 1)


def _ask_often(backend: RbdBackend) -> None:
    for _ in range(100):
        _ask(backend)


def go_on(ceph: Ceph, daemon: str) -> None:
    os.kill(ceph.pid(daemon), signal.SIGCONT)


@pytest.mark.parametrize("frozen", ["osd", "mon"])
def test_a_daemon_that_hangs_is_waited_for_but_not_for_ever(hurt: Ceph, frozen: str, way: str, tmp_path: Path) -> None:
    """Each call ends in time with a reason, and the same backend works again when the daemon does."""
    backend = hurt.backend(tmp_path, bindings=way, timeout_s=8)
    kept = name()
    backend.create_volume(kept, 1)
    write(backend, kept, b"bytes")
    stop(hurt, frozen)
    try:
        began = time.monotonic()
        with pytest.raises(BackendError):
            _ask(backend)
        assert time.monotonic() - began < 600
    finally:
        go_on(hurt, frozen)
    deadline = time.monotonic() + 600
    while True:
        try:
            backend.check()
            break
        except BackendError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert read(backend, kept, 5) == b"bytes"
    made = name()
    backend.create_volume(made, 1)
    backend.delete_volume(made)
    backend.delete_volume(kept)


def _flags(ceph: Ceph, pool: str) -> str:
    rows = json.loads(ceph.run("ceph", "osd", "dump", "--format", "json"))["pools"]
    return next(str(row["flags_names"]) for row in rows if row["pool_name"] == pool)


def test_a_full_pool_says_so_and_loses_nothing(hurt: Ceph, way: str, tmp_path: Path) -> None:
    backend = hurt.backend(tmp_path, bindings=way, timeout_s=8, pools="small")
    kept, gone, clone, shot = name(), name(), name(), name("snap")
    for one in (kept, gone):
        backend.create_volume(one, 1)
        write(backend, one, b"bytes")
    backend.create_snapshot(kept, shot)
    backend.clone_volume(clone, 1, gone)
    hurt.run("ceph", "osd", "pool", "set-quota", "small", "max_bytes", "1")
    deadline = time.monotonic() + 600
    while "full" not in _flags(hurt, "small"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    made = name()
    with pytest.raises(NoSpace, match="The pool small is full"):
        backend.create_volume(made, 1)
    with pytest.raises(
        NoSpace, match=r"Clones need data of|small is full"
    ):  # its bytes are needed: nothing would be freed
        backend.delete_volume(gone)
    assert gone in backend.list_volumes()
    backend.delete_snapshot(kept, shot)
    for one in (clone, gone):
        backend.delete_volume(one)
    assert set(backend.list_volumes()) == {kept}
    if way == "yes":  # qemu, by which the programs read, opens nothing in a full pool
        assert read(backend, kept, 5) == b"bytes"
    hurt.run("ceph", "osd", "pool", "set-quota", "small", "max_bytes", "0")
    deadline = time.monotonic() + 600
    while True:
        try:
            backend.create_volume(made, 1)
            break
        except BackendError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert read(backend, kept, 5) == b"bytes"
    for one in (made, kept):
        backend.delete_volume(one)
    assert backend.list_volumes() == {}


def test_a_client_that_was_shut_out_comes_back(hurt: Ceph, tmp_path: Path) -> None:
    backend = hurt.backend(tmp_path, bindings="yes", timeout_s=8)
    volume = name()
    backend.create_volume(volume, 1)
    opened = backend.open_volume(volume, "r+b")
    file = opened.__enter__()
    file.write(b"bytes")
    file.flush()
    (who,) = backend._cluster.watchers(volume)
    hurt.run("ceph", "osd", "blocklist", "add", who)
    with pytest.raises(BackendError):
        _ask_often(backend)
    with pytest.raises(BackendError):  # what was open is lost, and says so
        opened.__exit__(None, None, None)
    deadline = time.monotonic() + 600
    while True:
        try:
            backend.check()
            break
        except BackendError:
            assert time.monotonic() < deadline
            time.sleep(0.5)
    assert read(backend, volume, 5) == b"bytes"
