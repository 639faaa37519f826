"""`blockstore serve` killed by SIGKILL at random instants under load: nothing is lost, stuck, leaked or miscounted.

``KILLS`` sets the number of kills. Starts are forked from a warm interpreter, which saves the imports; every
twenty-fifth is a cold one, by the command a user types.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import sampling
from tests.crash.conftest import KilledService

KILLS = int(os.environ.get("KILLS", sampling.effort(40, 1000)))
COLD_EVERY = 25
CLIENTS = 4
LOAD_S = 0.25
MOST_MEDIAN_DRAIN_S = 5.0
MANY = 24
BACKENDS = ("blockstore@directory", "blockstore@spare")

RACES = re.compile(r"is not in |is gone|There is no volume ")
"""What a client may bring upon itself: a copy of what it deletes, or takes over, in the same breath."""


class ExpectedState:
    """What the clients were answered, and so must be true after any crash."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.alive: dict[str, set[str]] = {"volumes": set(), "snapshots": set()}
        self.gone: dict[str, set[str]] = {"volumes": set(), "snapshots": set()}
        self.sizes: dict[str, int] = {}
        """Of volumes whose size is certain."""
        self.growing: set[str] = set()
        """Volumes that a client is asking to extend."""
        self.origin: dict[str, str] = {}
        self.cascading: set[str] = set()
        """Volumes that a client is removing with their snapshots, also those whose answer is on its way to another."""
        self.unmanage = 0
        """Volumes that may have been let go since all that was found was taken over."""
        self.answered: Counter[str] = Counter()

    def compare(self, listed: dict[str, dict[str, Any]]) -> None:
        """Compare with what is there, and take over what was made by requests that got no answer."""
        for noun in ("volumes", "snapshots"):
            lost = self.alive[noun] - set(listed[noun])
            assert not lost, f"{noun} that were answered 202 and never deleted are gone: {lost}"
            back = self.gone[noun] & set(listed[noun])
            assert not back, f"{noun} whose deletion was answered 202 are there: {back}"
            self.alive[noun] = set(listed[noun])
        for volume_id, size in self.sizes.items():
            if volume_id in listed["volumes"] and listed["volumes"][volume_id]["status"] == "available":
                assert listed["volumes"][volume_id]["size"] == size, (listed["volumes"][volume_id], size)
        self.growing.clear()
        self.cascading.clear()
        self.sizes = {volume["id"]: volume["size"] for volume in listed["volumes"].values()}
        self.origin = {shot["id"]: shot["volume_id"] for shot in listed["snapshots"].values()}


