"""Connections to several socket servers, which are made at once."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from socketservers import Serve, connect
from tools import BOUND_S, wait_until
from workers import ask

from execnet import AuthenticationError, Group
from execnet._errors import HostRefused
from execnet._transports import dials
from execnet.gateway_base import ExecModel, get_execmodel
from execnet.script import socketserver

ONE = "channel.send(1)"


@contextmanager
def listening() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(BOUND_S)
        yield listener, f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def key(tmp_path: Path) -> str:
    """The words of a spec with a key, with which a client waits for what the server says."""
    path = tmp_path / "key"
    socketserver.make_key(str(path))
    return f"key={path}"


def dialling() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "execnet-dial"]


def test_no_server_is_passed_on_to_before_all_have_a_client(serve: Serve, group: Group) -> None:
    server = serve()
    together = threading.Barrier(3)

    def relay(listener: socket.socket) -> None:
        near = listener.accept()[0]
        with near, connect(server.address) as far:
            together.wait(BOUND_S)
            near.settimeout(None)
            far.settimeout(None)
            back = threading.Thread(target=pump, args=(far, near))
            back.start()
            pump(near, far)
            back.join()

    def pump(here: socket.socket, there: socket.socket) -> None:
        while data := here.recv(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)

    with listening() as first, listening() as second, listening() as third:
        threads = [threading.Thread(target=relay, args=(end[0],)) for end in (first, second, third)]
        for thread in threads:
            thread.start()
        specs = [f"socket={end[1]}//bound={server.address}" for end in (first, second, third)]
        gateways = group.makegateways([*specs, "popen"])
        assert [ask(gateway, ONE) for gateway in gateways] == [1] * 4
        assert dialling() == []
        group.terminate(BOUND_S)
        for thread in threads:
            thread.join(BOUND_S)


def test_one_that_fails_ends_the_others(group: Group, key: str) -> None:
    with listening() as (silent, address):
        with listening() as (_, nobody):
            pass
        specs = [f"socket={place}//{key}" for place in (address, nobody, address)]
        specs[::2] = [f"{spec}//connect_timeout=2" for spec in specs[::2]]
        with pytest.raises(HostRefused, match="gw1 could not be started: can't connect to"):
            group.makegateways(specs)
        for _ in range(2):
            with silent.accept()[0] as client:
                client.settimeout(BOUND_S)
                assert client.recv(1) == b""
    wait_until(lambda: dialling() == [])


def test_each_has_its_own_time_and_says_which_one_it_is(group: Group, key: str) -> None:
    with listening() as (_, address):
        specs = [f"socket={address}//{key}//id={name}//connect_timeout=0.2" for name in "ab"]
        with pytest.raises(
            AuthenticationError, match=r"^[ab] could not be started: .*keeps silent"
        ):
            group.makegateways(specs)


def test_more_than_there_are_threads_for(
    serve: Serve, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dials, "THREADS_MAX", 2)
    gateways = group.makegateways([f"socket={serve().address}"] * 5)
    assert [ask(gateway, ONE) for gateway in gateways] == [1] * 5


def test_without_another_thread_they_are_made_one_after_the_other(
    serve: Serve, group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = ExecModel.start

    def refuse(model: ExecModel, func: Any, args: Any = (), name: str = "") -> None:
        if name == "execnet-dial":
            raise RuntimeError("can't start new thread")
        start(model, func, args, name)

    monkeypatch.setattr(ExecModel, "start", refuse)
    gateways = group.makegateways([f"socket={serve().address}"] * 2)
    assert [ask(gateway, ONE) for gateway in gateways] == [1] * 2


def test_a_stream_that_nobody_takes_is_closed() -> None:
    class Stream:
        def __init__(self) -> None:
            self.is_discarded = False

        def discard(self) -> None:
            self.is_discarded = True

    taken, left = Stream(), Stream()
    model = get_execmodel("thread")
    settings: Any = None
    for stream in taken, left:
        dial = dials.Dial(settings, model)
        dial.end(stream, None)  # type: ignore[arg-type]
        if stream is taken:
            assert dial.stream(settings, model) is stream
        dial.drop()
    assert (taken.is_discarded, left.is_discarded) == (False, True)
