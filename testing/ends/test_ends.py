"""Ends of processes that their streams hide, as a process that they forked holds those open."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from programs import HIDING, Hide
from tools import BOUND_S, FORKING, MakeGateway, run_python, wait_until

from execnet import Channel, Group, WorkerDied
from execnet._ends import poll as ends_poll
from execnet._ends import watch as ends_watch
from execnet._ends.poll import EndPoll
from execnet._ends.watch import EndWatch

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="streams hide ends by a fork"),
]


@pytest.fixture(autouse=True)
def looks_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends_poll, "LISTEN_MS", 5)
    monkeypatch.setattr(ends_poll, "LOOK_MS", 10)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> EndWatch:
    """The one for children, for this test alone."""
    if not ends_watch.of_children():
        pytest.skip("this Python cannot wait for an end without taking its status")
    watch = EndWatch(ends_watch._wait_for_a_child)
    monkeypatch.setattr(ends_watch, "_children", watch)
    return watch


def end(channel: Channel) -> None:
    """End a worker, and see that its end is told."""
    channel.send(None)
    with pytest.raises(WorkerDied, match="exit status 3"):
        channel.receive(BOUND_S)


def wait_until_all_listen(watch: EndWatch, gateways: Group) -> None:
    ios: list[Any] = [gateway._io for gateway in gateways]
    wait_until(lambda: watch._bells.keys() >= set(ios))


class TestOfAChild:
    def test_is_told_by_a_bell(self, group: Group, watch: EndWatch, hide: Hide) -> None:
        channel = hide(group.makegateway())
        wait_until_all_listen(watch, group)
        end(channel)

    def test_is_told_to_who_reads_from_it_and_others_go_on(
        self, group: Group, watch: EndWatch, hide: Hide
    ) -> None:
        channels = [hide(gateway) for gateway in group.makegateways(["popen"] * 3)]
        wait_until_all_listen(watch, group)
        end(channels[1])
        wait_until(lambda: watch._bell is not None)
        assert watch._bell is not None
        assert select.select([watch._bell.fd], [], [], 0)[0] == []
        end(channels[0])
        assert group["gw2"].remote_exec("channel.send(1)").receive(BOUND_S) == 1
        end(channels[2])

    def test_is_told_if_it_comes_before_anybody_listens(
        self, group: Group, watch: EndWatch, hide: Hide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        enter, channels = watch.enter, list[Channel]()

        def enter_late(io: Any) -> int:
            if not channels or io is not group["gw0"]._io:
                raise OSError("not now")
            channels[0].send(None)
            io.popen.wait(BOUND_S)
            return enter(io)

        monkeypatch.setattr(watch, "enter", enter_late)
        group.makegateways(["popen"] * 2)
        channel = hide(group["gw0"])
        channels.append(channel)
        with pytest.raises(WorkerDied, match="exit status 3"):
            channel.receive(BOUND_S)

    def test_is_told_by_who_asks_for_its_status(
        self, group: Group, watch: EndWatch, hide: Hide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        blocked = threading.Event()
        watch = EndWatch(blocked.wait)  # in the place of the other
        monkeypatch.setattr(ends_watch, "_children", watch)
        gateway = group.makegateway()
        channel = hide(gateway)
        wait_until_all_listen(watch, group)
        channel.send(None)
        assert gateway._io.poll_until(time.monotonic() + BOUND_S) == 3
        with pytest.raises(WorkerDied, match="exit status 3"):
            channel.receive(BOUND_S)
        blocked.set()

    def test_is_told_beside_a_process_that_nobody_asks_for(
        self, group: Group, watch: EndWatch, hide: Hide
    ) -> None:
        other = subprocess.Popen([sys.executable, "-c", "raise SystemExit(5)"])
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        channel = hide(group.makegateway())
        wait_until_all_listen(watch, group)
        end(channel)
        assert other.wait() == 5

    def test_is_told_by_another_kind_of_bell(
        self, group: Group, watch: EndWatch, hide: Hide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "eventfd", raising=False)
        channel = hide(group.makegateway())
        wait_until_all_listen(watch, group)
        end(channel)

    def test_is_told_where_nothing_can_wait_for_it(
        self, makegateway: MakeGateway, hide: Hide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delattr(os, "waitid", raising=False)
        end(hide(makegateway()))

    def test_is_told_where_there_can_be_no_bell(
        self, makegateway: MakeGateway, watch: EndWatch, hide: Hide, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def no_bell() -> None:
            raise OSError("too many open files")

        monkeypatch.setattr(ends_watch, "Bell", no_bell)
        end(hide(makegateway()))

    @pytest.mark.parametrize(
        "what",
        [
            "if os.fork(): os.wait(); os._exit(0)",
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)",
        ],
        ids=["was forked", "ignores ends"],
    )
    def test_is_told_in_a_program_that(self, what: str) -> None:
        result = run_python(
            f"""