class Load:
    """One client: asks for this and that, and notes what it was answered, until nobody answers."""

    def __init__(self, truth: ExpectedState, url: str, seed: float) -> None:
        self.truth, self.dice = truth, random.Random(seed)
        self.http = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)

    def run(self) -> None:
        """Work until the server is gone."""
        verbs = [
            self.create, self.copy, self.clone, self.snapshot, self.extend, self.revert, self.delete_snapshot,
            self.move, self.unmanage, self.take_over,
        ]  # fmt: skip
        try:
            while True:
                with self.truth.lock:
                    many = len(self.truth.alive["volumes"]) > MANY
                self.dice.choice([*verbs, *[self.delete] * (12 if many else 2)])()
        except (OSError, http.client.HTTPException):
            pass
        finally:
            self.http.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json", "OpenStack-API-Version": "volume 3.71"}
        self.http.request(method, f"/v3{path}", None if body is None else json.dumps(body), headers)
        answer = self.http.getresponse()
        data = answer.read()
        assert answer.status < 500, (method, path, body, data)
        self.truth.answered[f"{method} {answer.status}"] += 1
        return answer.status, json.loads(data) if data else None

    def pick(self, noun: str) -> str:
        with self.truth.lock:
            return self.dice.choice(sorted(self.truth.alive[noun]) or ["00000000-0000-4000-8000-000000000000"])

    def made(self, noun: str, answer: tuple[int, Any]) -> None:
        if answer[0] == 202:
            (thing,) = answer[1].values()
            with self.truth.lock:
                if thing.get("volume_id") not in self.truth.cascading:
                    self.truth.alive[noun].add(thing["id"])
                if noun == "volumes" and thing["size"]:  # what is taken over has none yet
                    self.truth.sizes[thing["id"]] = thing["size"]
                elif noun == "snapshots":
                    self.truth.origin[thing["id"]] = thing["volume_id"]

    def create(self) -> None:
        self.made("volumes", self.ask("POST", "/volumes", {"volume": {"size": self.dice.randint(1, 2)}}))

    def copy(self) -> None:
        self.made("volumes", self.ask("POST", "/volumes", {"volume": {"snapshot_id": self.pick("snapshots")}}))

    def clone(self) -> None:
        self.made("volumes", self.ask("POST", "/volumes", {"volume": {"source_volid": self.pick("volumes")}}))

    def snapshot(self) -> None:
        self.made("snapshots", self.ask("POST", "/snapshots", {"snapshot": {"volume_id": self.pick("volumes")}}))

    def extend(self) -> None:
        volume_id = self.pick("volumes")
        with self.truth.lock:
            if volume_id in self.truth.growing:
                return
            self.truth.growing.add(volume_id)
            size = self.truth.sizes.pop(volume_id, None)
        new_size = (size or 1) + 1
        status, _ = self.ask("POST", f"/volumes/{volume_id}/action", {"os-extend": {"new_size": new_size}})
        with self.truth.lock:
            self.truth.growing.discard(volume_id)
            if size is not None:
                self.truth.sizes[volume_id] = new_size if status == 202 else size

    def revert(self) -> None:
        snapshot_id = self.pick("snapshots")
        volume_id = self.truth.origin.get(snapshot_id, self.pick("volumes"))
        self.ask("POST", f"/volumes/{volume_id}/action", {"revert": {"snapshot_id": snapshot_id}})

    def move(self) -> None:
        body = {"os-migrate_volume": {"host": self.dice.choice(BACKENDS)}}
        self.ask("POST", f"/volumes/{self.pick('volumes')}/action", body)

    def unmanage(self) -> None:
        volume_id = self.pick("volumes")
        with self.truth.lock:
            self.truth.unmanage += 1
        if not self.remove("volumes", volume_id, action=f"/volumes/{volume_id}/action"):
            with self.truth.lock:
                self.truth.unmanage -= 1

    def take_over(self) -> None:
        for host, reference in self.free()[:1]:
            self.made("volumes", self.ask("POST", "/manageable_volumes", {"volume": {"host": host, "ref": reference}}))

    def free(self) -> list[tuple[str, Any]]:
        """Return backend and reference of what may be taken over."""
        lists = {host: self.ask("GET", f"/manageable_volumes?host={host}")[1] for host in BACKENDS}
        return [
            (host, one["reference"])
            for host, found in lists.items()
            for one in found["manageable-volumes"]
            if one["safe_to_manage"]
        ]

    def take_over_all(self) -> None:
        """Take over all that was let go: no more than that is there, so nothing was left behind."""
        while free := self.free():
            assert len(free) <= self.truth.unmanage, (free, self.truth.unmanage)
            self.take_over()
        self.http.close()

    def delete_snapshot(self) -> None:
        self.remove("snapshots", self.pick("snapshots"))

    def delete(self) -> None:
        volume_id = self.pick("volumes")
        if self.dice.random() < 0.5:
            self.remove("volumes", volume_id)
            return
        with self.truth.lock:
            self.truth.cascading.add(volume_id)
            unsure = {shot for shot, origin in self.truth.origin.items() if origin == volume_id}
            self.truth.alive["snapshots"] -= unsure
        done = self.remove("volumes", volume_id, "?cascade=true")
        with self.truth.lock:
            if done:  # also what another client, refused because of this, has put back
                unsure = {shot for shot, origin in self.truth.origin.items() if origin == volume_id}
                self.truth.alive["snapshots"] -= unsure
                self.truth.gone["snapshots"] |= unsure
            else:
                self.truth.alive["snapshots"] |= unsure - self.truth.gone["snapshots"]

    def remove(self, noun: str, thing_id: str, query: str = "", *, action: str = "") -> bool:
        """Delete or, by an ``action``, let go; between question and answer nobody knows."""
        with self.truth.lock:
            known = thing_id in self.truth.alive[noun]
            self.truth.alive[noun].discard(thing_id)
        if action:
            status, _ = self.ask("POST", action, {"os-unmanage": {}})
        else:
            status, _ = self.ask("DELETE", f"/{noun}/{thing_id}{query}")
        with self.truth.lock:
            if status == 202:
                self.truth.gone[noun].add(thing_id)
            elif known and thing_id not in self.truth.gone[noun]:
                self.truth.alive[noun].add(thing_id)
        return status == 202


