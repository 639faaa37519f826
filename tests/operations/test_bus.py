"""The corridor: first come, first served for one resource, parallel across resources, nothing lost, nothing stuck."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from blockstore.operations import bus as bus_module
from blockstore.operations.bus import Bus, Completion
from blockstore.operations.catalogue import (
    CreateVolume,
    DeleteVolume,
    ExtendVolume,
    Operation,
    PlaceVolume,
    following_id,
    new_operation_id,
)

Open = Callable[..., Bus]


def operation(kind: type[Operation] = DeleteVolume, volume_id: str = "v", **fields: Any) -> Any:
    return kind(operation_id=new_operation_id(), request_id="r", project_id="p", volume_id=volume_id, **fields)


def copy(volume_id: str, snapshot_id: str | None, source_id: str | None) -> Operation:
    """An operation that holds up to three resources."""
    return operation(CreateVolume, volume_id, snapshot_id=snapshot_id, source_volume_id=source_id)


@pytest.fixture
def opened() -> Iterator[Open]:
    """Start buses whose one handler is given; they are stopped at the end."""
    started: list[Bus] = []

    def start(
        handler: Callable[[Any], None],
        *,
        workers: int = 4,
        spare: int = 0,
        places: int = 1,
        place_of: Callable[[Operation], str] | None = None,
        **options: Any,
    ) -> Bus:
        bus = Bus(**options)
        kinds: tuple[type[Operation], ...] = (CreateVolume, DeleteVolume, ExtendVolume)
        bus.add_component(
            "manager", dict.fromkeys(kinds, handler), workers=workers, spare=spare, places=places, place_of=place_of
        )
        bus.add_component("scheduler", {PlaceVolume: handler}, workers=1)
        bus.start()
        started.append(bus)
        return bus

    yield start
    for bus in started:
        bus.stop()


def test_one_resource_is_served_in_order_and_one_at_a_time(opened: Open) -> None:
    """Two components, one line: what was enqueued first runs first, and never two together."""
    ran: list[str] = []
    inside = threading.Semaphore(1)

    def handler(operation: Operation) -> None:
        assert inside.acquire(blocking=False)
        time.sleep(random.random() / 2000)
        ran.append(operation.operation_id)
        inside.release()

    bus = opened(handler, workers=8)
    operations = [operation(PlaceVolume if n % 3 == 0 else DeleteVolume) for n in range(200)]
    for one in operations:
        bus.enqueue(one)
    assert bus.wait_idle(60)
    assert ran == [one.operation_id for one in operations]


def test_a_place_that_is_stuck_holds_up_no_other(opened: Open) -> None:
    """Each place has the workers of the room, and where nobody knows the place work goes on as well."""
    stuck, ran = threading.Event(), threading.Event()

    def place_of(one: Operation) -> str:
        if one.resource_id == "lost":
            raise RuntimeError("The database is away.")
        return one.resource_id.partition("-")[0]

    def handler(one: Operation) -> None:
        if one.resource_id.startswith("dead"):
            stuck.wait(120)
        else:
            ran.set()

    bus = opened(handler, workers=2, places=3, place_of=place_of)
    for number in range(6):
        bus.enqueue(operation(volume_id=f"dead-{number}"))
    for one in ("alive-1", "lost"):
        bus.enqueue(operation(volume_id=one))
        assert ran.wait(60)
        ran.clear()
    assert sum(one.resource_id.startswith("dead") for one in bus.running()) == 2
    stuck.set()
    assert bus.wait_idle(60)


def test_resources_are_parallel_up_to_the_number_of_workers(opened: Open) -> None:
    """All workers are used, and no more."""
    now, most, lock, all_used = [0], [0], threading.Lock(), threading.Event()

    def handler(_operation: Operation) -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
            if now[0] == 3:
                all_used.set()
        assert all_used.wait(60)
        time.sleep(0.01)
        with lock:
            now[0] -= 1

    bus = opened(handler, workers=3)
    for n in range(30):
        bus.enqueue(operation(volume_id=str(n)))
    assert bus.wait_idle(60)
    assert most[0] == 3


def test_an_operation_in_line_keeps_no_worker(opened: Open) -> None:
    """Many operations for one busy resource do not hold up another resource."""
    gate, other = threading.Event(), threading.Event()

    def handler(operation: Any) -> None:
        if operation.volume_id == "busy":
            gate.wait(120)
        else:
            other.set()

    bus = opened(handler, workers=2)
    for _ in range(50):
        bus.enqueue(operation(volume_id="busy"))
    bus.enqueue(operation(volume_id="other"))
    assert other.wait(60)
    gate.set()
    assert bus.wait_idle(60)


def test_two_thousand_operations_for_random_sets_of_resources(opened: Open) -> None:
    """No deadlock, no two holders of a resource, and per resource the order in which they were enqueued."""
    holders: Counter[str] = Counter()
    served: dict[str, list[str]] = defaultdict(list)
    lock = threading.Lock()
    clashes: list[str] = []

    def handler(operation: Operation) -> None:
        with lock:
            for key in operation.keys():
                holders[key] += 1
                served[key].append(operation.operation_id)
                if holders[key] > 1:
                    clashes.append(key)
        time.sleep(0.0001)
        with lock:
            for key in operation.keys():
                holders[key] -= 1

    dice = random.Random(3)
    names = [str(n) for n in range(12)]
    operations = []
    for _ in range(2000):
        volume, source = dice.sample(names, 2)
        operations.append(copy(volume, dice.choice([None, *names]), dice.choice([None, source])))
    bus = opened(handler, workers=6)
    for one in operations:
        bus.enqueue(one)
    assert bus.wait_idle(60), bus.running()
    assert not clashes
    for key, ids in served.items():
        assert ids == [one.operation_id for one in operations if key in one.keys()]


def test_enqueuing_from_many_threads_loses_nothing(opened: Open) -> None:
    """16 threads enqueue; every operation runs once."""
    ran: Counter[str] = Counter()
    lock = threading.Lock()

    def handler(operation: Operation) -> None:
        with lock:
            ran[operation.operation_id] += 1

    bus = opened(handler)
    operations = [operation(volume_id=str(n % 40)) for n in range(1600)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(bus.enqueue, operations))
    assert bus.wait_idle(60)
    assert ran == Counter(one.operation_id for one in operations)


@pytest.mark.timed
def test_an_idle_bus_wakes_at_once(opened: Open) -> None:
    """Enqueue from another thread to an idle loop: the handler begins within 50 ms. One in four does on a busy
    machine, too; of a loop that wakes by itself now and then, one in four would not.
    """
    begun: list[float] = []
    bus = opened(lambda _operation: begun.append(time.monotonic()))
    delays = []
    for n in range(40):
        time.sleep(0.01)
        at = time.monotonic()
        bus.enqueue(operation(volume_id=str(n)))
        assert bus.wait_idle(60)
        delays.append(begun[-1] - at)
    assert sorted(delays)[len(delays) // 4] < 0.05, delays


def test_a_handler_that_cannot_settle_is_tried_again_until_it_can(
    opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its place in the line meanwhile, so the next of its resource waits; but no worker, so others go on."""
    monkeypatch.setattr(bus_module, "RETRY_DELAYS_S", (0.01, 0.02))
    ran: list[str] = []

    def handler(operation: Any) -> None:
        ran.append(f"{type(operation).__name__} {operation.volume_id}")
        if isinstance(operation, CreateVolume) and len(ran) < 7:
            raise OSError("the database is away")

    bus = opened(handler, workers=1)
    with caplog.at_level(logging.ERROR):
        bus.enqueue(copy("v", None, None))
        bus.enqueue(operation(volume_id="v"))
        bus.enqueue(operation(volume_id="other"))
        assert bus.wait_idle(60)
    assert ran.index("DeleteVolume other") < 6
    assert ran[-2:] == ["CreateVolume v", "DeleteVolume v"]
    assert "could not be settled" in caplog.text


