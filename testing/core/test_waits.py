"""Waits with a timeout end, whatever comes in between: signals, and others that are faster."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from interpreters import Interpreter
from tools import BOUND_S, MakeGateway, interpreters, run_python

from execnet import Group

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
