"""Calls of ``map`` that workers get ahead of their turn: none runs twice, none waits in vain.

As many as possible are sent ahead here, however long they take.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from tools import BOUND_S, MakeGateway, wait_until

from execnet import Group, TimeoutError, WorkerDied
from execnet._calls import lane
from execnet._calls.executor import Executor, _Slot
from execnet._features.queues import timed_inbox
from execnet.gateway_base import ITEM_MAX

pytestmark = pytest.mark.core


@pytest.fixture(autouse=True)
def as_many_as_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "AHEAD_S", 1e9)


@pytest.fixture
def executor(group: Group, makegateway: MakeGateway) -> Iterator[Executor]:
    """An executor with two workers that have had calls before."""
    makegateway(), makegateway()
    with group.executor() as executor:
        assert list(executor.map(abs, range(99))) == list(range(99))
        yield executor


def noted(path: str, number: int) -> int:
    """Note that this call has begun; 0 then waits for a file, and 100 ends its worker."""
    import os
    import time

    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"%d\n" % number)
    os.close(fd)
    if number == 100:
        os._exit(3)
    deadline = time.time() + 60
    while number == 0 and not os.path.exists(path + ".go") and time.time() < deadline:
        time.sleep(0.01)
    return number


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "noted"
    path.touch()
    return path


def counted(path: Path) -> Counter[int]:
    return Counter(map(int, path.read_text().split()))


@pytest.mark.parametrize("chunksize", [1, 3])
def test_when_a_worker_dies_only_its_running_call_fails(
    executor: Executor, path: Path, chunksize: int
) -> None:
    numbers = range(1, 301)
    results = executor.map(functools.partial(noted, str(path)), numbers, chunksize=chunksize)
    executor.shutdown()
    with pytest.raises(WorkerDied):
        list(results)
    died_with = range(100, 100 + chunksize)
    assert counted(path) == Counter([n for n in numbers if n not in died_with[1:]])


def test_calls_behind_a_long_one_go_to_a_worker_that_is_free(
    executor: Executor, path: Path
) -> None:
    results = executor.map(functools.partial(noted, str(path)), range(64))
    wait_until(lambda: len(counted(path)) == 64)
    path.with_suffix(".go").touch()
    assert list(results) == list(range(64))
    assert set(counted(path).values()) == {1}


def test_calls_behind_a_long_one_are_given_back_together(
    executor: Executor, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[int] = []
    take = executor.on_given_back

    def note(lane: lane.Lane, works: list[lane.Work]) -> None:
        given_back.append(len(works))
        take(lane, works)

    monkeypatch.setattr(executor, "on_given_back", note)
    results = executor.map(functools.partial(noted, str(path)), range(32))
    wait_until(lambda: len(counted(path)) == 32)
    path.with_suffix(".go").touch()
    assert list(results) == list(range(32))
    assert max(given_back) > 1


def test_workers_that_are_free_get_equal_shares(executor: Executor) -> None:
    for (one,) in executor._lanes.values():
        one.depth, one.least = 32, 3
    works = [lane.Work(_Slot(None), abs, (n,), {}, is_mapped=True) for n in range(10)]
    with executor._lock:
        executor._waiting.extend(works)
        free = executor._take_free()
        assert free is not None
        taken = executor._take_waiting(free)
        executor._waiting.clear()
    executor._give_back(free)
    assert taken == works[:5]


def test_a_worker_that_had_no_calls_gets_as_many_as_another(executor: Executor) -> None:
    new, known = (one for (one,) in executor._lanes.values())
    new.depth, known.depth = 0, 7
    known._posted_s, known._answered = 0.0, 0  # nothing to measure
    executor._post_more(known)
    works = [lane.Work(_Slot(None), abs, (n,), {}, is_mapped=True) for n in range(100)]
    with executor._lock:
        executor._waiting.extend(works)
        assert executor._room(new) == executor._room(known) == 7
        executor._waiting.clear()


def test_answers_that_come_together_make_no_call_look_quick(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(lane, "monotonic", lambda: now[0])
    monkeypatch.setattr(lane, "AHEAD_S", 0.01)
    one = next(iter(executor._lanes.values()))[0]
    one._pace_s, one._posted_s, one._answered = 0.001, now[0], 0
    for taken_s, answers in (0.005, 4), (0.000001, 4):
        now[0] += taken_s
        one._answered += answers
        one.measure()
    assert one.depth == 15  # eight calls within five milliseconds
    for _ in range(1000):  # the pace of long ago is forgotten
        now[0] += 0.01
        one._answered += 1
        one.measure()
    assert one.depth == 1


def test_calls_that_nobody_wants_any_more_do_not_run(
    makegateway: MakeGateway, group: Group, path: Path
) -> None:
    makegateway()
    with group.executor() as executor:
        assert sum(executor.map(abs, range(99))) == 4851
        results = executor.map(functools.partial(noted, str(path)), range(40), timeout=0.01)
        wait_until(lambda: bool(counted(path)))
        with pytest.raises(TimeoutError):
            list(results)
        ((lane,),) = executor._lanes.values()
        wait_until(lambda: len(lane.asked) == 1)  # the others were given back
        path.with_suffix(".go").touch()
    assert counted(path) == Counter([0])


def test_large_and_small_ones_come_in_order(executor: Executor) -> None:
    items = [bytes(size) for size in (1, ITEM_MAX, 5000, ITEM_MAX + 1, 20000, 3)] * 8
    assert list(executor.map(len, items)) == list(map(len, items))


def test_only_pipes_to_a_child_tell_which_calls_began(group: Group) -> None:
    group.makegateways(["popen//id=first", "popen//via=first"])
    with group.executor() as executor:
        lanes = [lane for (lane,) in executor._lanes.values()]
        assert [lane.is_exact for lane in lanes] == [True, False]
        for one in lanes:
            one.depth = 32
        assert list(executor.map(abs, range(50))) == list(range(50))
        executor.submit(abs, -1).result(BOUND_S)


def test_a_thread_that_reads_sends_nothing_while_another_one_does(executor: Executor) -> None:
    one = next(iter(executor._lanes.values()))[0]
    ready = timed_inbox(executor._group.execmodel)
    slot, goes_on = _Slot(ready), []
    with one.posting:
        executor._waiting.append(lane.Work(slot, len, ("ab",), {}, is_mapped=True))
        executor._unfinished += 1
        reader = threading.Thread(target=lambda: goes_on.append(executor.go_on(one)))
        reader.start()
        reader.join(BOUND_S)
        assert (goes_on, one.asked, len(executor._waiting)) == ([False], {}, 1)
    executor._dispatch()
    wait_until(lambda: slot.has_ended)
    assert slot.value == 2
