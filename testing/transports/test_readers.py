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
import time
from collections.abc import Callable, Iterator

import pytest
from processes import stop
from socketservers import Servers
from tools import BOUND_S, FORKING, missing, run_python, wait_until
from workers import ECHO, GETPID, ask

from benchmarks.proofs import many
from execnet import Channel, Gateway, Group, TimeoutError, WorkerDied, _readers
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


def names(start: str) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(start)]


def ping(*channels: Channel) -> None:
    for channel in channels:
        channel.send(5)
        assert channel.receive(BOUND_S) == 5


def echoes(gateways: list[Gateway]) -> list[Channel]:
    return [gateway.remote_exec(ECHO) for gateway in gateways]


class TestThreads:
    def test_few_read_for_many(self, make: Make) -> None:
        fds = len(os.listdir("/proc/self/fd"))
        channels = echoes(make(64))
        ping(*channels)
        assert len(os.listdir("/proc/self/fd")) - fds <= 64 + 3
        wait_until(lambda: len(names("execnet-reader")) <= _readers.POLLING)
        assert names("execnet-receiver") == []
        ping(*channels)

    def test_the_first_ones_keep_their_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_readers, "OWN", 2)
        first = make(1) + make(1)
        ping(*echoes(first + make(3)))
        wait_until(lambda: len(names("execnet-receiver")) == 2)
        first[0].exit()
        first[0].join(BOUND_S)
        wait_until(lambda: len(names("execnet-receiver")) == 1)
        ping(*echoes(make(2)))
        wait_until(lambda: len(names("execnet-receiver")) == 2)

    def test_it_works_where_no_more_can_be_started(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_readers._Readers, "_start", refuse)
        ping(*echoes(make(5)))

    def test_without_a_descriptor_left_each_has_its_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse() -> None:
            raise OSError("Too many open files")

        monkeypatch.setattr(select, "epoll", refuse)
        ping(*echoes(make(2)))
        assert len(names("execnet-receiver")) == 2

    @pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="not with this Python")
    def test_a_thread_that_waits_for_an_item_reads_it_itself(self, make: Make) -> None:
        (channel,) = echoes(make(1))

        def reads_directly() -> bool:
            direct = channel.gateway._channelfactory.direct
            ping(channel)
            return direct is not None and direct.uses > 50

        wait_until(reads_directly)

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
    def test_slow_ones_stall_nobody(self, make: Make) -> None:
        slow, ends = 3 * _readers.POLLING, threading.Event()
        channels = echoes(make(slow + 4))
        arrived = get_execmodel("thread").inbox()
        for channel in channels[:slow]:
            channel.setcallback(lambda item: (arrived.put(item), ends.wait(BOUND_S)))
            channel.send(1)
        try:
            assert [arrived.get(True, BOUND_S) for _ in range(slow)] == [1] * slow
            for _ in range(5):
                ping(*channels[slow:])
                assert [ask(channel.gateway, GETPID) for channel in channels[slow:]]
        finally:
            ends.set()

    def test_one_may_wait_for_another_gateway(self, make: Make) -> None:
        channels = echoes(make(2 * _readers.POLLING))
        results = get_execmodel("thread").inbox()

        def wait_for(other: Channel) -> Callable[[object], None]:
            def callback(item: object) -> None:
                other.send(item)
                results.put(other.receive(BOUND_S))

            return callback

        half = len(channels) // 2
        for channel, other in zip(channels[:half], channels[half:], strict=True):
            channel.setcallback(wait_for(other))
        for number, channel in enumerate(channels[:half]):
            channel.send(number)
        assert sorted(results.get(True, BOUND_S) for _ in range(half)) == list(range(half))

    def test_all_of_a_gateway_run_in_one_thread(self, make: Make) -> None:
        (gateway,) = make(1)
        idents, last = [], get_execmodel("thread").inbox()
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        channel.setcallback(lambda item: (idents.append(threading.get_ident()), last.put(item)))
        for number in range(20):
            channel.send(number)
            assert last.get(True, BOUND_S) == number
        assert len(set(idents)) == 1
        assert threading.get_ident() not in idents

    def test_it_may_end_its_own_group(self, spec: str) -> None:
        group, done = Group(), threading.Event()
        channel = group.makegateway(spec).remote_exec("channel.send(channel.receive())")
        channel.setcallback(lambda item: (group.terminate(1.0), done.set()))
        channel.send(1)
        assert done.wait(BOUND_S)
        group.terminate(BOUND_S)


