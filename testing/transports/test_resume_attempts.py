"""Attempts of ``resume=`` at another connection that fail in ways which nobody expects."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from tools import BOUND_S

from execnet import BootstrapError, LoadError, XSpec, gateway_socket
from execnet._join.facts import Facts
from execnet._join.returns import Return
from execnet._join.visitor import Connection
from execnet._resume import shared
from execnet._resume.logins import Refused, Session
from execnet._resume.near import ResumeIO
from execnet._resume.ways import Maker, Way
from execnet._specs import Settings
from execnet._transports.sharing import Connections
from execnet.gateway_base import get_execmodel
from execnet.gateway_socket import SocketIO
from execnet.script import socketserver

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="resume= is not for Windows")

MODEL = get_execmodel("thread")


class Pairs:
    """Pairs of sockets; the far ends are kept."""

    def __init__(self, ends: ExitStack) -> None:
        self._ends = ends
        self.far: list[socket.socket] = []

    def __call__(self) -> socket.socket:
        near, far = socket.socketpair()
        for end in near, far:
            self._ends.callback(end.close)
        far.settimeout(BOUND_S)
        self.far.append(far)
        return near

    def way(self) -> Way:
        near = self()
        return Way(SocketIO(near, MODEL, "there"), near)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as ends:
        yield Pairs(ends)


def settings_of(spec: str) -> Settings:
    parsed = XSpec(spec)
    parsed.id, parsed.execmodel = "gw0", "thread"
    return Settings(parsed)


def lost(pairs: Pairs, anew: Callable[..., Any]) -> ResumeIO:
    """Return the stream of a worker that has lost its connection."""
    io = ResumeIO(settings_of("ssh=host//resume=1"), MODEL, Maker(pairs.way, anew))
    io._session = Session(io._settings)
    io._session.place({"boot": "b", "host": "h"})
    io._is_found_later = lambda: False  # type: ignore[method-assign]
    io.writer_class(io, "gw0")
    return io


@pytest.mark.parametrize("error", [RuntimeError, KeyError, TypeError, LoadError])
def test_an_error_of_any_kind_ends_the_stream_when_the_time_is_over(
    pairs: Pairs, error: type[Exception]
) -> None:
    def anew(deadline: float, is_over: Callable[[], bool]) -> Way:
        raise error("no more")

    io = lost(pairs, anew)
    io._reconnect(io._carrier, "cut")
    assert "it was out of reach for 1 s; " + error.__name__ in io.given_up
    assert "no more" in io.given_up
    assert io.is_over
    io.close_read()


@pytest.mark.parametrize("error", [RuntimeError, KeyError, TypeError, LoadError])
def test_a_kill_that_fails_says_so(pairs: Pairs, error: type[Exception]) -> None:
    def anew(deadline: float, is_over: Callable[[], bool]) -> Way:
        raise error("no more")

    io = lost(pairs, anew)
    with pytest.warns(ResourceWarning, match=f"to be killed .{error.__name__}: "):
        io.kill()
    assert io.is_over
    io.close_read()


def test_without_descriptors_nothing_is_left_of_a_connection(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = os.dup, []

    def dup(fd: int) -> int:
        if made:
            raise OSError("too many open files")
        made.append(real(fd))
        return made[0]

    monkeypatch.setattr("execnet._resume.near.os.dup", dup)
    with pytest.raises(OSError, match="too many"):
        ResumeIO(settings_of("ssh=host//resume=1"), MODEL, Maker(pairs.way, pairs.way))
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(made[0])
    assert pairs.far[0].recv(1) == b""


# ---------------------------------------------------------------- joiners


@pytest.fixture
def joiner(pairs: Pairs) -> Return:
    def stream_over(connection: Any) -> SocketIO:
        return SocketIO(connection, MODEL, "there")

    return Return(Facts("0" * 64, b"{}"), pairs(), stream_over, int)  # type: ignore[arg-type]


def test_a_joiner_that_comes_again_ends_the_login_over_the_connection_before(
    joiner: Return, pairs: Pairs
) -> None:
    """That one may be dead without an end, and the time for an answer that of ``resume=``."""
    joiner.come(pairs())  # type: ignore[arg-type]
    way = joiner.anew(time.monotonic() + BOUND_S, bool)
    joiner.come(pairs())  # type: ignore[arg-type]
    way.infile.settimeout(BOUND_S)
    assert way.infile.recv(1) == b""
    assert pairs.far[1].recv(1) == b""
    other = joiner.anew(time.monotonic() + BOUND_S, bool)
    pairs.far[2].sendall(b"x")
    assert other.infile.recv(1) == b"x"
    for one in way, other:
        one.kill()
        one.close_write()
        one.close_read()


@pytest.mark.parametrize("how", ["kill", "come"])
def test_a_connection_that_is_not_wanted_by_the_time_it_was_taken_is_not_used(
    joiner: Return, pairs: Pairs, how: str
) -> None:
    is_killed = threading.Event()
    stream_over = joiner._stream_over

    def late(connection: Any) -> Any:  # as if another thread ran now
        joiner._stream_over = stream_over
        if how == "kill":
            is_killed.set()
        else:
            joiner.come(pairs())  # type: ignore[arg-type]
        return stream_over(connection)

    joiner._stream_over = late
    joiner.come(pairs())  # type: ignore[arg-type]
    way = joiner.anew(time.monotonic() + BOUND_S, is_killed.is_set)
    way.infile.settimeout(BOUND_S)
    if how == "come":
        pairs.far[2].sendall(b"x")
    assert way.infile.recv(1) == (b"x" if how == "come" else b"")
    assert pairs.far[1].recv(1) == b""
    way.kill()
    way.close_write()
    way.close_read()


def test_a_visitor_without_a_proof_sends_only_so_much() -> None:
    """Otherwise records of TLS that say nothing would keep the thread of the door busy."""

    class Endless:
        def read_some(self, limit: int, receive: Callable[[int], bytes]) -> bytes:
            while True:
                receive(1 << 16)

    sock: Any = SimpleNamespace(fileno=int, shutdown=int, close=int)
    sock.recv = lambda limit: bytes(limit) if next(pieces) else b""
    pieces = iter([True] * 100 + [False])
    tls: Any = Endless()
    with pytest.raises(OSError, match="more than a proof") as caught:
        Connection(sock, tls).recv(600)
    assert not socketserver.waits_for(caught.value)


# ---------------------------------------------------------------- shared logins, installed servers


def test_a_login_whose_way_has_left_the_group_is_not_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def log_in(*args: object) -> Any:
        raise ValueError("via=hop: the group has no such gateway")

    connections = Connections()
    ways = shared.SharedWays(connections, "host", object(), None, log_in)  # type: ignore[arg-type]
    ways._settings = settings_of("ssh=host//share=yes//resume=1")
    with pytest.raises(Refused, match="no such gateway"):
        ways.anew(time.monotonic() + BOUND_S, bool)
    assert connections.begin("host", "another")  # type: ignore[arg-type]


ANSWERS = [5, None, "x", (1, 2, 3), (), ("h", True), ("h", 1 << 99), {"h": 1}, LoadError("no dump")]


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_a_gateway_that_lies_about_its_server_is_told_of(answer: Any) -> None:
    class Channel:
        def send(self, item: object) -> None: ...

        def receive(self, timeout_s: float) -> Any:
            if isinstance(answer, Exception):
                raise answer
            return answer

        def waitclose(self, timeout_s: float) -> None: ...

    gateway: Any = SimpleNamespace(
        id="hop", remoteaddress="127.0.0.1", spec=XSpec("ssh=127.0.0.1"), has_old_python=bool
    )
    gateway.execute_source = lambda *args: Channel()
    with pytest.raises(BootstrapError, match=r"^hop (says that it serves at|can't serve at)"):
        gateway_socket._install(gateway, None, {"clients": 1}, BOUND_S)