def test_drain_lets_what_runs_end_and_starts_nothing_more(opened: Open) -> None:
    """Also an operation that waits for its next attempt, and one that is enqueued too late,
    are left to the next start.
    """
    begun, gate = threading.Event(), threading.Event()
    ran: list[str] = []

    def handler(operation: Any) -> None:
        begun.set()
        gate.wait(120)
        ran.append(operation.volume_id)

    bus = opened(handler, workers=1)
    for name in ("first", "second"):
        bus.enqueue(operation(volume_id=name))
    assert begun.wait(60)
    assert not bus.drain(0.05)
    gate.set()
    assert bus.drain(60)
    bus.enqueue(operation(volume_id="late"))
    time.sleep(0.05)
    assert ran == ["first"]
    assert bus.running() == []


def test_depth_and_running_tell_what_there_is(opened: Open) -> None:
    """By component; what runs is named."""
    gate, begun = threading.Event(), threading.Event()

    def handler(_operation: Operation) -> None:
        begun.set()
        gate.wait(120)

    bus = opened(handler, workers=1)
    one = operation(volume_id="a")
    bus.enqueue(one)
    bus.enqueue(operation(volume_id="b"))
    assert begun.wait(60)
    assert bus.depth() == {"manager": 2, "scheduler": 0}
    assert bus.running() == [one]
    gate.set()
    assert bus.wait_idle(60)
    assert bus.depth() == {"manager": 0, "scheduler": 0}


