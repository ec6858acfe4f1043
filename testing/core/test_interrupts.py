"""KeyboardInterrupt at any moment: no item is lost, doubled or mixed, and the gateway goes on.

What is interrupted runs in a process of its own, ``interrupted_program``.
"""

from __future__ import annotations

import _imp
import contextlib
import importlib
import os
import platform
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from pipes import Pipe
from types import SimpleNamespace
from typing import Any

import pytest
from processes import is_asleep, stop
from tools import BOUND_S, KIT, MakeGateway, Task, is_in, run, some_of, wait_until

from execnet import Group
from execnet._conditions import Condition
from execnet._ends.terminate import Turn
from execnet._features.greenlets import PolledLock
from execnet._features.running import let_import
from execnet._transports.tls import Tls
from execnet.gateway_base import (
    FrameDecoder,
    FrameWriter,
    Message,
    _Flag,
    _left,
    dumps_internal,
    get_execmodel,
    new_lock,
    new_rlock,
)
from execnet.gateway_socket import SocketIO

PROGRAM = KIT / "interrupted_program.py"
THREAD = get_execmodel("thread")

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(
        not hasattr(signal, "setitimer") or platform.python_implementation() != "CPython",
        reason="POSIX, and where CPython looks for interrupts",
    ),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("what", "interrupts"),
    [
        ("size=0", 3000),
        ("size=3000", 1000),
        ("size=300000", 500),
        ("size=3000000", 100),
        ("stream", 3000),
        ("timeout", 1500),
        ("others", 1000),
        ("ints", 3000),
        ("ints@socket", 2000),
        ("size=300000@socket", 300),
        ("ints@via", 1000),
        ("size=300000@via", 200),
        ("window", 1500),
        ("window=40", 1500),
        ("window=200000", 200),
        ("window=40@socket", 1000),
        ("window=40@via", 500),
        ("window@via", 500),
        ("buffer=10", 1500),
        ("buffer=300000", 100),
    ],
)
def test_interrupts_at_random_lose_double_and_mix_nothing(what: str, interrupts: int) -> None:
    interrupts = some_of(interrupts)
    done = run([sys.executable, str(PROGRAM), what, str(interrupts), "1"], timeout_s=280)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith(f"{what.partition('@')[0]}: {interrupts} interrupts")


@pytest.fixture
def interrupt() -> Iterator[None]:
    """SIGALRM raises KeyboardInterrupt, as SIGINT does; tests send it to the main thread."""
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGALRM, before)


def interrupt_when(condition: Callable[[], bool]) -> threading.Thread:
    """Interrupt the calling thread as soon as something is so."""
    ident = threading.get_ident()

    def wait_and_interrupt() -> None:
        wait_until(condition)
        signal.pthread_kill(ident, signal.SIGALRM)

    helper = threading.Thread(target=wait_and_interrupt)
    helper.start()
    return helper


def main_is_in(function: str) -> Callable[[], bool]:
    """Return what tells whether the main thread waits in a function."""
    asleep = is_asleep(os.getpid())
    return lambda: asleep() and is_in(threading.main_thread(), function)


