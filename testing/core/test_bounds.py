"""What a worker that ignores windows can make its coordinator keep, and what that comes to."""

from __future__ import annotations

import itertools
import struct
import sys
from queue import SimpleQueue
from types import BuiltinFunctionType
from typing import Any

import pytest
from tools import BOUND_S, wait_until
from workers import ask

from execnet import Gateway, Group, ProtocolError, WorkerDied
from execnet._ends import admission
from execnet._ends.admission import BoundedSizes
from execnet._features.credit import Credit
from execnet._via.far_forwarder import WINDOW_BYTES
from execnet._via.stream import BoundedInbox
from execnet.gateway_base import Message, dumps_internal

FLOOD = """
import struct
data = channel.receive()
frame = struct.pack("!bii", 4, channel.id, len(data)) + data
for _ in range(channel.receive()):
    channel.gateway._io.write(frame)
channel.gateway.newchannel().receive()
"""


def flood(gateway: Gateway, item: bytes, count: int) -> None:
    channel = gateway.remote_exec(FLOOD)
    channel.send(dumps_internal(item))
    channel.send(count)
    with pytest.raises(ProtocolError, match="of a channel with window="):
        gateway.newchannel().receive(BOUND_S)


@pytest.mark.parametrize(("size", "count"), [(600, 3), (10, 500), (100_000, 3)])
def test_a_window_that_is_ignored_ends_the_gateway(group: Group, size: int, count: int) -> None:
    good = group.makegateway()
    flood(group.makegateway("popen//window=1000"), b"x" * size, count)
    assert ask(good, "channel.send(1)") == 1


def test_one_that_is_kept_is_none_of_that_business(group: Group) -> None:
    gateway = group.makegateway("popen//window=1000")
    channel = gateway.remote_exec("for n in range(3000): channel.send(b'x' * (n % 700))")
    assert [len(item) for item in channel] == [n % 700 for n in range(3000)]
    larger = gateway.remote_exec("channel.receive()\nfor _ in range(50): channel.send(b'x' * 900)")
    larger.set_window(100_000)
    larger.set_window(1000)  # the worker may have begun with the larger one
    larger.send(1)
    assert len(list(larger)) == 50


