"""Callbacks on both ends of channels to workers on every Python."""

from __future__ import annotations

import gc
from queue import SimpleQueue
from typing import Any

import pytest
from tools import BOUND_S
from workers import ask

from execnet import Gateway, RemoteError

pytest_plugins = ["worker_fixtures"]

# In the worker: gathers what a callback gets, and sends it when the endmarker has come.
GATHER = """
import threading
log = channel.receive()
items, ended = [], threading.Event()
def callback(item):
    items.append(item)
    if item == "end":
        ended.set()
"""


def gather(gateway: Gateway, code: str) -> tuple[Any, Any]:
    """Execute GATHER and ``code``; return the channel, and the one for what it says."""
    channel, log = gateway.remote_exec(GATHER + code), gateway.newchannel()
    channel.send(log)
    return channel, log


class TestHere:
    def test_items_come_in_order_and_the_endmarker_behind_them(self, shared: Gateway) -> None:
        calls: SimpleQueue[Any] = SimpleQueue()
        channel = shared.remote_exec("for n in range(50): channel.send(n)")
        channel.setcallback(calls.put, endmarker="end")
        assert [calls.get(timeout=BOUND_S) for _ in range(51)] == [*range(50), "end"]
        channel.waitclose(BOUND_S)
        assert calls.empty()

    def test_items_that_were_queued_go_to_it_at_once(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(1); channel.send(2)")
        channel.waitclose(BOUND_S)
        calls: list[Any] = []
        channel.setcallback(calls.append, endmarker=None)
        assert calls == [1, 2, None]
        with pytest.raises(OSError, match="callback"):
            channel.receive()
        with pytest.raises(OSError, match="callback"):
            channel.setcallback(print)

    def test_one_that_raises_ends_the_code_of_the_worker(self, shared: Gateway) -> None:
        log = shared.newchannel()
        code = """
log = channel.receive()
channel.send(1)
try:
    channel.receive()
except channel.RemoteError as error:
    log.send(str(error))
"""
        channel = shared.remote_exec(code)
        channel.send(log)
        channel.setcallback(lambda item: item / 0)
        assert "ZeroDivisionError" in log.receive(BOUND_S)
        with pytest.raises(RemoteError, match="ZeroDivisionError"):
            channel.waitclose(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1

    def test_it_goes_on_after_its_channel_was_dropped_here(self, shared: Gateway) -> None:
        calls: SimpleQueue[Any] = SimpleQueue()
        code = "inner = channel.receive(); channel.receive(); inner.send(1); inner.close()"
        channel, inner = shared.remote_exec(code), shared.newchannel()
        inner.setcallback(calls.put, endmarker="end")
        channel.send(inner)
        del inner
        gc.collect()
        channel.send("go on")
        assert [calls.get(timeout=BOUND_S) for _ in range(2)] == [1, "end"]
        channel.waitclose(BOUND_S)


class TestInTheWorker:
    def test_items_come_in_order_and_the_endmarker_behind_them(self, shared: Gateway) -> None:
        channel, log = gather(
            shared,
            "channel.setcallback(callback, endmarker='end'); ended.wait(10); log.send(items)",
        )
        for number in range(50):
            channel.send(number)
        channel.close()
        assert log.receive(BOUND_S) == [*range(50), "end"]

    def test_items_that_were_queued_go_to_it_at_once(self, shared: Gateway) -> None:
        channel, log = gather(
            shared,
            "log.receive(10); channel.setcallback(callback)\nlog.send(items)\n"
            "try: channel.receive()\nexcept (IOError, OSError) as error: log.send(str(error))",
        )
        channel.send(1)
        channel.send(2)
        log.send("they are there")
        assert log.receive(BOUND_S) == [1, 2]
        assert "callback" in log.receive(BOUND_S)
        channel.waitclose(BOUND_S)

    def test_the_endmarker_comes_when_the_code_of_its_channel_ends(self, shared: Gateway) -> None:
        log = shared.newchannel()
        code = "log = channel.receive(); channel.setcallback(log.send, endmarker='end')"
        channel = shared.remote_exec(code)
        channel.send(log)
        assert log.receive(BOUND_S) == "end"
        channel.waitclose(BOUND_S)

    def test_one_that_raises_closes_the_channel_with_its_text(self, shared: Gateway) -> None:
        channel, _ = gather(
            shared,
            "def fail(item): raise KeyError(u'of the callback')\n"
            "other = channel.gateway.newchannel()\n"
            "other.setcallback(fail)\n"
            "channel.send(other)\n"
            "try: other.waitclose(10)\nexcept channel.RemoteError: channel.send('raised there')",
        )
        other = channel.receive(BOUND_S)
        other.send(1)
        with pytest.raises(RemoteError, match=r"(?s)Traceback.*KeyError: .*of the callback"):
            other.receive(BOUND_S)
        assert channel.receive(BOUND_S) == "raised there"
        channel.waitclose(BOUND_S)
        assert ask(shared, "channel.send(1)") == 1

    def test_it_may_send_and_answer(self, shared: Gateway) -> None:
        code = """
inner = channel.gateway.newchannel()
inner.setcallback(lambda item: inner.send(item * 2))
channel.send(inner)
channel.receive()
"""
        channel = shared.remote_exec(code)
        inner = channel.receive(BOUND_S)
        for number in range(30):
            inner.send(number)
        assert [inner.receive(BOUND_S) for _ in range(30)] == list(range(0, 60, 2))
        channel.send(None)
        channel.waitclose(BOUND_S)

    def test_it_goes_on_after_its_channel_was_dropped_there(self, shared: Gateway) -> None:
        code = """
import gc
inner = channel.gateway.newchannel()
inner.setcallback(callback, endmarker="end")
channel.send(inner)
del inner
gc.collect()
ended.wait(10)
log.send(items)
"""
        channel, log = gather(shared, code)
        inner = channel.receive(BOUND_S)
        inner.send(1)
        inner.close()
        assert log.receive(BOUND_S) == [1, "end"]
        channel.waitclose(BOUND_S)
