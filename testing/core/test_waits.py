"""Waits with a timeout end, whatever comes in between: signals, and others that are faster."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from interpreters import Interpreter
from tools import BOUND_S, MakeGateway, interpreters, run_python, wait_until

from execnet import Gateway, Group, gateway_base
from execnet.gateway_base import _Flag, _Timed, get_execmodel, wake_timed

pytestmark = [
    pytest.mark.core,
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX signals"),
]

# A handler that does nothing but take longer than the rest of a wait, again and again.
SIGNALS = """
import signal, time
signal.signal(signal.SIGALRM, lambda signum, frame: time.sleep(0.0003))
"""
WAITS = """
def waits(wait, rounds=300):
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for number in range(rounds):
            wait(0.002 if number % 2 else 0.000001 * number)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
"""
RECEIVES = """
def receives(timeout):
    try:
        channel.receive(timeout)
    except channel.TimeoutError:
        return
    raise AssertionError("an item came")
"""


def test_a_receive_under_signals_ends_in_time() -> None:
    program = f"""{SIGNALS}{WAITS}{RECEIVES}
import execnet
channel = execnet.makegateway().remote_exec("channel.receive()")
channel.gateway._channelfactory.direct = None  # which would wait for the stream instead
waits(receives)
print("well")
"""
    assert run_python(program, timeout_s=BOUND_S).stdout == "well\n"


def test_a_flag_and_a_queue_of_ours_do_so_too() -> None:
    program = f"""{SIGNALS}{WAITS}
from execnet._features.queues import timed_inbox
from execnet.gateway_base import _Flag, get_execmodel
model = get_execmodel("thread")
flag, inbox = _Flag(model), timed_inbox(model)
waits(flag.wait)
def take(timeout):
    try:
        inbox.get(True, timeout)
    except model.Empty:
        pass
