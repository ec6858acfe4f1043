"""Direct reads: a thread that waits for an item reads the stream itself, and nobody notices."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tools import BOUND_S, LonelyGateway, MakeGateway, Task, find_python, is_in, run_all, wait_until
from workers import ECHO

from execnet import Channel, Gateway, Group, RemoteError, WorkerDied
from execnet._features.calls import Calls
from execnet._features.direct import DirectReads
from execnet.gateway_base import (
    CAN_READ_DIRECTLY,
    ChannelFactory,
    LoadError,
    Message,
    _pack_int_frame,
    dumps_internal,
    get_execmodel,
)

LONG_S = 10
THREADS = get_execmodel("thread")
# The worker says how often it has read directly for each item that is None.
COUNTING_ECHO = """
for item in channel:
    direct = channel.gateway._channelfactory.direct
    channel.send(direct.uses if item is None else item)
"""

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="not with this Python"),
]


def direct_reads(gateway: Gateway) -> DirectReads:
    direct = gateway._channelfactory.direct
    assert direct is not None
    return direct


def ping_pong(channel: Channel, times: int) -> None:
    for number in range(times):
        channel.send(number)
        assert channel.receive(timeout=BOUND_S) == number


def until_direct(channel: Channel) -> None:
    """Send and receive until the calling thread reads the stream itself."""
    direct = direct_reads(channel.gateway)

    def reads_directly() -> bool:
        before = direct.uses
        ping_pong(channel, 10)
        return direct.uses > before + 5

    wait_until(reads_directly)


def until_worker_reads_directly(channel: Channel) -> None:
    """Do the same for the worker; the channel is one of ``COUNTING_ECHO``."""

    def reads_directly() -> bool:
        channel.send(None)
        before = channel.receive()
        ping_pong(channel, 100)
        channel.send(None)
        uses: int = channel.receive()
        return uses > before + 50

    wait_until(reads_directly)


def reading(gateway: Gateway, receive: Callable[[], Any]) -> Task:
    """Have a thread go on with ``receive``; return when it does so."""
    threads: list[threading.Thread] = []

    def run() -> Any:
        threads.append(threading.current_thread())
        return receive()

    task = Task(gateway.execmodel, run)
    wait_until(lambda: threads and is_in(threads[0], "receive"))
    return task


def read_without_end(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have direct reads go on until something comes, so that no pause of theirs helps others."""
    monkeypatch.setattr(direct_reads(gateway), "IDLE_S", LONG_S)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The two ends of a pipe: what is read, what is written."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.fixture
def direct(pipe: tuple[int, int]) -> DirectReads:
    """Direct reads of the pipe, whose offers end when they are told to."""
    direct = DirectReads(pipe[0], THREADS)
    direct.IDLE_S = LONG_S
    return direct