def test_what_comes_before_a_credit_is_noted_here_ends_nothing(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = group.makegateway("popen//window=1000")
    channel = gateway.remote_exec("for size in [700, 200] + [20] * 20: channel.send(b'x' * size)")
    post_frame, credits = gateway._writer.post_frame, itertools.count()

    def post_and_wait(frame: list[Any]) -> None:
        """The worker acts on a credit before the thread that tells it goes on."""
        post_frame(frame)
        if frame[0][0] == Message.CREDIT and next(credits) == 0:
            wait_until(lambda: channel._items.qsize() > 5 or not gateway.hasreceiver())

    monkeypatch.setattr(gateway._writer, "post_frame", post_and_wait)
    assert [len(item) for item in channel] == [700, 200] + [20] * 20


def test_what_was_announced_last_counts_once_nothing_is_unread() -> None:
    sizes = BoundedSizes(1000)
    sizes.announce(10)
    sizes.append(600)
    sizes.append(600)
    with pytest.raises(ProtocolError):
        sizes.append(1)
    del sizes[:]
    sizes.announce(5000)
    sizes.announce(100)
    for _ in range(8):
        sizes.append(600)
    sizes.append(600)
    with pytest.raises(ProtocolError):
        sizes.append(1)


def test_many_small_items_are_not_summed_up_each_time() -> None:
    sizes = BoundedSizes(1 << 20)
    summed = 0

    class Counted(int):
        def __add__(self, other: int) -> int:
            return int(self) + other

        def __radd__(self, other: int) -> int:
            nonlocal summed
            summed += 1
            return int(self) + other

    for _ in range(50_000):
        sizes.append(Counted(6))
    assert summed < 20 * 50_000


class TestPieces:
    def pieces(self, gateway: Gateway, frames: bytes, match: str) -> None:
        channel = gateway.remote_exec(
            "data = channel.receive(); channel.gateway._io.write(data)\nchannel.receive()"
        )
        channel.send(frames.replace(b"CHAN", struct.pack("!i", channel.id)))
        with pytest.raises(ProtocolError, match=match):
            gateway.newchannel().receive(BOUND_S)

    def piece(self, number: int, data: bytes) -> bytes:
        size = struct.pack("!i", 5 + len(data))
        return b"\x09CHAN" + size + struct.pack("!iB", number, 0) + data

    def test_they_are_bounded_all_together(self, group: Group) -> None:
        gateway = group.makegateway("popen//max_item=100000")
        frames = b"".join(self.piece(n % 3, b"x" * 9000) for n in range(12))
        self.pieces(gateway, frames, "take more than max_item=100000")
        assert ask(group.makegateway("popen//max_item=100000"), "channel.send('x' * 9000)")

    def test_they_are_bounded_without_a_word_for_others_interpreters(self, group: Group) -> None:
        gateway = group.makegateway(f"popen//python={sys.executable}")
        frames = b"".join(self.piece(n, b"x") for n in range(1002))
        self.pieces(gateway, frames, "pieces of items")
        assert group.makegateway("popen")._channelfactory.max_item is None


def test_a_worker_that_takes_no_credits_is_ended(
    group: Group, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "QUEUED_MAX", 100)
    gateway = group.makegateway("popen//window=100")
    monkeypatch.setattr(gateway._io, "can_write_now", lambda: False)
    with gateway._writer._lock:  # as if its pipe was full
        channel = gateway.newchannel()
        channel.setcallback(int)
        for _ in range(300):
            gateway._channelfactory._local_receive(channel.id, dumps_internal(1))
    gateway._writer._flush_queued()  # as whoever has held the lock does
    with pytest.raises(WorkerDied, match="it reads nothing"):
        gateway.newchannel().receive(BOUND_S)


class TestOutput:
    def test_a_garbled_line_drops_that_workers_output_only(self, group: Group) -> None:
        lines: list[tuple[str, str]] = []
        group.on_output(lambda gateway, name, line: lines.append((gateway.id, line)))
        bad, good = group.makegateways(["popen//output=forward"] * 2)
        source = next(
            callback._callback.__self__
            for callback in bad._channelfactory._callbacks.values()
            if hasattr(callback._callback, "__self__")
        )
        for item in ((9, b"x", 0), "text"):
            source.on_item(item)
        for gateway in bad, good:
            gateway.remote_exec("print('line', flush=True)").waitclose(BOUND_S)
        wait_until(lambda: (good.id, "line") in lines)
        assert (bad.id, "line") not in lines
        assert "garbled" in str(lines)

    def test_a_worker_that_does_not_wait_is_ended(self, group: Group) -> None:
        group.on_output(lambda gateway, name, line: stop.receive())
        gateway, other = group.makegateways(["popen//output=forward", "popen"])
        stop = other.newchannel()
        [source] = [
            callback._callback.__self__
            for callback in gateway._channelfactory._callbacks.values()
            if hasattr(callback._callback, "__self__")
        ]
        for _ in range(200):
            source.on_item((1, b"x" * 10_000 + b"\n", 0))
        with pytest.raises(WorkerDied, match="does not wait"):
            gateway.newchannel().receive(BOUND_S)
        other.exit()


def test_a_gateway_that_others_go_via_can_not_flood() -> None:
    credit = Credit(WINDOW_BYTES)
    inbox = BoundedInbox(SimpleQueue[bytes](), credit)
    for _ in range(14):
        inbox.put_nowait(b"x" * 100_000)
    with pytest.raises(ProtocolError, match="more was forwarded than was asked for"):
        inbox.put_nowait(b"x")
    credit.taken = 1_000_000
    inbox.put_nowait(b"x")


def test_what_a_thread_reads_itself_is_put_in_one_step() -> None:
    """As no interrupt may come between the bytes' leaving one place and their arrival there."""
    inbox = BoundedInbox(SimpleQueue[bytes](), Credit(WINDOW_BYTES))
    assert type(inbox.put) is BuiltinFunctionType


def test_what_a_thread_read_itself_does_not_widen_the_bound() -> None:
    credit = Credit(WINDOW_BYTES)
    inbox = BoundedInbox(SimpleQueue[bytes](), credit)
    for _ in range(100):
        inbox.put(b"x" * 100_000)  # as direct reads do: each is taken and counted before the next
        credit.taken += len(inbox.get())
    for _ in range(14):
        inbox.put_nowait(b"x" * 100_000)
    with pytest.raises(ProtocolError, match="more was forwarded than was asked for"):
        inbox.put_nowait(b"x")


def test_what_is_told_as_read_just_now_does_not_count() -> None:
    sizes = BoundedSizes(1000)
    for size in 500, 500:
        sizes.append(size)
    sizes.credited = 2  # the worker acts on it before they are taken off
    for size in 500, 500, 500:
        sizes.append(size)
    with pytest.raises(ProtocolError, match="1500 bytes of a channel"):
        sizes.append(1)
