"""Two gateways against each other in one thread: the core never waits, and starts no thread.

What one has written is given to the other, in pieces of any size, as a driver does that is neither
a thread nor a loop. Between any two pieces both may be asked for what has arrived.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from execnet.gateway_base import (
    PART_BYTES,
    BaseGateway,
    Channel,
    ExecModel,
    FrameDecoder,
    GatewayReceivedTerminate,
    Message,
    RemoteError,
    TimeoutError,
    dumps_internal,
)


class NoThreads(ExecModel):
    """An execution model that has none: whatever asks for one fails."""

    backend = "thread"

    def start(self, func: Callable[..., object], args: Sequence[Any] = (), name: str = "") -> None:
        raise AssertionError(f"the core starts a thread: {name}")

    def sleep(self, delay: float) -> None:
        raise AssertionError("the core sleeps")


class Memory:
    """A stream that takes all that is written, and keeps it for ``Core.take``."""

    small_bytes = 4096

    def __init__(self) -> None:
        self.execmodel = NoThreads()
        self.written = bytearray()
        self.is_open = True

    def write_some(self, data: bytes) -> int:
        self.written += data
        return len(data)

    def write_pieces(self, pieces: Sequence[bytes]) -> int:
        return sum(self.write_some(piece) for piece in pieces)

    def can_write_now(self) -> bool:
        return True

    def close_read(self) -> None:
        pass

    def close_write(self) -> None:
        self.is_open = False


class Core:
    """One end: ``feed`` it bytes, ``take`` what it wants to have written, ``end`` it."""

    def __init__(self, name: str, start: int) -> None:
        self.io = Memory()
        self.gateway = BaseGateway(self.io, name, start)
        self.gateway._decoder = FrameDecoder(True)
        self.is_over = False

    def feed(self, data: bytes) -> None:
        try:
            self.gateway._act_on(data)
        except GatewayReceivedTerminate:
            self.gateway._go("exit")
            self.end()

    def take(self, limit: int) -> bytes:
        taken = bytes(self.io.written[:limit])
        del self.io.written[:limit]
        return taken

    def end(self) -> None:
        self.is_over = True
        self.gateway._on_stream_end()


class Pair:
    """Both ends. ``pass_on`` gives each what the other has written, until neither has anything."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.near, self.far = Core("near", 1), Core("far", 2)
        for core in self.near, self.far:
            core.gateway._on_hello({"codecs": ["classic", "fast"]})

    def pass_on(self, between: Callable[[], object] = int) -> None:
        ends = [(self.near, self.far), (self.far, self.near)]
        moved = True
        while moved:
            moved = False
            for source, target in ends:
                data = source.take(self.step)
                if data and not target.is_over:
                    target.feed(data)
                    moved = True
                    between()

    def both(self) -> tuple[Channel, Channel]:
        """A channel, as each end has it."""
        channel = self.near.gateway.newchannel()
        return channel, self.far.gateway._channelfactory.new(channel.id)


@pytest.fixture(params=[1, 7, 4096, 1 << 24])
def pair(request: pytest.FixtureRequest) -> Pair:
    return Pair(request.param)


def received(channel: Channel) -> list[object]:
    """All that has arrived; nothing is waited for."""
    items: list[object] = []
    while True:
        try:
            items.append(channel.receive(0))
        except TimeoutError:
            return items


def test_items_go_both_ways_at_once_and_keep_their_order(pair: Pair) -> None:
    here, there = pair.both()
    sent = [None, 1, "two", b"3" * 5000, [4.0, {"five": (6, {7})}]]
    for item in sent:
        here.send(item)
        there.send([item])
    pair.pass_on()
    assert received(there) == sent
    assert received(here) == [[item] for item in sent]


def test_an_item_is_there_with_its_last_byte_and_not_before() -> None:
    pair = Pair(1)
    here, there = pair.both()
    here.send("x" * 20)
    seen: list[tuple[int, list[object]]] = []
    pair.pass_on(lambda: seen.append((len(pair.near.io.written), received(there))))
    assert [left for left, items in seen if items] == [0]
    assert seen[-1] == (0, ["x" * 20])


def test_a_large_item_goes_in_parts() -> None:
    pair = Pair(4096)
    here, there = pair.both()
    other, other_there = pair.both()
    large = os.urandom(3 * PART_BYTES + 1)
    order: list[str] = []
    there.setcallback(lambda item: order.append("large" if item == large else "damaged"))
    other_there.setcallback(lambda item: order.append(item))
    here.send(large)
    other.send("small")
    pair.pass_on()
    assert order == ["large", "small"]


def test_a_callback_that_sends_is_answered_in_the_same_thread(pair: Pair) -> None:
    here, there = pair.both()
    there.setcallback(lambda number: there.send(number + 1))
    counted: list[int] = []

    def count(number: int) -> None:
        counted.append(number)
        if number < 5:
            here.send(number)

    here.setcallback(count)
    here.send(0)
    pair.pass_on()
    assert counted == [1, 2, 3, 4, 5]


def test_a_channel_that_is_closed_ends_there_after_its_items(pair: Pair) -> None:
    here, there = pair.both()
    here.send("last")
    here.close("no more of it")
    assert not there.isclosed()
    pair.pass_on()
    assert there.isclosed()
    assert there.receive(0) == "last"
    with pytest.raises(RemoteError, match="no more of it"):
        there.receive(0)


def test_an_error_of_a_callback_comes_back(pair: Pair) -> None:
    here, there = pair.both()
    there.setcallback(lambda item: 1 // item)
    here.send(0)
    pair.pass_on()
    with pytest.raises(RemoteError, match="ZeroDivisionError"):
        here.waitclose(0)


def test_a_question_is_answered_though_nobody_executes_code(pair: Pair) -> None:
    channel = pair.near.gateway.newchannel()
    pair.near.gateway._send(Message.STATUS, channel.id)
    pair.pass_on()
    status = channel.receive(0)
    assert (status["numexecuting"], status["execmodel"]) == (0, "thread")


def test_code_is_refused_where_there_is_nothing_to_run_it(pair: Pair) -> None:
    here, _ = pair.both()
    task = ("channel.send(1)", None, None, {})
    pair.near.gateway._send(Message.CHANNEL_EXEC, here.id, dumps_internal(task))
    pair.pass_on()
    with pytest.raises(RemoteError, match="not allowed"):
        here.receive(0)


def test_a_window_is_kept_and_its_credit_comes_back(pair: Pair) -> None:
    here, there = pair.both()
    there.set_window(3000)
    pair.pass_on()
    for _ in range(20):
        here.send("x" * 1000)
        here.send("x" * 1000)
        pair.pass_on()
        assert received(there) == ["x" * 1000] * 2
        pair.pass_on()


def test_the_end_reaches_all_channels_after_what_was_written(pair: Pair) -> None:
    here, there = pair.both()
    here.send("before")
    pair.near.gateway._send(Message.GATEWAY_TERMINATE)
    pair.pass_on()
    assert pair.far.is_over
    assert not pair.far.gateway.hasreceiver()
    assert there.receive(0) == "before"
    with pytest.raises(EOFError):
        there.receive(0)
    assert not pair.far.io.is_open
    with pytest.raises(OSError, match="cannot send"):
        there.send("after")
