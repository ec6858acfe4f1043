"""Threads that read for many gateways: how many they are, and that none keeps another's bytes.

What gateways over sockets do at all is tested with these in ``test_socket`` and
``test_socket_tls``.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from reading import echoes, names, ping
from socketservers import Servers
from tools import BOUND_S, FORKING, missing, run_python, wait_until
from workers import ECHO

from benchmarks.proofs import many
from execnet import Gateway, Group, WorkerDied, _readers
from execnet.gateway_base import CAN_READ_DIRECTLY, get_execmodel
from execnet.gateway_socket import SocketIO

pytestmark = pytest.mark.skipif(not hasattr(select, "epoll"), reason="this system has no epoll")


@pytest.fixture(scope="module")
def spec() -> Iterator[str]:
    """A worker that is forked, behind a socket."""
    with many.server() as spec:
        yield spec


@pytest.fixture(autouse=True)
def none_has_its_own(monkeypatch: pytest.MonkeyPatch, nothing_is_left: None) -> None:
    monkeypatch.setattr(_readers, "OWN", 0)


Make = Callable[[int], "list[Gateway]"]


@pytest.fixture
def make(group: Group, spec: str) -> Make:
    """A function that starts so many gateways."""
    return lambda count: list(group.makegateways([spec] * count))


class TestThreads:
    def test_few_read_for_many(self, make: Make) -> None:
        fds = len(os.listdir("/proc/self/fd"))
        channels = echoes(make(64))
        ping(*channels)
        assert len(os.listdir("/proc/self/fd")) - fds <= 64 + 3
        wait_until(lambda: len(names("execnet-reader")) <= _readers.POLLING)
        assert names("execnet-receiver") == []
        ping(*channels)

    def test_without_a_descriptor_left_each_has_its_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise OSError("Too many open files")

        monkeypatch.setattr(select, "epoll", refuse)
        ping(*echoes(make(2)))
        assert len(names("execnet-receiver")) == 2

    @pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="not with this Python")
    def test_few_streams_are_left_to_such_threads(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channels = echoes(make(3 * _readers.OFFERS))
        directs = [channel.gateway._channelfactory.direct for channel in channels]
        for direct in directs:
            monkeypatch.setattr(direct, "IDLE_S", 5.0)

        def offered() -> int:
            ping(*channels)
            return sum(direct is not None and direct.offered for direct in directs)

        wait_until(lambda: offered() == _readers.OFFERS)
        for _ in range(5):
            assert offered() <= _readers.OFFERS


class TestCallbacks:
    def test_it_may_end_its_own_group(self, spec: str) -> None:
        group, done = Group(), threading.Event()
        channel = group.makegateway(spec).remote_exec("channel.send(channel.receive())")
        channel.setcallback(lambda item: (group.terminate(1.0), done.set()))
        channel.send(1)
        assert done.wait(BOUND_S)
        group.terminate(BOUND_S)


class TestBytes:
    def test_they_arrive_in_a_buffer_too(self, make: Make) -> None:
        channels, size = echoes(make(3)), 3_000_000
        for _ in range(3):
            for channel in channels:
                channel.send(os.urandom(size))
            for channel in channels:
                buffer = bytearray(size)
                assert channel.receive_into(buffer, BOUND_S) == size
                assert any(buffer[-1000:])

    def test_what_tls_has_read_ahead_arrives(self, servers: Servers, group: Group) -> None:
        if shutil.which("openssl") is None:
            missing("the program openssl")
        server = servers.start(":0", "--tls")
        gateways = group.makegateways([f"socket={server.address}"] * 2)
        code = "for number in range(300): channel.send(bytes(700))"
        for _ in range(5):
            for channel in [gateway.remote_exec(code) for gateway in gateways]:
                assert [len(channel.receive(BOUND_S)) for _ in range(300)] == [700] * 300
                channel.waitclose(BOUND_S)


class TestEnds:
    def test_all_may_die_at_once(self, make: Make) -> None:
        channels = echoes(make(30))
        for channel in channels:
            os.kill(channel.gateway._rinfo().pid, signal.SIGKILL)
        for channel in channels:
            with pytest.raises(WorkerDied):
                channel.receive(BOUND_S)

    def test_one_whose_bytes_nobody_has_read_is_not_silent(self) -> None:
        near, far = socket.socketpair()
        io = SocketIO(near, get_execmodel("thread"), "there")
        assert not io.on_silence("silent")
        far.send(b"x")
        assert io.on_silence("silent")
        far.close()
        io.discard()
        assert not io.on_silence("silent")

    def test_a_stream_that_is_discarded_is_closed_by_its_reader(
        self, make: Make, group: Group
    ) -> None:
        gateway, other = make(2)
        ping(*echoes([gateway, other]))
        gateway._io.discard()  # as when an interrupt comes while it is made
        gateway.join(BOUND_S)
        wait_until(lambda: gateway._io.shared_fd() == -1)
        ping(*echoes([other]))

    def test_a_fork_leaves_them_to_its_parent(self, spec: str) -> None:
        result = run_python(
            f"""
import os, sys, execnet
from execnet import _readers
_readers.OWN = 0
ECHO = {ECHO!r}
gateways = execnet.Group().makegateways([{spec!r}] * 3)
channels = [gateway.remote_exec(ECHO) for gateway in gateways]

def ping(channels):
    for channel in channels:
        channel.send(1)
        assert channel.receive({BOUND_S}) == 1

ping(channels)
if not os.fork():
    assert not _readers._seats._readers
    for fd in os.listdir("/proc/self/fd"):
        try:
            assert "eventpoll" not in os.readlink("/proc/self/fd/" + fd)
        except FileNotFoundError:
            pass
    try:
        channels[0].receive()
    except EOFError as exc:
        print("of which this one is a fork" in str(exc))
    group = execnet.Group()
    ping([gateway.remote_exec(ECHO) for gateway in group.makegateways([{spec!r}] * 2)])
    sys.stdout.flush()
    if not os.fork():
        print(len(_readers._seats._readers))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
    group.terminate(5)
    sys.stdout.flush()
    os._exit(0)
os.wait()
ping(channels)
print("well")
""",
            **FORKING,
        )
        assert (result.stdout.split(), result.stderr) == (["True", "0", "well"], "")
