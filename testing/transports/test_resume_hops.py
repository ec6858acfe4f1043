"""The end of workers with ``resume=`` when a gateway that they are reached through is silent."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from cut_links import CutLink, assert_gone, supervisor_of
from cut_ports import CutPort
from processes import stop
from socketservers import Servers
from tools import BOUND_S

from execnet import Gateway, Group, gateway_socket
from execnet._ends import asked, terminate
from execnet._ends.asked import Asked
from execnet._resume import near, records
from execnet._via import stream
from execnet.gateway_base import Channel, Message, get_execmodel

LAST = "//id=last//resume=600//grace=0.2"
RESUME = "//resume=600//grace=0.2"
LATE_S = BOUND_S + 5  # longer than anything takes that is not waited for


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


def read_to_end(channel: Channel) -> None:
    with pytest.raises(EOFError):
        channel.receive()


class Hops:
    """Workers that are reached through others, over a network that a test loses.

    They are called hop0, hop1 and so on, each via the one before, and the last one last.
    """

    def __init__(self, servers: Servers, monkeypatch: pytest.MonkeyPatch, after: ExitStack) -> None:
        self.group = Group()
        self.pids: list[int] = []
        self._monkeypatch, self._after = monkeypatch, after
        self._server = servers.start(":0").address
        self._port = after.enter_context(CutPort(self._server))
        after.callback(self._clear)

    def make(self, way: str, resume: str, depth: int = 1) -> None:
        """Make them: the last one has its way, and is stopped so that it has to be killed.

        resume: more of the specs of the others, of which there are so many.
        """
        spec = f"socket={self._port.address}//bound={self._server}"
        for number in range(depth):
            self.group.makegateway(f"{spec}//id=hop{number}{resume}")
            spec = f"socket={self._server}//via=hop{number}"
        if way == "installvia":
            spec = f"socket//installvia=hop{depth - 1}"
        self.group.makegateway(spec + LAST)
        self.pids = [pid_of(gateway) for gateway in self.group]
        stop(self.pids[-1])

    def lose(self) -> None:
        """Lose the network, and tell nobody."""
        self._port.stop()
        full = self._after.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # the kernel takes no more, and says so to none
            client = self._after.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(full.getsockname())
        place = socket.AF_INET, full.getsockname()
        self._monkeypatch.setattr(gateway_socket, "_places", lambda *args: [place])

    def _clear(self) -> None:
        for pid in self.pids:
            with suppress(OSError):
                os.kill(supervisor_of(pid), signal.SIGKILL)
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.group.terminate(0.0)


@pytest.fixture
def hops(servers: Servers, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hops]:
    with ExitStack() as after:
        yield Hops(servers, monkeypatch, after)


@pytest.mark.skipif(sys.platform != "linux", reason="others refuse what they have no room for")
@pytest.mark.parametrize(
    ("way", "resume", "depth"),
    [
        ("via", "", 1),
        ("via", RESUME, 1),
        ("via", RESUME, 3),
        ("installvia", "", 1),
        ("installvia", RESUME, 2),
    ],
)
def test_terminate_does_not_wait_for_a_hop_whose_network_was_lost_unnoticed(
    hops: Hops, monkeypatch: pytest.MonkeyPatch, way: str, resume: str, depth: int
) -> None:
    made: list[Asked] = []

    class Noting(Asked):
        def __init__(self, gateway: Any) -> None:
            super().__init__(gateway)
            made.append(self)

    hops.make(way, resume, depth)
    waited = hops.group["hop0"].remote_exec("channel.receive()")
    reader = threading.Thread(target=read_to_end, args=(waited,))  # reads the hop's stream
    reader.start()
    hops.lose()
    for module, name in (near, "LOGIN_S"), (stream, "ANSWER_S"), (stream, "SILENT_S"):
        monkeypatch.setattr(module, name, LATE_S)
    monkeypatch.setattr(asked, "Asked", Noting)
    began = time.monotonic()
    with pytest.warns(ResourceWarning) as caught:
        hops.group.terminate(0.5)
    assert time.monotonic() - began < BOUND_S
    told = rf"worker last could not be reached to be killed \(hop{depth - 1}, .* does not answer"
    assert any(re.match(told, str(warned.message)) for warned in caught)
    assert len(made) == depth + 1  # each was waited for once; the last one was asked as well
    assert len(list(records.left())) == (1 + depth if resume else 1)
    reader.join()


@pytest.mark.parametrize("way", ["via", "installvia"])
def test_a_worker_is_killed_through_a_hop_that_answers_however_long_that_takes(
    hops: Hops, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    hops.make(way, "")
    supervisor = supervisor_of(hops.pids[-1])
    monkeypatch.setattr(terminate, "REACH_S", 0.0)  # over when the hop answers
    monkeypatch.setattr(asked, "SILENT_S", BOUND_S)
    with pytest.warns(ResourceWarning, match="worker last did not end in time and was killed"):
        hops.group.terminate(0.1)
    assert_gone(hops.pids[-1], supervisor)
    assert list(records.left()) == []


def test_a_worker_is_killed_through_a_hop_over_a_slow_link(
    link: CutLink, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.set_delay(0.2)  # so that a login takes longer than a host may be silent
    monkeypatch.setattr(asked, "SILENT_S", BOUND_S)
    monkeypatch.setattr(near, "LOGIN_S", BOUND_S)
    with Group() as group:
        group.makegateway(f"ssh=host//python={sys.executable}//id=hop{RESUME}")
        gateway = group.makegateway(f"socket={servers.start(':0').address}//via=hop{LAST}")
        pid = pid_of(gateway)
        supervisor = supervisor_of(pid)
        stop(pid)
        with pytest.warns(ResourceWarning) as caught:
            group.terminate(0.1)
    assert not [str(warned.message) for warned in caught if "reached" in str(warned.message)]
    assert_gone(pid, supervisor)


class Quiet:
    """A gateway, and its stream, whose worker answers when a test says so."""

    id = 7  # of its channel

    def __init__(self) -> None:
        self.execmodel = get_execmodel("thread")
        self.endpoint = self
        self.read_at = 0.0
        self.posts: list[int] = []
        self.answer: Callable[[object], object] = id

    def newchannel(self) -> Quiet:
        return self

    def setcallback(self, callback: Callable[[object], object], endmarker: object) -> None:
        self.answer = callback

    def post_message(self, code: int, channel_id: int) -> None:
        self.posts.append(code)


def test_silence_is_told_from_an_answer_that_is_late(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(asked, "monotonic", lambda: now[0])
    quiet: Any = Quiet()
    request = Asked(quiet)
    assert quiet.posts == [Message.STATUS]
    now[0] += asked.SILENT_S / 2
    assert not request.is_silent()
    quiet.read_at = now[0]  # part of something else, as the link is slow
    now[0] += asked.SILENT_S * 3 / 4
    assert not request.is_silent()
    now[0] += asked.SILENT_S / 2
    assert request.is_silent()
    assert not request.wait(now[0] + BOUND_S, is_hurried=True)
    assert not request.wait(now[0], is_hurried=False)
    quiet.answer(None)
    assert not request.is_silent()
    assert request.wait(now[0], is_hurried=True)


def test_a_hop_that_has_ended_counts_as_one_that_answers() -> None:
    class Ended(Quiet):
        def newchannel(self) -> Quiet:
            raise OSError("it has ended")

    ended: Any = Ended()
    assert Asked(ended).is_answered()