def test_a_slow_operation_is_told_once_and_a_quick_one_never(opened: Open) -> None:
    """From a thread of its own, also when all workers are busy."""
    slow, told = list[str](), threading.Event()

    def tell(operation: Any) -> None:
        slow.append(operation.volume_id)
        told.set()

    def handler(operation: Any) -> None:
        if operation.volume_id == "slow":
            assert told.wait(60)
            bus._slow_after_s = 3600  # on a busy machine nothing is quick

    bus = opened(handler, workers=1, on_slow=tell, slow_after_s=0.1)
    for name in ("slow", "quick"):
        bus.enqueue(operation(volume_id=name))
    assert bus.wait_idle(60)
    assert slow == ["slow"]
    assert all(timer.cancelled() for timer in bus._loop._scheduled)  # type: ignore[attr-defined]


def test_a_stop_with_operations_in_line_leaves_no_thread(opened: Open) -> None:
    """A stop that does not wait ends the loop; operations in line are only in the database then."""
    gate = threading.Event()
    bus = opened(lambda _operation: gate.wait(120), workers=1)
    for n in range(20):
        bus.enqueue(operation(volume_id=str(n % 2)))
    gate.set()
    bus.drain(60)
    bus.stop()
    assert "bus" not in {thread.name for thread in threading.enumerate()}
    bus.stop()


def test_who_follows_an_operation_takes_its_place_in_line(opened: Open) -> None:
    """What was enqueued in between waits for both, whatever it has in common with them."""
    ran: list[str] = []
    first = operation(PlaceVolume, "copy", source_volume_id="source")
    entered, go_on = threading.Event(), threading.Event()

    def handler(running: Operation) -> None:
        ran.append(running.kind)
        if running is first:
            entered.set()
            assert go_on.wait(120)
            following = following_id(first.operation_id)
            bus.enqueue(
                CreateVolume(
                    operation_id=following, request_id="r", project_id="p", volume_id="copy", source_volume_id="source"
                )
            )

    bus = opened(handler)
    bus.enqueue(first)
    assert entered.wait(60)
    bus.enqueue(operation(DeleteVolume, "source"))
    go_on.set()
    assert bus.wait_idle(60)
    assert ran == ["PlaceVolume", "CreateVolume", "DeleteVolume"]


def test_an_operation_that_follows_sorts_behind_it_and_before_any_later_one() -> None:
    """Recovery enqueues by id."""
    first = new_operation_id()
    second = following_id(first)
    third = following_id(second)
    assert first < second < third < new_operation_id()
    assert len(third) <= 40


# --- turns over projects -------------------------------------------------------------------------------------


def of_project(project_id: str, volume_id: str, kind: Any = DeleteVolume) -> Any:
    return kind(operation_id=new_operation_id(), request_id="r", project_id=project_id, volume_id=volume_id)


@pytest.mark.parametrize(
    "kind", [DeleteVolume, PlaceVolume]
)  # of the manager, and of the scheduler with its one worker
def test_a_project_with_many_operations_delays_another_by_one_turn(opened: Open, kind: Any) -> None:
    gate, held = threading.Event(), threading.Event()
    ran: list[str] = []

    def handler(operation: Operation) -> None:
        held.set()
        assert gate.wait(120)
        ran.append(operation.project_id)

    bus = opened(handler, workers=1)
    bus.enqueue(of_project("busy", "first", kind))
    assert held.wait(60)
    for number in range(100):
        bus.enqueue(of_project("busy", f"b{number}", kind))
    for project in ("quiet", "third"):
        for number in range(3):
            bus.enqueue(of_project(project, f"{project}{number}", kind))
    while len(bus._tasks) < 107:
        time.sleep(0.001)
    bus._loop.call_soon_threadsafe(gate.set)  # when all of them stand in line
    assert bus.wait_idle(60)
    assert ran[:10] == ["busy", "quiet", "third", "busy", "quiet", "third", "busy", "quiet", "third", "busy"]
    assert ran[10:] == ["busy"] * 97


