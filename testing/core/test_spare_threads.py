"""Threads of a worker that serve calls beside its busy main thread."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools import BOUND_S, MakeGateway, find_python, wait_until

from execnet import Gateway
from execnet._features.calls import SpareThreads
from execnet.gateway_base import get_execmodel

pytestmark = pytest.mark.core


def serve() -> None:
    """Stands for what serves calls."""


def other() -> None:
    """Stands for code on a channel."""


def visits() -> int:
    """Return how often this was called in the thread."""
    import threading

    mine = threading.__dict__.setdefault("mine", threading.local())
    mine.count = getattr(mine, "count", 0) + 1
    return int(mine.count)


@pytest.fixture
def spare() -> Iterator[SpareThreads]:
    spare = SpareThreads(get_execmodel("thread"), serve)
    spare.KEEP_S = BOUND_S
    yield spare
    while spare._idle:
        spare._idle.pop()[0].release()  # without anything to do


def run(spare: SpareThreads, func: Callable[[], object]) -> threading.Thread:
    """Have a task of a pool run; return its thread once that is idle, or has ended."""
    threads: list[threading.Thread] = []
    done = threading.Event()

    def perform(reply: Any) -> None:
        threads.append(threading.current_thread())
        done.set()

    spare.start(perform, (types.SimpleNamespace(task=(func, (), {})),), "execnet-task")
    assert done.wait(BOUND_S)
    wait_until(lambda: (func is serve and spare._idle) or not threads[0].is_alive())
    return threads[0]


class TestSpareThreads:
    def test_one_that_has_served_calls_is_used_again(self, spare: SpareThreads) -> None:
        thread = run(spare, serve)
        for _ in range(3):
            assert run(spare, serve) is thread

    def test_other_tasks_have_threads_of_their_own(self, spare: SpareThreads) -> None:
        thread = run(spare, serve)
        assert run(spare, other) is not thread
        assert len(spare._idle) == 1

    def test_one_that_is_busy_is_not_waited_for(self, spare: SpareThreads) -> None:
        go_on = threading.Event()
        reply = types.SimpleNamespace(task=(serve, (), {}))
        spare.start(lambda reply: go_on.wait(BOUND_S), (reply,), "execnet-task")
        run(spare, serve)
        go_on.set()
        wait_until(lambda: len(spare._idle) == 2)

    def test_one_that_gets_nothing_for_a_while_ends(self, spare: SpareThreads) -> None:
        spare.KEEP_S = 0.001
        thread = run(spare, serve)
        wait_until(lambda: not thread.is_alive())
        assert spare._idle == []
        assert run(spare, serve) is not thread

    def test_one_that_is_chosen_as_its_time_ends_goes_on(self, spare: SpareThreads) -> None:
        class Chosen(list[Any]):
            def remove(self, given: Any) -> None:
                self.pop()
                given[1] = "something to do"
                given[0].release()
                super().remove(given)  # which is not there

        spare.KEEP_S, spare._idle = 0.001, Chosen()
        assert spare._next_task() == "something to do"


@pytest.mark.parametrize("version", ["3.6", "3.13"])
def test_calls_beside_running_code_are_served_by_the_same_thread(
    makegateway: MakeGateway, version: str
) -> None:
    gateway: Gateway = makegateway(f"popen//python={find_python(version)}")
    channel = gateway.remote_exec("channel.send(None); channel.receive()")
    channel.receive(BOUND_S)

    # A thread is idle a moment after it has sent its answer.
    wait_until(lambda: gateway.call(visits) > 1)
    channel.send(None)


def test_a_thread_that_is_kept_does_not_count_as_executing(makegateway: MakeGateway) -> None:
    gateway = makegateway("popen")
    channel = gateway.remote_exec("channel.send(None); channel.receive()")
    channel.receive(BOUND_S)
    assert gateway.call(len, "") == 0
    wait_until(lambda: gateway.remote_status().numexecuting == 1)
    channel.send(None)
