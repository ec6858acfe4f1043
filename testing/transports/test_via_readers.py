"""Threads that read for gateways behind others: how many, and that none keeps another's bytes.

How they end is tested with these in ``test_via_death``.
"""

from __future__ import annotations

import os
import queue
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from chains import MIB, make_chain, pid_of, posix_only
from processes import stop
from tools import BOUND_S, FORKING, run_python, wait_until
from workers import ECHO

from execnet import Channel, Gateway, Group, TimeoutError, WorkerDied, _readers
from execnet._via.stream import ViaIO
from execnet.gateway_base import CAN_READ_DIRECTLY, ExecModel

# Its stream ends, and its process does not.
LINGER = """
import os, signal
channel.send(None)
os.closerange(0, 100)
os.kill(os.getpid(), signal.SIGSTOP)
"""
STUCK = "import time; channel.send(None); time.sleep(300)"
needs_direct_reads = pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="not with this Python")


@pytest.fixture(autouse=True)
def none_has_its_own(monkeypatch: pytest.MonkeyPatch, nothing_is_left: None) -> None:
    monkeypatch.setattr(_readers, "OWN", 0)


Make = Callable[[int], "list[Gateway]"]


@pytest.fixture
def between(group: Group) -> Gateway:
    """The gateway that all others go via."""
    return group.makegateway("popen//id=between")


@pytest.fixture
def make(group: Group, between: Gateway) -> Make:
    """A function that starts so many gateways behind it."""
    return lambda count: list(group.makegateways(["popen//via=between"] * count))


def names(start: str) -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(start)]


def ping(*channels: Channel) -> None:
    for channel in channels:
        channel.send(5)
        assert channel.receive(BOUND_S) == 5


def echoes(gateways: list[Gateway]) -> list[Channel]:
    return [gateway.remote_exec(ECHO) for gateway in gateways]


def refuse(self: object) -> None:
    raise RuntimeError("can't start new thread")