def test_each_place_has_turns_of_its_own(opened: Open) -> None:
    gate, ran, lock = threading.Event(), defaultdict(list), threading.Lock()

    def handler(operation: Operation) -> None:
        assert gate.wait(120)
        with lock:
            ran[operation.resource_id[0]].append(operation.project_id)

    bus = opened(handler, workers=1, places=2, place_of=lambda operation: operation.resource_id[0])
    for number in range(20):
        bus.enqueue(of_project("busy", f"a{number}"))
    for number in range(20):
        bus.enqueue(of_project("busy", f"b{number}"))
    for place in "ab":
        bus.enqueue(of_project("quiet", f"{place}-quiet"))
    deadline = time.monotonic() + 60
    while sum(len(workers._waiting) for workers in bus._components["manager"].workers.values()) < 40:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    gate.set()
    assert bus.wait_idle(60)
    assert all(projects.index("quiet") <= 2 for projects in ran.values()), ran


def test_operations_that_hold_every_worker_leave_one_to_other_projects(opened: Open) -> None:
    """The spare worker is for who has nothing running, one at a time; a project alone has the workers and no more."""
    gate, ran = threading.Event(), queue.Queue[str]()

    def handler(operation: Operation) -> None:
        if operation.project_id == "busy":
            assert gate.wait(120)
        ran.put(operation.project_id)

    bus = opened(handler, workers=2, spare=1)
    for number in range(8):
        bus.enqueue(of_project("busy", f"b{number}"))
    for number in range(5):
        bus.enqueue(of_project(f"other{number % 2}", f"o{number}"))
    assert sorted(ran.get(timeout=60) for _ in range(5)) == ["other0"] * 3 + ["other1"] * 2
    assert [operation.project_id for operation in bus.running()].count("busy") == 2
    gate.set()
    assert bus.wait_idle(60)


def test_an_operation_that_is_tried_again_takes_a_new_turn(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bus_module, "RETRY_DELAYS_S", (0.0,))
    ran: list[str] = []
    failures = iter(range(20))

    def handler(operation: Operation) -> None:
        ran.append(operation.project_id)
        if operation.project_id == "failing" and next(failures, None) is not None:
            raise OSError("the database is away")

    bus = opened(handler, workers=1)
    bus.enqueue(of_project("failing", "f"))
    for number in range(10):
        bus.enqueue(of_project("quiet", f"q{number}"))
    assert bus.wait_idle(60)
    assert Counter(ran) == {"failing": 21, "quiet": 10}
    assert "quiet" in ran[:3]


def test_a_stop_while_operations_wait_for_a_worker_ends(opened: Open) -> None:
    gate, held = threading.Event(), threading.Event()

    def handler(_operation: Operation) -> None:
        held.set()
        gate.wait(120)

    bus = opened(handler, workers=1, spare=1)
    for project in ("a", "b", "c"):
        for number in range(20):
            bus.enqueue(of_project(project, f"{project}{number}"))
    assert held.wait(60)
    stopping = threading.Thread(target=bus.stop)
    stopping.start()
    gate.set()
    stopping.join(60)
    assert not stopping.is_alive()
    assert len(bus.running()) <= 2


# --- expectations ------------------------------------------------------------------------------------------


def test_who_expects_operations_hears_of_the_end_of_all_of_them(opened: Open) -> None:
    gates = {name: threading.Event() for name in "ab"}
    bus = opened(lambda operation: gates[operation.volume_id].wait(120))
    operations = [operation(volume_id=name) for name in "ab"]
    with bus.completion_of([o.operation_id for o in operations]) as expecting:
        for o in operations:
            bus.enqueue(o)
        assert not expecting.wait(0.05)
        gates["a"].set()
        assert not expecting.wait(0.1)
        gates["b"].set()
        assert expecting.wait(60)
        assert expecting.wait(0)