class TestASendThatIsInterrupted:
    def test_in_the_middle_of_a_frame_ends_at_once_and_the_frame_is_finished(
        self, interrupt: None
    ) -> None:
        pipe = Pipe(THREAD)
        writer = FrameWriter(pipe.out, "gw")
        payload = bytes(range(256)) * 4000
        helper = interrupt_when(lambda: not pipe.out.can_write_now())
        with pytest.raises(KeyboardInterrupt):  # the pipe takes 64 KiB
            writer.send(b"header", payload)
        helper.join(BOUND_S)
        assert 0 < _left(writer._frames[0]) < len(payload)
        received = b""
        while len(received) < 6 + len(payload):
            received += pipe.into.read_some(1 << 20)
        assert received == b"header" + payload
        writer.send(b"next", b"")
        assert pipe.into.read_some(100) == b"next"
        pipe.close()

    def test_before_the_first_byte_of_a_small_frame_sends_nothing_of_it(
        self, interrupt: None
    ) -> None:
        pipe = Pipe(THREAD)
        writer = FrameWriter(pipe.out, "gw")
        pipe.fill()
        helper = interrupt_when(main_is_in("send"))
        with pytest.raises(KeyboardInterrupt):
            writer.send(b"header", b"payload")
        helper.join(BOUND_S)
        assert not writer._frames
        pipe.close()

    @pytest.mark.parametrize("taken", [1, 5, 12])
    @pytest.mark.parametrize("interrupted", [False, True])
    def test_a_small_frame_that_a_socket_took_in_part_is_finished(
        self, taken: int, interrupted: bool
    ) -> None:
        ours, theirs = socket.socketpair()
        io = SocketIO(ours, THREAD, "far")

        def write_some(data: bytes) -> int:
            writer._write_some = ours.send
            return ours.send(data[:taken])

        def flush() -> bool:
            del writer._flush
            raise KeyboardInterrupt

        writer = FrameWriter(io, "gw")
        writer._write_some = write_some
        if interrupted:  # before the rest is written
            writer._flush = flush  # type: ignore[method-assign,assignment]
        with pytest.raises(KeyboardInterrupt) if interrupted else contextlib.nullcontext():
            writer.send(b"header", b"payload")
        writer.send(b"header", b"p" * 5000)
        ours.close()
        with theirs.makefile("rb") as file:
            assert file.read() == b"headerpayloadheader" + b"p" * 5000
        theirs.close()

    def test_leaves_no_posted_frame_behind(self, interrupt: None) -> None:
        """Who finds the lock taken counts on the one who has it."""
        pipe = Pipe(THREAD)

        def write(data: bytes) -> int:
            writer._write_some = pipe.out.write_some
            writer.post(b"posted", b"")
            raise KeyboardInterrupt

        writer = FrameWriter(pipe.out, "gw")
        writer._write_some = write
        with pytest.raises(KeyboardInterrupt):
            writer.send(b"header", b"")
        assert pipe.into.read_some(100) == b"posted"
        pipe.close()

    def test_ctrl_c_gets_a_program_out_of_a_send_to_a_stopped_worker(
        self, makegateway: MakeGateway, interrupt: None
    ) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec("for item in channel: channel.send(len(item))")
        pid = gateway._rinfo().pid
        stop(pid)
        helper = interrupt_when(main_is_in("_advance"))
        with pytest.raises(KeyboardInterrupt):
            channel.send(b"x" * 3_000_000)
        helper.join(BOUND_S)
        os.kill(pid, signal.SIGCONT)
        channel.send(b"after")
        assert channel.receive(timeout=BOUND_S) == 5  # of the first one not all pieces were sent

    def test_the_rest_of_a_frame_comes_before_what_was_posted_meanwhile(self) -> None:
        ours, theirs = socket.socketpair()
        writer = FrameWriter(SocketIO(ours, THREAD, "far"), "gw")

        def write_some(data: bytes) -> int:
            writer._write_some = ours.send
            writer.post(b"posted", b"")  # as a finalizer or the receiver thread may
            return ours.send(data[:3])

        writer._write_some = write_some
        writer.send(b"header", b"payload")
        ours.close()
        with theirs.makefile("rb") as file:
            assert file.read() == b"headerpayloadposted"
        theirs.close()

    def test_is_sent_once_when_it_is_delivered_again(self) -> None:
        pipe = Pipe(THREAD)
        writer = FrameWriter(pipe.out, "gw")
        frame = writer.frame(b"header", b"payload")
        assert not writer.has(frame)
        for _ in range(3):
            writer.deliver(frame)
            writer.post_frame(frame)
            assert writer.has(frame)
        writer.send(b"next", b"")
        assert pipe.into.read_some(100) == b"headerpayloadnext"
        pipe.close()


class TestALock:
    KINDS: Mapping[str, Callable[[], Any]] = {
        "lock": new_lock,
        "reentrant": new_rlock,
        "eventlet": lambda: PolledLock(id),
        "condition": Condition,
        "TLS": lambda: Tls()._lock,
    }

    @pytest.fixture(autouse=True)
    def rival(self) -> Iterator[None]:
        """A thread that wants the interpreter now and then.

        CPython 3.10 and 3.11 may keep a signal waiting until one does: its handler has run, but
        ``eval_breaker`` is 0.  A loop of nothing but Python code would go on for ever.
        """
        over = threading.Event()

        def want_it() -> None:
            while not over.wait(0.01):
                pass

        thread = threading.Thread(target=want_it)
        thread.start()
        yield
        over.set()
        thread.join()

    @pytest.mark.parametrize("kind", KINDS)
    def test_no_interrupt_leaves_it_taken(self, interrupt: None, kind: str) -> None:
        """With a plain one, every second interrupt does on Python 3.14."""
        make = self.KINDS[kind]
        lock, left = make(), 400
        rng = random.Random(1)
        while left:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
                while True:
                    with lock:
                        pass
            except KeyboardInterrupt:
                left -= 1
            taken = Task(THREAD, lock.acquire, False).result()  # by another thread
            assert taken, left
            lock = make()

    @pytest.mark.parametrize("has_threads", [True, False])
    def test_nor_the_turn_to_end_a_group(self, interrupt: None, has_threads: bool) -> None:
        who = [1]
        model: Any = SimpleNamespace(
            has_main_thread=has_threads, get_ident=lambda: who[0], sleep=time.sleep
        )
        rng, left = random.Random(1), 200
        while left:
            turn = Turn(model)
            turn._lock = new_lock()  # of a reentrant one this thread would be the owner
            who[0] = 1
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 3e-4))
                while True:
                    (leave,) = map(turn.take, (None,))
                    try:
                        pass
                    finally:
                        leave()
            except KeyboardInterrupt:
                left -= 1
            who[0] = 2
            assert turn.take(0.0) is not None, left