class TestThreads:
    def test_few_read_for_many(self, make: Make) -> None:
        channels = echoes(make(12))
        for _ in range(3):
            ping(*channels)
        wait_until(lambda: names("execnet-receiver") == ["execnet-receiver-between"])
        wait_until(lambda: len(names("execnet-reader")) <= _readers.POLLING)
        ping(*channels)

    def test_the_first_ones_keep_their_own(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_readers, "OWN", 2)
        first = make(1) + make(1)
        ping(*echoes(first + make(3)))
        wait_until(lambda: len(names("execnet-receiver")) == 1 + 2)
        first[0].exit()
        first[0].join(BOUND_S)
        wait_until(lambda: len(names("execnet-receiver")) == 1 + 1)
        ping(*echoes(make(2)))
        wait_until(lambda: len(names("execnet-receiver")) == 1 + 2)

    def test_it_works_where_no_more_can_be_started(
        self, make: Make, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_readers._Readers, "_start", refuse)
        ping(*echoes(make(5)))

    def test_greenlets_have_one_each(self, execmodel: ExecModel) -> None:
        group = Group(execmodel=execmodel)
        try:
            gateways = make_chain(group, "", "")
            ping(*echoes(gateways))
            is_shared = gateways[1]._io.is_shared
            assert is_shared == execmodel.has_main_thread
        finally:
            group.terminate(BOUND_S)

    @posix_only
    def test_one_that_others_go_via_keeps_its_own(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else all threads might wait for the ends of workers that it would tell of."""
        middle = make_chain(group, "", "")[1]
        behind = group.makegateways([f"popen//via={middle.id}"] * (3 * _readers.POLLING))
        (channel,) = echoes([middle])
        ping(channel)
        monkeypatch.setattr(_readers._Readers, "_start", refuse)
        lingering = [gateway.remote_exec(LINGER) for gateway in behind]
        readers = _readers._seats._readers[_readers._Told]
        wait_until(lambda: readers._polling == 0)
        ping(channel)
        assert len(lingering) > readers._threads  # so that each was taken by one

    @posix_only
    def test_the_ends_that_workers_take_their_time_for_delay_nobody(self, make: Make) -> None:
        gateways = make(3 * _readers.POLLING)
        lingering = gateways[: 2 * _readers.POLLING]
        channels = echoes(gateways[len(lingering) :])
        for one in [gateway.remote_exec(LINGER) for gateway in lingering]:
            one.receive(BOUND_S)
        wait_until(lambda: not any(gateway.hasreceiver() for gateway in lingering))
        readers = _readers._seats._readers[_readers._Told]
        wait_until(lambda: readers._busy == 0)  # not those threads that wait for the ends
        ping(*channels)

    @needs_direct_reads
    def test_a_thread_that_waits_for_an_item_reads_it_itself(self, make: Make) -> None:
        (channel,) = echoes(make(1))

        def reads_directly() -> bool:
            direct = channel.gateway._channelfactory.direct
            ping(channel)
            return direct is not None and direct.uses > 50

        wait_until(reads_directly)

    @needs_direct_reads
    def test_none_is_forgotten_while_the_stream_is_left_to_others(
        self, make: Make, between: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channels = echoes([between, *make(2)])
        ping(*channels)
        with monkeypatch.context() as patched:
            patched.setattr(between._channelfactory.direct, "IDLE_S", 3 * BOUND_S)
            for _ in range(20):
                ping(*channels)

    @needs_direct_reads
    def test_no_stream_is_offered_that_the_one_between_reads_for_another(self, make: Make) -> None:
        channel, other = echoes(make(2))
        ping(channel, other)
        wait_until(lambda: other.gateway._io._inbox._parked)
        direct = channel.gateway._channelfactory.direct
        uses = direct.uses
        for _ in range(50):
            ping(channel)
        assert direct.uses == uses


class TestCallbacks:
    def test_slow_ones_stall_nobody(self, make: Make) -> None:
        slow, ends = 2 * _readers.POLLING, threading.Event()
        channels = echoes(make(slow + 3))
        arrived: queue.Queue[object] = queue.Queue()
        for channel in channels[:slow]:
            channel.setcallback(lambda item: (arrived.put(item), ends.wait(BOUND_S)))
            channel.send(1)
        try:
            assert [arrived.get(True, BOUND_S) for _ in range(slow)] == [1] * slow
            for _ in range(5):
                ping(*channels[slow:])
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

    def test_one_that_sends_much_waits_for_nothing(self, make: Make) -> None:
        (gateway,) = make(1)
        done: queue.Queue[object] = queue.Queue()
        channel = gateway.remote_exec("channel.send(1); channel.send(len(channel.receive()))")

        def answer(item: Any) -> None:
            if item == 1:
                channel.send(b"x" * (5 * MIB))
            done.put(item)

        channel.setcallback(answer)
        assert [done.get(True, BOUND_S) for _ in range(2)] == [1, 5 * MIB]


class TestBytes:
    @pytest.mark.parametrize("size", [0, 1, 65527, (1 << 18) - 20, 3_000_000])
    def test_items_of_any_size_arrive_from_all_at_once(self, make: Make, size: int) -> None:
        channels = echoes(make(4))
        data = os.urandom(size)
        for channel in channels:
            channel.send(data)
        for channel in channels:
            assert channel.receive(BOUND_S) == data

    def test_many_small_items_arrive_in_their_order(self, make: Make) -> None:
        code = "for number in range(5000): channel.send(number)"
        for channel in [gateway.remote_exec(code) for gateway in make(4)]:
            assert list(channel) == list(range(5000))

    def test_one_that_sends_half_a_frame_stalls_nobody(self, make: Make) -> None:
        torn = 2 * _readers.POLLING
        gateways = make(torn + 2)
        # Whatever such a worker says later, signs of life too, is content of that frame.
        code = "import struct; begun = struct.pack('!bii', 4, channel.id, 1 << 20) + b'x'\n"
        for gateway in gateways[:torn]:
            gateway.remote_exec(code + "channel.gateway._io.write(begun)")
        channels = echoes(gateways[torn:])
        for _ in range(20):
            ping(*channels)
        assert all(gateway.hasreceiver() for gateway in gateways)

    def test_a_timeout_ends_a_wait(self, make: Make) -> None:
        (channel,) = echoes(make(1))
        for _ in range(3):
            with pytest.raises(TimeoutError):
                channel.receive(0.01)
            ping(channel)


@posix_only
class TestEnds:
    def test_the_death_of_one_is_not_that_of_others(self, make: Make) -> None:
        channels = echoes(make(6))
        dead = channels.pop(4)
        os.kill(pid_of(dead.gateway), signal.SIGKILL)
        with pytest.raises(WorkerDied):
            dead.receive(BOUND_S)
        dead.gateway.join(BOUND_S)
        assert not dead.gateway.hasreceiver()
        ping(*channels)

    def test_that_of_the_one_between_is_that_of_all(self, make: Make, between: Gateway) -> None:
        channels = echoes(make(8))
        ping(*channels)
        os.kill(pid_of(between), signal.SIGKILL)
        for channel in channels:
            with pytest.raises(WorkerDied, match="between, which it goes via, has ended"):
                channel.receive(BOUND_S)

    def test_one_whose_channel_is_closed_from_there_ends(
        self, make: Make, between: Gateway
    ) -> None:
        gateway, other = make(2)
        ping(*echoes([gateway, other]))
        code = "channel.gateway._channelfactory.new({}).close()"
        between.remote_exec(code.format(gateway._io._data.id)).waitclose(BOUND_S)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        ping(*echoes([other]))

    def test_terminate_ends_in_time_though_some_are_stuck(self, nothing_is_left: None) -> None:
        group = Group(["popen//id=between"])
        gateways = list(group.makegateways(["popen//via=between"] * 12))
        for channel in [gateway.remote_exec(STUCK) for gateway in gateways[::3]]:
            channel.receive(BOUND_S)
        began = time.monotonic()
        group.terminate(1.0)
        assert time.monotonic() - began < 1.0 + BOUND_S / 2
        assert not any(gateway.hasreceiver() for gateway in gateways)

    def test_they_begin_again_after_the_last_one_has_ended(self) -> None:
        for _ in range(3):
            with Group(["popen//id=between"]) as group:
                ping(*echoes(list(group.makegateways(["popen//via=between"] * 2))))
                group.terminate(BOUND_S)

    def test_a_silent_worker_is_given_up(self, group: Group, between: Gateway) -> None:
        gateway = group.makegateway("popen//via=between//heartbeat=0.05//dead_after=1")
        (channel,) = echoes([gateway])
        ping(channel)
        pid = pid_of(gateway)
        stop(pid)
        try:
            with pytest.raises(WorkerDied, match="silent for 1 s"):
                channel.receive(BOUND_S)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def test_one_whose_bytes_nobody_has_taken_is_not_silent(self, between: Gateway) -> None:
        script = "read line; echo answer; read line"
        request = {"args": ["sh", "-c", script], "address": None, "stderr": False, "timeout": None}
        stream = ViaIO(between, request, ["sh"], None, between.execmodel)
        stream.is_shared = True
        assert not stream.on_silence("silent")
        stream.write(b"\n")
        wait_until(lambda: stream.on_silence("silent"))
        stream.is_shared = False
        stream.discard()

    def test_a_stream_that_is_discarded_is_closed_by_its_reader(self, make: Make) -> None:
        gateway, other = make(2)
        ping(*echoes([gateway, other]))
        gateway._io.discard()  # as when an interrupt comes while it is made
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        ping(*echoes([other]))

    def test_a_fork_leaves_them_to_its_parent(self) -> None:
        result = run_python(
            f"""
import os, sys, execnet
from execnet import _readers
_readers.OWN = 0
ECHO = {ECHO!r}

def make():
    group = execnet.Group(["popen//id=between"])
    gateways = group.makegateways(["popen//via=between"] * 2)
    return group, [gateway.remote_exec(ECHO) for gateway in gateways]

def ping(channels):
    for channel in channels:
        channel.send(1)
        assert channel.receive({BOUND_S}) == 1

_, channels = make()
ping(channels)
if not os.fork():
    assert not _readers._seats._readers
    try:
        channels[0].receive()
    except EOFError as exc:
        print("of which this one is a fork" in str(exc))
    group, mine = make()
    ping(mine)
    group.terminate(5)
    sys.stdout.flush()
    os._exit(0)
os.wait()
ping(channels)
print("well")
""",
            **FORKING,
        )
        assert (result.stdout.split(), result.stderr) == (["True", "well"], "")