def test_an_operation_that_ends_before_it_is_waited_for_is_not_missed(opened: Open) -> None:
    bus = opened(lambda _operation: None)
    for _ in range(200):
        one = operation()
        with bus.completion_of([one.operation_id]) as expecting:
            bus.enqueue(one)
            assert bus.wait_idle(60)
            assert expecting.wait(60)


def test_an_expectation_ends_when_the_handler_has_settled_it_not_when_it_failed(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler that could not even settle its operation is tried again; until then nothing has ended."""
    monkeypatch.setattr(bus_module, "RETRY_DELAYS_S", (0.2,))
    times: list[int] = []

    def handler(_operation: Operation) -> None:
        times.append(1)
        if len(times) < 3:
            raise RuntimeError

    bus = opened(handler)
    one = operation()
    with bus.completion_of([one.operation_id]) as expecting:
        bus.enqueue(one)
        assert expecting.wait(60)
        assert len(times) == 3


def test_operations_of_others_end_no_expectation(opened: Open) -> None:
    bus = opened(lambda _operation: None)
    with bus.completion_of(["mine"]) as expecting:
        bus.enqueue(operation())
        assert bus.wait_idle(60)
        assert not expecting.wait(0.05)


def test_an_expectation_that_is_over_hears_and_keeps_nothing(opened: Open) -> None:
    gate = threading.Event()
    bus = opened(lambda _operation: gate.wait(120))
    one = operation()
    with bus.completion_of([one.operation_id]) as expecting:
        bus.enqueue(one)
        assert not expecting.wait(0)
    gate.set()
    assert bus.wait_idle(60)
    assert not expecting.wait(0)
    assert not bus._expected


def test_many_threads_that_expect_each_hear_of_their_own(opened: Open) -> None:
    bus = opened(lambda _operation: time.sleep(random.random() / 500))

    def ask(number: int) -> bool:
        one = operation(volume_id=f"v{number % 5}")
        with bus.completion_of([one.operation_id]) as expecting:
            bus.enqueue(one)
            return expecting.wait(60)

    with ThreadPoolExecutor(16) as threads:
        assert all(threads.map(ask, range(300)))
    assert not bus._expected


def test_a_stop_lets_those_go_who_expect(opened: Open) -> None:
    """Nothing more will be told: they look for themselves how far it came."""
    gate, begun = threading.Event(), threading.Event()

    def handler(_operation: Operation) -> None:
        begun.set()
        gate.wait(120)

    bus = opened(handler)
    one = operation()
    with ThreadPoolExecutor(1) as threads, bus.completion_of([one.operation_id]) as expecting:
        bus.enqueue(one)
        assert begun.wait(60)
        waiting = threads.submit(expecting.wait, 10)
        assert not waiting.done()
        assert not bus.drain(0.05)
        assert not waiting.done()  # what runs may still end
        stopping = threading.Thread(target=bus.stop)
        stopping.start()
        assert waiting.result(60)
        gate.set()
        stopping.join(60)


def test_nobody_waits_for_operations_that_are_not_enqueued_any_more(opened: Open) -> None:
    bus = opened(lambda _operation: None)
    assert bus.drain(1)
    one = operation()
    with bus.completion_of([one.operation_id]) as expecting:
        bus.enqueue(one)
        assert expecting.wait(0)


def test_of_no_operations_all_have_ended(opened: Open) -> None:
    with opened(lambda _operation: None).completion_of([]) as expecting:
        assert expecting.wait(0)
    twice = Completion(["a", "b"])
    twice.note("a")
    twice.note("a")
    assert not twice.wait(0)
    twice.note("b")
    assert twice.wait(0)


def test_it_is_told_when_operations_begin_to_run_and_when_the_last_has_ended(opened: Open) -> None:
    both, go = threading.Barrier(3), threading.Event()

    def handle(_operation: Operation) -> None:
        both.wait(60)
        assert go.wait(120)

    bus = opened(handle)
    told: list[bool] = []
    bus.on_busy = told.append
    for volume in "ab":
        bus.enqueue(operation(volume_id=volume))
    both.wait(60)
    assert told == [True]
    go.set()
    assert bus.wait_idle(60)
    assert told == [True, False]