class TestADirectRead:
    def test_leaves_an_item_with_channels_to_the_receiver_thread(
        self, makegateway: MakeGateway
    ) -> None:
        """An interrupt would drop what was loaded, and a dropped channel closes."""
        gateway = makegateway()
        channel, direct = gateway.newchannel(), gateway._channelfactory.direct
        assert direct is not None
        for item, loaded in [(channel, False), ([channel], False), ([1], True)]:
            data = dumps_internal(item)
            frame = BytesIO()
            Message(Message.CHANNEL_DATA, channel.id, data).to_io(frame)
            direct.chunks[:] = [frame.getvalue()]
            assert direct._load(channel, channel._items, frame.getvalue()) is loaded
            assert direct.chunks == ([] if loaded else [frame.getvalue()])
            direct.chunks.clear()

    def test_of_another_thread_does_not_make_a_timeout_longer(
        self, makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gateway = makegateway()
        channel, direct = gateway.newchannel(), gateway._channelfactory.direct
        assert direct is not None
        monkeypatch.setattr(direct, "offered", True)
        with direct._turn, pytest.raises(channel.TimeoutError):
            Task(gateway.execmodel, channel.receive, 0.02).result()


class TestAFlag:
    def test_it_wakes_all_who_wait(self) -> None:
        flag = _Flag(THREAD)
        results: list[bool] = []
        threads = [threading.Thread(target=lambda: results.append(flag.wait())) for _ in range(5)]
        for thread in threads:
            thread.start()
        flag.set()
        for thread in threads:
            thread.join(BOUND_S)
        assert results == [True] * 5
        assert flag.is_set()

    def test_a_wait_that_times_out_says_so(self) -> None:
        assert _Flag(THREAD).wait(0.001) is False


def test_an_interrupt_while_a_channel_is_closed_leaves_no_lock_taken(
    makegateway: MakeGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where it comes behind the end marker: others still learn of the end."""
    channel = makegateway().newchannel()

    class Inbox:
        def put(self, item: object) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(channel, "_items", Inbox())
    with pytest.raises(KeyboardInterrupt):
        channel.close()
    channel.waitclose(timeout=BOUND_S)


def test_an_interrupted_frame_and_what_follows_are_whole_messages(interrupt: None) -> None:
    pipe = Pipe(THREAD)
    writer = FrameWriter(pipe.out, "gw")
    header = b"\x04" + (1).to_bytes(4, "big") + (200_000).to_bytes(4, "big")
    helper = interrupt_when(lambda: not pipe.out.can_write_now())
    with pytest.raises(KeyboardInterrupt):
        writer.send(header, b"a" * 200_000)
    helper.join(BOUND_S)
    writer.post(header, b"b" * 200_000)
    decoder, messages = FrameDecoder(), list[Message]()
    while len(messages) < 2:
        messages += decoder.feed(pipe.into.read_some(1 << 20))
    assert [message.data[:1] for message in messages] == [b"a", b"b"]
    pipe.close()


class TestTheEndOfAWorker:
    def test_lets_a_thread_leave_the_import_system_first(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "something.py").touch()
        monkeypatch.syspath_prepend(tmp_path)
        thread = threading.Thread(target=importlib.import_module, args=("something",))
        waited = []

        def leave(delay: float) -> None:
            waited.append(is_in(thread, "_get_module_lock"))
            _imp.release_lock()
            thread.join()

        _imp.acquire_lock()
        thread.start()
        wait_until(lambda: is_in(thread, "_get_module_lock"), sleep=lambda delay: None)
        monkeypatch.setattr(time, "sleep", leave)
        assert thread.ident is not None
        let_import({thread.ident})
        assert waited == [True]


def test_a_lock_of_popen_that_an_interrupt_left_taken_holds_up_no_end(group: Group) -> None:
    io = group.makegateway("popen")._io
    lock = getattr(io.popen, "_waitpid_lock", None)
    if lock is None:
        pytest.skip("this Popen has no lock")
    lock.acquire()
    group.terminate(BOUND_S)
    assert io.popen.returncode == io.wait() == 0
    with pytest.raises(ChildProcessError):  # no zombie is left
        os.waitpid(io.popen.pid, os.WNOHANG)