class TestBytes:
    def test_one_that_sends_half_a_frame_stalls_nobody(self, make: Make, group: Group) -> None:
        torn = 3 * _readers.POLLING
        gateways = make(torn + 2)
        # Whatever such a worker says later, signs of life too, is content of that frame.
        code = "import struct; begun = struct.pack('!bii', 4, channel.id, 1 << 20) + b'x'\n"
        for gateway in gateways[:torn]:
            gateway.remote_exec(code + "channel.gateway._io.write(begun)")
        channels = echoes(gateways[torn:])
        for _ in range(20):
            ping(*channels)
        assert all(gateway.hasreceiver() for gateway in gateways)

    @pytest.mark.parametrize("size", [0, 1, 65527, 65536, 3_000_000])
    def test_items_of_any_size_arrive_from_all_at_once(self, make: Make, size: int) -> None:
        channels = echoes(make(6))
        data = os.urandom(size)
        for channel in channels:
            channel.send(data)
        for channel in channels:
            assert channel.receive(BOUND_S) == data

    def test_many_small_items_arrive_in_their_order(self, make: Make) -> None:
        code = "for number in range(5000): channel.send(number)"
        for channel in [gateway.remote_exec(code) for gateway in make(6)]:
            assert list(channel) == list(range(5000))

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
    def test_the_death_of_one_is_not_that_of_others(self, make: Make) -> None:
        channels = echoes(make(10))
        dead = channels.pop(4)
        os.kill(dead.gateway._rinfo().pid, signal.SIGKILL)
        with pytest.raises(WorkerDied):
            dead.receive(BOUND_S)
        dead.gateway.join(BOUND_S)
        assert not dead.gateway.hasreceiver()
        ping(*channels)

    def test_all_may_die_at_once(self, make: Make) -> None:
        channels = echoes(make(30))
        for channel in channels:
            os.kill(channel.gateway._rinfo().pid, signal.SIGKILL)
        for channel in channels:
            with pytest.raises(WorkerDied):
                channel.receive(BOUND_S)

    def test_terminate_ends_in_time_though_some_are_stuck(
        self, spec: str, nothing_is_left: None
    ) -> None:
        group = Group()
        gateways = group.makegateways([spec] * 30)
        stuck = [gateway.remote_exec(many.STUCK) for gateway in gateways[::5]]
        for channel in stuck:
            channel.receive(BOUND_S)
        began = time.monotonic()
        group.terminate(1.0)
        assert time.monotonic() - began < 1.0 + BOUND_S / 2
        assert not any(gateway.hasreceiver() for gateway in gateways)

    def test_they_begin_again_after_the_last_one_has_ended(self, spec: str) -> None:
        for _ in range(5):
            with Group() as group:
                ping(*echoes(list(group.makegateways([spec] * 3))))
                group.terminate(BOUND_S)

    def test_a_silent_worker_is_given_up(self, group: Group, spec: str) -> None:
        gateway = group.makegateway(f"{spec}//heartbeat=0.05//dead_after=1")
        (channel,) = echoes([gateway])
        ping(channel)
        pid = gateway._rinfo().pid
        stop(pid)
        try:
            with pytest.raises(WorkerDied, match="silent for 1 s"):
                channel.receive(BOUND_S)
        finally:
            os.kill(pid, signal.SIGCONT)

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


def test_a_timeout_ends_a_wait(make: Make) -> None:
    (channel,) = echoes(make(1))
    for _ in range(3):
        with pytest.raises(TimeoutError):
            channel.receive(0.01)
        ping(channel)