import execnet, os, signal, time
from execnet._ends import poll, watch
poll.LISTEN_MS = poll.LOOK_MS = 10
def wait_until_it_listens(gateway):
    while gateway._io not in watch._children._bells:
        time.sleep(0.001)
first = execnet.makegateway()
if watch.of_children():
    wait_until_it_listens(first)
{what}
gateway = execnet.Group().makegateway()
channel = gateway.remote_exec({HIDING!r})
child, _ = channel.receive(10)
if watch.of_children():
    wait_until_it_listens(gateway)
channel.send(None)
try:
    channel.receive(10)
except EOFError as exc:
    print(type(exc).__name__)
os.kill(child, 9)
""",
            **FORKING,
        )
        assert (result.stdout, result.stderr) == ("WorkerDied\n", "")


@pytest.mark.usefixtures("templates")
class TestOfAForkedWorker:
    @pytest.mark.parametrize("who", ["the watch", "another thread"])
    def test_is_told_whoever_takes_the_news(self, group: Group, hide: Hide, who: str) -> None:
        gateways = [group.makegateway("popen//forkserver") for _ in range(2)]
        channels = [hide(gateway) for gateway in gateways]
        template = gateways[0]._io._template
        wait_until_all_listen(template.watch(), group)
        for channel, gateway in zip(channels, gateways, strict=True):
            if who == "another thread":
                channel.send(None)
                wait_until(gateway._io.has_ended, sleep=lambda delay: None)
                with pytest.raises(WorkerDied, match="exit status 3"):
                    channel.receive(BOUND_S)
            else:
                end(channel)

    def test_is_told_when_the_template_is_gone(self, group: Group, hide: Hide) -> None:
        gateway = group.makegateway("popen//forkserver")
        channel = hide(gateway)
        wait_until_all_listen(gateway._io._template.watch(), group)
        os.kill(gateway._io._template.pid, signal.SIGKILL)
        channel.send(None)
        with pytest.raises(WorkerDied):
            channel.receive(BOUND_S)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted there")
def test_idle_gateways_have_two_descriptors_each_and_one_for_all(watch: EndWatch) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = descriptors()
    group = Group(["popen"] * 5)
    wait_until_all_listen(watch, group)
    assert descriptors() - before <= 2 * 5 + 1
    group.terminate(BOUND_S)
    assert descriptors() == before
    assert watch._thread is None


def test_who_listens_looks_no_more(watch: EndWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int | None] = []

    class Process:
        def has_ended(self) -> bool:
            return len(limits) > 2

    class Poll:
        def register(self, fd: int, events: int) -> None:
            pass

        def unregister(self, fd: int) -> None:
            pass

        def poll(self, limit_ms: int | None) -> list[tuple[int, int]]:
            limits.append(limit_ms)
            return [(0, select.POLLIN)] if len(limits) == 1 else []

    monkeypatch.setattr(ends_poll, "real_select", lambda: SimpleNamespace(poll=Poll))
    end_poll = EndPoll(0, Process(), lambda: watch)
    assert end_poll.wait()
    assert not end_poll.wait()
    end_poll.close()
    assert limits == [10, 5, None, 0]