NEWEST = {"OpenStack-API-Version": "volume 3.71"}


def listed(url: str) -> dict[str, dict[str, Any]]:
    """Return volumes and snapshots as the API lists them; those in error say why, and it is the client's doing."""
    client = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    found: dict[str, dict[str, Any]] = {}
    for noun in ("volumes", "snapshots", "messages"):
        client.request("GET", f"/v3/{noun}" + ("/detail" if noun != "messages" else ""), headers=NEWEST)
        found[noun] = {thing["id"]: thing for thing in json.loads(client.getresponse().read())[noun]}
    client.close()
    said = {message["resource_uuid"]: message["user_message"] for message in found["messages"].values()}
    for noun in ("volumes", "snapshots"):
        for thing in found[noun].values():
            if thing["status"] != "available":
                assert thing["status"] == "error", thing
                assert RACES.search(said.get(thing["id"], "")), (thing, said.get(thing["id"]))
    return found


@pytest.mark.timeout(sampling.effort(1800, 7200))
@pytest.mark.slow
def test_kills_under_load(victim: KilledService) -> None:
    """After each kill and restart the operations drain in time and everything agrees with everything."""
    dice, truth, drains = sampling.dice("kills under load"), ExpectedState(), []
    resumed = 0
    for number in range(KILLS):
        victim.start(cold=number % COLD_EVERY == 0)
        drains.append(victim.drain())
        Load(truth, victim.url, 0).take_over_all()
        victim.drain()
        truth.unmanage = 0
        victim.check()
        truth.compare(listed(victim.url))
        accepted, deadline = truth.answered["POST 202"], time.monotonic() + 20
        with ThreadPoolExecutor(CLIENTS) as clients:
            running = [clients.submit(Load(truth, victim.url, dice.random()).run) for _ in range(CLIENTS)]
            time.sleep(dice.uniform(0, LOAD_S))
            while truth.answered["POST 202"] < accepted + 2 and time.monotonic() < deadline:  # on a busy machine
                time.sleep(0.005)
            assert victim.signal(signal.SIGKILL) == -signal.SIGKILL
            for one in running:
                one.result()
        resumed += victim.open_operations()
    victim.start()
    drains.append(victim.drain())
    truth.compare(listed(victim.url))
    assert victim.signal(signal.SIGTERM) == 0
    assert truth.answered["POST 202"] > KILLS  # else nothing was tried
    drains.sort()
    assert drains[len(drains) // 2] < MOST_MEDIAN_DRAIN_S
    print(
        f"\n{KILLS} kills, {resumed} operations open at them, {sum(truth.answered.values())} answers"
        f" ({dict(sorted(truth.answered.items()))}); first answer to nothing open: median"
        f" {drains[len(drains) // 2]:.3f} s, longest {drains[-1]:.3f} s; {len(truth.alive['volumes'])} volumes left"
    )