waits(take)
flag.set()
assert flag.wait(0.001) and flag.wait(0) and flag.wait()
print("well")
"""
    assert run_python(program, timeout_s=BOUND_S).stdout == "well\n"


@pytest.mark.parametrize("interpreter", interpreters(), ids=str)
def test_code_in_a_worker_may_have_signals_as_well(
    makegateway: MakeGateway, interpreter: Interpreter
) -> None:
    gateway = makegateway(f"popen//python={interpreter.path}")
    code = f"{SIGNALS}{WAITS}{RECEIVES}\nwaits(receives, 100)\nchannel.send(1)"
    assert gateway.remote_exec(code).receive(BOUND_S) == 1


def test_of_two_that_wait_each_gets_its_time_and_its_item() -> None:
    with Group(["popen"]) as group:
        channel = group[0].remote_exec("for item in channel: channel.send(item)")
        got: list[object] = []

        def take(timeout: float) -> None:
            try:
                got.append(channel.receive(timeout))
            except channel.TimeoutError:
                got.append(None)

        threads = [threading.Thread(target=take, args=(BOUND_S,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for number in range(4):
            channel.send(number)
        for thread in threads:
            thread.join(BOUND_S)
        assert sorted(map(str, got)) == ["0", "1", "2", "3"]
        begun = time.monotonic()
        take(0.05)
        assert got[-1] is None
        assert time.monotonic() - begun >= 0.05


@pytest.mark.skipif(gateway_base._TIMED_GET_ENDS, reason="there a queue does all this itself")
class TestWhereAWaitLooksNowAndThen:
    def test_it_looks_seldom(self) -> None:
        looks = []

        class Inbox(gateway_base._WakingInbox):  # type: ignore[misc]
            def empty(self) -> bool:
                looks.append(1)
                return True

        assert list(_Timed(Inbox(), 0.5)) == [False]
        assert len(looks) < 10

    def test_an_interrupted_wait_leaves_nothing(self) -> None:
        class Inbox(gateway_base._WakingInbox):  # type: ignore[misc]
            def empty(self) -> bool:
                raise KeyboardInterrupt

        inbox = Inbox()
        with pytest.raises(KeyboardInterrupt):
            list(_Timed(inbox, BOUND_S))
        assert not inbox.waits

    def test_wherever_it_is_interrupted_each_lock_is_free_or_still_to_be_released(self) -> None:
        for number in itertools.count():
            locks = [threading.Lock() for _ in range(3)]
            inbox = SimpleNamespace(waits={lock: lock for lock in locks if lock.acquire()})
            with interrupted_at(number, wake_timed) as come:
                wake_timed(inbox)
            assert [lock for lock in locks if lock.locked()] == list(inbox.waits)
            if not come:
                break
        assert number > 10
        assert not inbox.waits

    @pytest.fixture
    def as_if_never(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it look again only after a time that fails the test."""
        monkeypatch.setattr(gateway_base, "min", lambda *args: 3 * BOUND_S, raising=False)

    @pytest.fixture
    def in_three_threads(self, as_if_never: None) -> Callable[..., None]:
        """Call a function in three threads, and another one when all wait; they are to end."""

        def call(wait: Callable[[], object], end: Callable[[], object]) -> None:
            threads = [threading.Thread(target=wait, daemon=True) for _ in range(3)]
            for thread in threads:
                thread.start()
            wait_until(lambda: all(map(waits_with_a_timeout, threads)))
            end()
            for thread in threads:
                thread.join(BOUND_S)
                assert not thread.is_alive()

        return call

    def test_a_flag_wakes_all(self, in_three_threads: Callable[..., None]) -> None:
        flag = _Flag(get_execmodel("thread"))
        in_three_threads(lambda: flag.wait(9 * BOUND_S), flag.set)

    @pytest.fixture(params=["", "//window=1000"])
    def gateway(self, request: pytest.FixtureRequest, makegateway: MakeGateway) -> Gateway:
        """A gateway whose items all come through queues."""
        gateway = makegateway(f"popen{request.param}")
        gateway._channelfactory.direct = None
        return gateway

    def test_the_end_of_a_channel_wakes_all(
        self, gateway: Gateway, in_three_threads: Callable[..., None]
    ) -> None:
        channel = gateway.remote_exec("channel.receive()")

        def wait() -> None:
            with pytest.raises(EOFError):
                channel.receive(9 * BOUND_S)

        in_three_threads(wait, lambda: channel.send(1))

    def test_items_wake_all(self, gateway: Gateway, in_three_threads: Callable[..., None]) -> None:
        code = "channel.receive()\nfor number in range(3): channel.send(number)"
        channel, got = gateway.remote_exec(code), list[object]()
        in_three_threads(lambda: got.append(channel.receive(9 * BOUND_S)), lambda: channel.send(1))
        assert sorted(map(str, got)) == ["0", "1", "2"]

    def test_a_callback_that_comes_wakes_all(
        self, gateway: Gateway, in_three_threads: Callable[..., None]
    ) -> None:
        channel = gateway.remote_exec("channel.receive()")

        def wait() -> None:
            with pytest.raises(OSError, match="got a callback meanwhile"):
                channel.receive(9 * BOUND_S)

        in_three_threads(wait, lambda: channel.setcallback(id))


@contextmanager
def interrupted_at(number: int, function: Callable[..., object]) -> Iterator[list[None]]:
    """Have a bytecode of a function interrupted; yield what has something in it if one was."""
    come: list[None] = []
    numbers = itertools.count()

    def trace(frame: FrameType, event: str, arg: object) -> Callable[..., Any] | None:
        if frame.f_code is not function.__code__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(numbers) == number:
            come.append(None)
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # 3.12 wants to know of it beforehand
    sys.settrace(trace)
    try:
        yield come
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)


def waits_with_a_timeout(thread: threading.Thread) -> bool:
    """Whether a thread is in the wait of ``_Timed``."""
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code is _Timed.__next__.__code__
