"""What few threads that read for many gateways do alike, whatever the streams are.

Those of sockets wait for descriptors, those of gateways behind others are told of what comes; what
only one of these does is tested in ``test_readers`` and ``test_via_readers``.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from chains import posix_only
from processes import stop
from reading import echoes, names, ping
from tools import BOUND_S, wait_until
from workers import GETPID, ask

from benchmarks.proofs import many
from execnet import Channel, Gateway, Group, TimeoutError, WorkerDied, _readers
from execnet.gateway_base import CAN_READ_DIRECTLY

BETWEEN = "popen//id=between"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A spec of workers that are forked, behind a socket; "" where none can be read together."""
    if not hasattr(select, "epoll"):
        yield ""
        return
    with many.server() as spec:
        yield spec


@pytest.fixture(params=["socket", "via"])
def spec(request: pytest.FixtureRequest, server: str) -> str:
    """A spec of workers whose streams few threads read."""
    found: str = (
        request.getfixturevalue("server") if request.param == "socket" else "popen//via=between"
    )
    return found


@pytest.fixture(autouse=True)
def none_has_its_own(monkeypatch: pytest.MonkeyPatch, nothing_is_left: None) -> None:
    monkeypatch.setattr(_readers, "OWN", 0)


def begin(group: Group, spec: str) -> int:
    """Start the gateway that the others go via, if they do; return how many threads read for it."""
    if "via=" not in spec:
        return 0
    group.makegateway(BETWEEN)
    return 1


Make = Callable[[int], "list[Gateway]"]


@pytest.fixture
def own(group: Group, spec: str) -> int:
    """How many gateways have a thread of their own from the beginning."""
    return begin(group, spec)


@pytest.fixture
def make(group: Group, spec: str, own: int) -> Make:
    """A function that starts so many gateways."""
    return lambda count: list(group.makegateways([spec] * count))


class TestThreads:
    def test_the_first_ones_keep_their_own(
        self, make: Make, own: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_readers, "OWN", 2)
        first = make(1) + make(1)
        ping(*echoes(first + make(3)))
        wait_until(lambda: len(names("execnet-receiver")) == own + 2)
        first[0].exit()
        first[0].join(BOUND_S)
        wait_until(lambda: len(names("execnet-receiver")) == own + 1)
        ping(*echoes(make(2)))
        wait_until(lambda: len(names("execnet-receiver")) == own + 2)

    def test_it_works_where_no_more_can_be_started(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: object) -> None:
            raise RuntimeError("can't start new thread")

        monkeypatch.setattr(_readers._Readers, "_start", refuse)
        ping(*echoes(make(5)))

    @pytest.mark.core
    @pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="this Python cannot read directly")
    def test_a_thread_that_waits_for_an_item_reads_it_itself(self, make: Make) -> None:
        (channel,) = echoes(make(1))

        def reads_directly() -> bool:
            direct = channel.gateway._channelfactory.direct
            ping(channel)
            return direct is not None and direct.uses > 50

        wait_until(reads_directly)


class TestCallbacks:
    def test_slow_ones_stall_nobody(self, make: Make) -> None:
        slow, ends = 3 * _readers.POLLING, threading.Event()
        channels = echoes(make(slow + 4))
        arrived: queue.Queue[object] = queue.Queue()
        for channel in channels[:slow]:
            channel.setcallback(lambda item: (arrived.put(item), ends.wait(BOUND_S)))
            channel.send(1)
        try:
            assert [arrived.get(True, BOUND_S) for _ in range(slow)] == [1] * slow
            for _ in range(5):
                ping(*channels[slow:])
                assert [ask(channel.gateway, GETPID) for channel in channels[slow:]]
                assert [channel.gateway.remote_status() for channel in channels[slow:]]
        finally:
            ends.set()

    def test_one_may_wait_for_another_gateway(self, make: Make) -> None:
        channels = echoes(make(2 * _readers.POLLING))
        results: queue.Queue[object] = queue.Queue()

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
        idents: list[int] = []
        last: queue.Queue[object] = queue.Queue()
        channel = gateway.remote_exec("for item in channel: channel.send(item)")
        channel.setcallback(lambda item: (idents.append(threading.get_ident()), last.put(item)))
        for number in range(20):
            channel.send(number)
            assert last.get(True, BOUND_S) == number
        assert len(set(idents)) == 1
        assert threading.get_ident() not in idents


class TestBytes:
    def test_one_that_sends_half_a_frame_stalls_nobody(self, make: Make) -> None:
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

    @pytest.mark.parametrize("size", [0, 1, 65527, 65536, (1 << 18) - 20, 3_000_000])
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

    def test_a_timeout_ends_a_wait(self, make: Make) -> None:
        (channel,) = echoes(make(1))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                channel.receive(0.01)
            ping(channel)


@posix_only
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

    def test_terminate_ends_in_time_though_some_are_stuck(self, spec: str) -> None:
        group = Group()
        begin(group, spec)
        gateways = list(group.makegateways([spec] * (30 if "socket" in spec else 12)))
        for channel in [gateway.remote_exec(many.STUCK) for gateway in gateways[::5]]:
            channel.receive(BOUND_S)
        began = time.monotonic()
        group.terminate(1.0)
        assert time.monotonic() - began < 1.0 + BOUND_S / 2
        assert not any(gateway.hasreceiver() for gateway in gateways)

    def test_they_begin_again_after_the_last_one_has_ended(self, spec: str) -> None:
        for _ in range(4):
            with Group() as group:
                begin(group, spec)
                ping(*echoes(list(group.makegateways([spec] * 3))))
                group.terminate(BOUND_S)

    def test_a_silent_worker_is_given_up(self, group: Group, own: int, spec: str) -> None:
        gateway = group.makegateway(f"{spec}//heartbeat=0.05//dead_after=1")
        (channel,) = echoes([gateway])
        ping(channel)
        pid = gateway._rinfo().pid
        stop(pid)
        try:
            with pytest.raises(WorkerDied, match="silent for 1 s"):
                channel.receive(BOUND_S)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