class TestWhoReads:
    def test_a_ping_pong_is_read_directly_at_both_ends(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(COUNTING_ECHO)
        until_direct(channel)
        until_worker_reads_directly(channel)

    def test_many_items_at_once_come_in_order(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("for number in range(20000): channel.send(number)")
        assert list(channel) == list(range(20000))

    def test_nobody_polls_when_nothing_comes(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        direct = direct_reads(gateway)
        wait_until(lambda: not direct.offered)
        with pytest.raises(channel.TimeoutError):
            channel.receive(timeout=0.05)
        uses = direct.uses
        with pytest.raises(channel.TimeoutError):
            channel.receive(timeout=0.3)
        assert direct.uses == uses

    @pytest.mark.parametrize("execmodel", ["gevent", "eventlet"])
    def test_with_greenlets_only_the_receiver_reads(self, execmodel: str) -> None:
        pytest.importorskip(execmodel)
        group = Group(execmodel=execmodel)
        gateway = group.makegateway()
        ping_pong(gateway.remote_exec(ECHO), 20)
        assert gateway._channelfactory.direct is None
        group.terminate(timeout=5)

    @pytest.mark.parametrize("version", ["2.7", "pypy3.9"])
    def test_a_worker_that_can_t_read_directly_answers_one_that_does(
        self, makegateway: MakeGateway, version: str
    ) -> None:
        gateway = makegateway(f"popen//python={find_python(version)}")
        channel = gateway.remote_exec(
            f"channel.send(channel.gateway._channelfactory.direct is None)\n{ECHO}"
        )
        assert channel.receive() is True
        until_direct(channel)
        channel.send(list(range(1000)))
        assert channel.receive() == list(range(1000))

    @pytest.mark.parametrize("spec", ["popen//execmodel=main_thread_only", "popen//nice=0"])
    def test_other_workers_do_as_well(self, makegateway: MakeGateway, spec: str) -> None:
        channel = makegateway(spec).remote_exec(COUNTING_ECHO)
        until_worker_reads_directly(channel)


class TestCallbacks:
    def test_they_run_in_the_receiver_thread_also_behind_direct_reads(
        self, gateway: Gateway
    ) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        idents: list[int] = []
        called = threading.Semaphore(0)
        other = gateway.remote_exec(ECHO)
        other.setcallback(lambda item: (idents.append(threading.get_ident()), called.release()))
        for _ in range(20):
            other.send(1)
            ping_pong(channel, 5)
        for _ in range(20):
            assert called.acquire(timeout=BOUND_S)
        assert set(idents) == {gateway._receiver_ident}

    def test_one_that_is_registered_while_another_thread_reads_ends_its_receive(
        self, gateway: Gateway
    ) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        task = reading(gateway, channel.receive)
        idents: list[int] = []
        called = threading.Event()
        channel.setcallback(lambda item: (idents.append(threading.get_ident()), called.set()))
        with pytest.raises(OSError, match="got a callback"):
            task.result()
        channel.send(1)
        assert called.wait(BOUND_S)
        assert idents == [gateway._receiver_ident]

    def test_no_item_is_lost_between_a_receive_and_a_callback(self, gateway: Gateway) -> None:
        for _ in range(30):
            channel = gateway.remote_exec("for n in range(200): channel.send(n)")
            received: list[int] = []
            task = Task(gateway.execmodel, received.extend, channel)
            called: list[int | None] = []
            channel.setcallback(called.append, endmarker=None)
            wait_until(lambda called=called: called and called[-1] is None)
            with contextlib.suppress(OSError):  # it was told of the callback
                task.result()
            assert received + called == [*range(200), None]


class TestOtherThreads:
    def test_closing_the_channel_ends_a_direct_read(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        task = reading(gateway, channel.receive)
        channel.close()
        with pytest.raises(EOFError):
            task.result()

    def test_an_item_for_another_channel_goes_to_who_waits_there(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = gateway.remote_exec(ECHO), gateway.remote_exec(ECHO)
        read_without_end(gateway, monkeypatch)
        until_direct(first)
        reader = reading(gateway, first.receive)
        waiter = reading(gateway, second.receive)
        second.send("second")
        assert waiter.result() == "second"
        first.send("first")
        assert reader.result() == "first"

    def test_who_waits_is_not_left_alone_with_an_offer_that_nobody_takes(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = gateway.remote_exec(ECHO), gateway.remote_exec(ECHO)
        read_without_end(gateway, monkeypatch)
        until_direct(first)
        second.send("second")
        assert second.receive(timeout=LONG_S - 1) == "second"
        assert gateway.remote_status().numexecuting == 2
        second.close()
        first.send(1)
        first.close()
        first.waitclose(timeout=LONG_S - 1)

    def test_an_offer_is_withdrawn_where_somebody_has_begun_to_wait(
        self, direct: DirectReads
    ) -> None:
        """He looked whether there was an offer just before it was made."""
        direct.waiting[object()] = THREADS.inbox()
        offering = Task(THREADS, direct.offer)
        offering.result()
        assert not direct.offered

    def test_an_offer_stays_for_a_thread_that_wakes_up_with_its_item(
        self, direct: DirectReads, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """From CPython 3.13 on, a queue is empty as soon as it has found who gets the item."""
        monkeypatch.setattr(direct, "IDLE_S", BOUND_S)
        items = direct.waiting[object()] = THREADS.inbox()
        direct.serve(items)
        offering = Task(THREADS, direct.offer)
        wait_until(lambda: direct.offered)
        direct.take_back()
        offering.result()

    def test_there_is_no_offer_to_a_thread_that_has_served_a_call_meanwhile(self) -> None:
        execmodel, answers = get_execmodel("thread"), []
        reader, writer = os.pipe()
        direct = DirectReads(reader, execmodel)
        pool = types.SimpleNamespace(
            execmodel=execmodel,
            spawn=lambda serve, id: serve(id),  # it is done before the receiver thread goes on
            release_primary=int,
        )
        factory = types.SimpleNamespace(
            direct=direct, send_item=lambda id, item: answers.append(item)
        )
        gateway = types.SimpleNamespace(
            _execpool=pool,
            _channelfactory=factory,
            process=types.SimpleNamespace(main_ident=0, is_interruptible=False),
            _strconfig=(True, False),
        )
        Calls(gateway).on_call(1, dumps_internal((1, "builtins:abs", (-7,))))
        assert (answers, direct.served) == ([(1, 7)], False)
        os.close(reader)
        os.close(writer)

    def test_an_offer_comes_too_late_for_a_thread_that_is_done(self, direct: DirectReads) -> None:
        direct.want()
        direct.decline()
        assert not direct.served  # so that there is no offer, unless one is being made:
        offering = Task(THREADS, direct.offer)
        offering.result()
        assert not direct.offered
        assert not direct.declined

    def test_an_offer_ends_when_the_thread_that_could_read_is_done(
        self, direct: DirectReads
    ) -> None:
        offering = Task(THREADS, direct.offer)
        wait_until(lambda: direct.offered)
        direct.decline()
        offering.result()

    def test_frames_are_read_after_one_that_means_nothing(
        self, direct: DirectReads, pipe: tuple[int, int]
    ) -> None:
        offering = Task(THREADS, direct.offer)
        wait_until(lambda: direct.offered)
        ignored, frame = _pack_int_frame(Message.INTERRUPT, 1, 6, 70, -1, 81), io.BytesIO()
        Message(Message.CALL, 1, b"request").to_io(frame)
        os.write(pipe[1], ignored)
        reading = Task(THREADS, direct.read_frames, Message.CALL, 1, int, list, ignored)
        wait_until(lambda: direct.uses == 2)
        os.write(pipe[1], frame.getvalue())
        assert reading.result() == [b"request"]
        assert direct.chunks == []
        direct.take_back()
        offering.result()

    def test_an_offer_that_ends_has_who_reads_give_up(self) -> None:
        execmodel = get_execmodel("thread")
        reader, writer = os.pipe()
        gateway = LonelyGateway()
        channel = ChannelFactory(gateway).new()
        direct = DirectReads(reader, execmodel)
        direct.IDLE_S = LONG_S
        offering = Task(execmodel, direct.offer)
        wait_until(lambda: direct.offered)
        reading = Task(execmodel, direct.read, channel, channel._items, None)
        wait_until(direct._turn.locked)
        direct.take_back()
        assert reading.result() is False
        offering.result()
        os.close(reader)
        os.close(writer)

    def test_without_a_descriptor_to_wake_it_up_a_read_ends_soon(
        self, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def eventfd(value: int) -> int:
            raise OSError(errno.EMFILE, "too many")

        monkeypatch.setattr(os, "eventfd", eventfd)
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        task = reading(gateway, channel.receive)
        channel.close()
        with pytest.raises(EOFError):
            task.result()

    @pytest.fixture
    def sockets(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            yield ours, theirs

    def test_a_socket_waits_for_ever_again_after_an_offer(
        self, monkeypatch: pytest.MonkeyPatch, sockets: tuple[socket.socket, socket.socket]
    ) -> None:
        execmodel, (ours, _) = get_execmodel("thread"), sockets
        channel = ChannelFactory(LonelyGateway()).new()
        direct = DirectReads(ours.fileno(), execmodel)
        set_up = direct._set_up

        def set_up_to_stay() -> None:
            set_up()
            direct.IDLE_S = LONG_S  # the offer alone: reads of the socket have their limit

        monkeypatch.setattr(direct, "_set_up", set_up_to_stay)
        offering = Task(execmodel, direct.offer)
        wait_until(lambda: direct.offered)
        assert direct.read(channel, channel._items, None) is False  # in a moment
        direct.take_back()
        offering.result()
        timeval = ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16)
        assert timeval == bytes(16)

    def test_a_socket_that_takes_no_time_limit_is_polled(
        self, monkeypatch: pytest.MonkeyPatch, sockets: tuple[socket.socket, socket.socket]
    ) -> None:
        execmodel, (ours, theirs) = get_execmodel("thread"), sockets
        channel = ChannelFactory(LonelyGateway()).new()
        direct = DirectReads(ours.fileno(), execmodel)
        monkeypatch.setattr("_socket.SO_RCVTIMEO", -1)
        direct.IDLE_S = LONG_S
        offering = Task(execmodel, direct.offer)
        wait_until(lambda: direct.offered)
        Message(Message.CHANNEL_DATA, channel.id, dumps_internal(7)).to_io(theirs.makefile("wb", 0))
        assert direct.read(channel, channel._items, None)
        assert channel._items.get() == 7
        direct.take_back()
        offering.result()

    def test_two_threads_on_one_channel_get_each_item_once(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("for n in range(3000): channel.send(n); channel.receive()")
        taken: list[int] = []

        def take() -> None:
            for number in channel:
                taken.append(number)
                with contextlib.suppress(OSError):  # behind the last one
                    channel.send(None)

        run_all([take, take])
        assert sorted(taken) == list(range(3000))

    def test_code_starts_also_while_the_workers_main_thread_could_read(
        self, gateway: Gateway
    ) -> None:
        channel = gateway.remote_exec(
            """
            import sys, threading
            sys.event = threading.Event()
            for item in channel:
                channel.send(item)
                if item == "wait":
                    channel.send(sys.event.wait(20))
            """
        )
        for _ in range(20):
            ping_pong(channel, 20)
            channel.send("wait")
            assert channel.receive() == "wait"
            gateway.remote_exec("import sys; sys.event.set()")
            assert channel.receive(timeout=BOUND_S) is True
            gateway.remote_exec("import sys; sys.event.clear()").waitclose(timeout=BOUND_S)


class TestItems:
    @pytest.mark.parametrize("size", [0, 10, 4087, 4096, 65530, 70000, (1 << 20) + 5000, 3 << 20])
    def test_any_size_comes_whole_among_small_ones(self, gateway: Gateway, size: int) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        for _ in range(3):
            channel.send(b"x" * size)
            channel.send(1)
            assert channel.receive(timeout=BOUND_S) == b"x" * size
            assert channel.receive(timeout=BOUND_S) == 1
            ping_pong(channel, 5)

    def test_channels_in_items_stay_open(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        mine = gateway.newchannel()
        for _ in range(50):
            channel.send([mine])
            assert channel.receive(timeout=BOUND_S) == [mine]
        assert not mine.isclosed()

    def test_a_broken_one_closes_the_channel_as_ever(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(
            f"""
            for item in channel:
                if item == "break":
                    channel.gateway._send({Message.CHANNEL_DATA}, channel.id, bytes([128]))
                else:
                    channel.send(item)
            """
        )
        until_direct(channel)
        channel.send("break")
        with pytest.raises(LoadError):
            channel.receive(timeout=BOUND_S)
        assert channel.isclosed()
        ping_pong(gateway.remote_exec(ECHO), 10)

    def test_an_error_of_the_far_code_is_behind_its_items(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec("for n in channel: channel.send(n); n < 99 or int('99?')")
        ping_pong(channel, 100)
        with pytest.raises(RemoteError, match="99"):
            channel.receive(timeout=BOUND_S)

    def test_a_file_over_a_channel_reads_its_lines(self, gateway: Gateway) -> None:
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        file = channel.makefile("r")
        for number in range(50):
            channel.send(f"line {number}\n")
            assert file.readline() == f"line {number}\n"

    @pytest.mark.parametrize("timeout", [0, 0.001, 0.006, 0.02, 0.1])
    def test_a_receive_ends_at_its_timeout(self, gateway: Gateway, timeout: float) -> None:
        channel = gateway.remote_exec(ECHO)
        for _ in range(5):
            until_direct(channel)
            with pytest.raises(channel.TimeoutError):
                channel.receive(timeout=timeout)
            ping_pong(channel, 5)


class TestEnds:
    def test_a_killed_worker_is_noticed_though_a_grandchild_holds_the_pipe(
        self, gateway: Gateway
    ) -> None:
        channel = gateway.remote_exec(
            f"""
            import os, time
            pid = os.fork()
            if not pid:
                time.sleep(60)
                os._exit(0)
            channel.send((os.getpid(), pid))
            {ECHO}
            """
        )
        worker, grandchild = channel.receive()
        until_direct(channel)
        task = reading(gateway, channel.receive)
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            task.result()
        os.kill(grandchild, signal.SIGKILL)

    def test_terminate_ends_a_direct_read(self, group: Group) -> None:
        gateway = group.makegateway()
        channel = gateway.remote_exec(ECHO)
        until_direct(channel)
        task = reading(gateway, channel.receive)
        group.terminate(timeout=5)
        with pytest.raises(EOFError):
            task.result()


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_with_channels_of_their_own_lose_double_and_mix_nothing(
    gateway: Gateway, fast_switches: None, threads: int
) -> None:
    gateway.remote_exec("import sys; sys.setswitchinterval(1e-6)").waitclose()

    def use(number: int) -> None:
        channel = gateway.remote_exec(ECHO)
        for item in range(4000 // threads):
            channel.send((number, item))
            assert channel.receive(timeout=BOUND_S) == (number, item)
            if item % 100 == number:
                pair = gateway.remote_exec("channel.send(channel.receive()); channel.receive()")
                pair.send(item)
                assert pair.receive(timeout=BOUND_S) == item

    run_all([lambda number=number: use(number) for number in range(threads)])
