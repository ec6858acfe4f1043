"""Coordinators under gevent and eventlet: hidden ends, signs of life, windows, interrupts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from models import GREENLET_MODELS, importable, start_hub
from processes import stop
from programs import ITEM, ON_ORDER, READER, Hide
from tools import BOUND_S, Task, wait_until

from execnet import Channel, Group, WorkerDied
from execnet._ends import green_poll
from execnet.gateway_base import ExecModel, get_execmodel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="greenlets are tested on POSIX")


@pytest.fixture(params=GREENLET_MODELS)
def execmodel(request: pytest.FixtureRequest, nothing_is_left: None) -> ExecModel:
    if not importable(request.param):
        pytest.skip(f"{request.param} can't be imported")
    start_hub(request.param)
    return get_execmodel(request.param)


@pytest.fixture
def group(execmodel: ExecModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[Group]:
    monkeypatch.setattr(green_poll, "LOOK_S", 0.05)
    monkeypatch.setattr(green_poll, "_watches", {})
    group = Group()
    group.set_execmodel(execmodel, "thread")
    yield group
    group.terminate(timeout=5.0)


def end_of(channel: Channel) -> str:
    """Return what a channel says of the death of its worker."""
    with pytest.raises(WorkerDied) as caught:
        channel.receive(BOUND_S)
    return str(caught.value)


@pytest.mark.usefixtures("templates")
class TestAnEndThatTheStreamHides:
    @pytest.mark.parametrize("spec", ["popen", "popen//forkserver"])
    def test_is_noticed(self, group: Group, hide: Hide, spec: str) -> None:
        channel = hide(group.makegateway(spec))
        channel.send(None)
        assert "exit status 3" in end_of(channel)

    def test_takes_away_nothing_that_was_sent_before(self, group: Group) -> None:
        channel = group.makegateway().remote_exec(
            """
            import os, time
            pid = os.fork()
            if not pid:
                time.sleep(100)
                os._exit(0)
            channel.send(pid)
            for number in range(1000):
                channel.send((number, b"x" * 1000))
            os._exit(3)
            """
        )
        pid = channel.receive(BOUND_S)
        try:
            group.execmodel.sleep(0.2)
            assert [channel.receive(BOUND_S)[0] for _ in range(1000)] == list(range(1000))
            assert "exit status 3" in end_of(channel)
        finally:
            os.kill(pid, signal.SIGKILL)

    @pytest.mark.parametrize("spec", ["popen", "popen//forkserver"])
    def test_does_not_keep_terminate(
        self, group: Group, hide: Hide, spec: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(green_poll, "LOOK_S", 1000)
        gateways = group.makegateways([spec] * 3)
        for gateway in gateways:
            hide(gateway)
        group.terminate(timeout=0.1)
        assert not any(gateway.hasreceiver() for gateway in gateways)

    def test_nor_a_gateway_that_is_left(self, group: Group, hide: Hide) -> None:
        gateway = group.makegateway("popen//grace=0.1")
        hide(gateway)
        gateway.exit()
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()


def test_nothing_is_watched_after_the_last_end(group: Group) -> None:
    gateway: Any = group.makegateway()
    watch = gateway._io._end_poll._watch
    assert watch._runs
    group.terminate(BOUND_S)
    wait_until(lambda: not watch._runs, sleep=group.execmodel.sleep)


class TestAHeartbeat:
    def test_a_silent_worker_is_given_up(self, group: Group) -> None:
        gateway = group.makegateway("popen//heartbeat=0.05//dead_after=1")
        channel = gateway.remote_exec("channel.send(1); channel.receive()")
        assert channel.receive(BOUND_S) == 1
        stop(gateway._rinfo().pid)
        assert "given up" in end_of(channel)

    def test_one_that_works_is_not(self, group: Group) -> None:
        gateway = group.makegateway("popen//heartbeat=0.02//dead_after=2")
        channel = gateway.remote_exec("while 1: channel.send(len(channel.receive()))")
        heard = gateway._heard
        for _ in range(2000):
            channel.send("x" * 50000)
            assert channel.receive(BOUND_S) == 50000
        wait_until(lambda: gateway._heard > heard + 20, sleep=group.execmodel.sleep)

    def test_it_ends_with_the_gateway(self, group: Group) -> None:
        group.makegateways(["popen//heartbeat=1000"] * 3)
        group.terminate(BOUND_S)


class TestAWindow:
    def test_a_sender_waits_until_its_items_are_read(self, group: Group) -> None:
        gateway = group.makegateway("popen//window=10000")
        channel = gateway.remote_exec(ON_ORDER)
        orders, sent = gateway.newchannel(), list[int]()
        channel.send(orders)

        def send() -> None:
            for number in range(30):
                channel.send(ITEM)
                sent.append(number)

        task = Task(group.execmodel, send)
        windows: Any = channel._factory.windows
        wait_until(lambda: windows._senders, sleep=group.execmodel.sleep)
        assert 8 <= len(sent) <= 10
        orders.send(29)
        assert orders.receive(BOUND_S) == 29
        orders.send(1)
        task.result()
        assert orders.receive(BOUND_S) == 1
        orders.close()

    def test_a_sender_is_told_of_the_end(self, group: Group) -> None:
        gateway = group.makegateway("popen//window=10000")
        channel = gateway.remote_exec("channel.gateway.newchannel().receive()")
        task = Task(group.execmodel, lambda: [channel.send(ITEM) for _ in range(30)])
        windows: Any = channel._factory.windows
        wait_until(lambda: windows._senders, sleep=group.execmodel.sleep)
        gateway._io.kill()
        with pytest.raises(OSError, match=r"SIGKILL|closed"):
            task.result()

    def test_all_items_pass_both_ways(self, group: Group) -> None:
        gateway = group.makegateway("popen//window=10000")
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        items = [bytes([number % 256]) * (number * 37 % 9000) for number in range(300)]
        task = Task(group.execmodel, lambda: [channel.send(item) for item in items])
        assert [channel.receive(BOUND_S) for _ in items] == items
        task.result()

    def test_an_item_larger_than_the_window_goes_alone(self, group: Group) -> None:
        channel = group.makegateway("popen//window=10000").remote_exec(READER)
        for _ in range(3):
            channel.send(b"x" * 3_000_000)
        channel.send(None)
        assert channel.receive(BOUND_S) == "read"


class TestAnInterrupt:
    @pytest.fixture
    def interrupt(self) -> Iterator[Callable[[], None]]:
        """SIGALRM raises KeyboardInterrupt; what is returned sends it in a moment."""
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        yield lambda: signal.setitimer(signal.ITIMER_REAL, 0.05) and None
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    @pytest.mark.parametrize(
        "wait",
        [
            lambda gateway, channel: channel.receive(),
            lambda gateway, channel: channel.waitclose(),
            lambda gateway, channel: gateway.join(),
            lambda gateway, channel: channel.send(b"x" * 100_000_000),
        ],
        ids=["receive", "waitclose", "join", "send"],
    )
    def test_ends_a_wait_and_the_gateway_goes_on(
        self, group: Group, interrupt: Callable[[], None], wait: Any
    ) -> None:
        gateway = group.makegateway()
        channel = gateway.remote_exec("channel.send(channel.receive())")
        echo = gateway.remote_exec("for item in channel: channel.send(item)")
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            wait(gateway, channel)
        echo.send(1)
        assert echo.receive(BOUND_S) == 1

    def test_of_a_send_into_a_full_window_leaves_the_window_as_it_was(
        self, group: Group, interrupt: Callable[[], None]
    ) -> None:
        gateway = group.makegateway("popen//window=10000")
        channel = gateway.remote_exec(ON_ORDER)
        orders = gateway.newchannel()
        channel.send(orders)
        for _ in range(9):
            channel.send(ITEM)
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            channel.send(ITEM)
        orders.send(9)
        assert orders.receive(BOUND_S) == 9
        channel.send(ITEM)
        orders.send(1)
        assert orders.receive(BOUND_S) == 1
        orders.close()

    def test_in_terminate_leaves_no_worker(
        self, group: Group, interrupt: Callable[[], None]
    ) -> None:
        gateway: Any = group.makegateway()
        stop(gateway._rinfo().pid)
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            group.terminate()
        assert gateway._io.popen.returncode == -signal.SIGKILL
