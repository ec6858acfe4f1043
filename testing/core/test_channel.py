"""Channels between two processes, in every execution model on both sides.

What each state allows is in ``test_channel_states``, what many threads do in ``test_threads``.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import struct
import threading
import weakref
from collections.abc import Iterator
from queue import Empty, SimpleQueue
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import EXECMODELS, GREENLET_MODELS, importable
from tools import BOUND_S, FAILED, LonelyGateway, MakeGateway, collect, missing, wait_until
from workers import ECHO

import execnet
from execnet import Channel, DumpError, Gateway, Group, RemoteError
from execnet.gateway_base import (
    ChannelFactory,
    ExecModel,
    FrameDecoder,
    LoadError,
    Message,
    dumps_internal,
    opcode,
)

pytestmark = pytest.mark.core


@pytest.fixture(scope="module", params=EXECMODELS)
def shared_group(request: pytest.FixtureRequest) -> Iterator[Group]:
    """A group with one gateway, both ends in one of the four execution models."""
    model: str = request.param
    if model in GREENLET_MODELS and not importable(model):
        missing(f"{model} can't be imported")
    group = Group(execmodel=model)
    group.makegateway()
    yield group
    group.terminate(timeout=5)


@pytest.fixture
def shared(shared_group: Group, request: pytest.FixtureRequest) -> Iterator[Gateway]:
    """The gateway that the tests of a model share; each leaves no channel on either side."""
    gateway = shared_group[0]
    yield gateway
    gc.collect()
    if request.node.stash.get(FAILED, False):  # the next test gets a new one
        shared_group.terminate(timeout=1)
        shared_group.makegateway()
        return

    factory = gateway._channelfactory

    def nothing_is_left() -> bool:
        status = gateway.remote_status()
        far = status.numchannels + status.numexecuting
        return not far and not factory.channels() and not factory._callbacks

    wait_until(nothing_is_left, sleep=gateway.execmodel.sleep)


@pytest.fixture
def fresh(execmodel: ExecModel) -> Iterator[Gateway]:
    """A gateway of its own, for tests that change or end it."""
    group = Group(execmodel=execmodel)
    yield group.makegateway()
    group.terminate(timeout=5)


class Calls:
    """Remembers the items that a callback was called with; waits as the execution model does."""

    def __init__(self, gateway: Any) -> None:
        self.items: list[Any] = []
        self._queue = gateway.execmodel.queue.Queue()

    def __call__(self, item: Any) -> None:
        self.items.append(item)
        self._queue.put(item)

    def wait_for(self, number: int) -> list[Any]:
        """Return the first ``number`` items once they have come."""
        while len(self.items) < number or not self._queue.empty():
            self._queue.get(timeout=BOUND_S)
        return self.items


class TestItems:
    @pytest.mark.parametrize("codec", ["classic", "fast"])
    def test_all_builtin_types_arrive_as_they_were_sent(self, shared: Gateway, codec: str) -> None:
        item = [
            None, True, False, 0, -1, 2**31, -(2**40), 1.5, 2j, "", "text", "\u20ac", b"", b"\xff",
            (), (1, (2,)), [], [[]], {}, {"a": {1: b"x"}}, {1, 2}, frozenset(["f"]),
        ]  # fmt: skip
        channel = shared.remote_exec(ECHO)
        if codec == "classic":
            shared._channelfactory.dumps = dumps_internal
        for part in [item, *item]:
            channel.send(part)
            got = channel.receive(BOUND_S)
            assert got == part
            assert type(got) is type(part)
            assert repr(got) == repr(part)

    def test_items_keep_their_order(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        for number in range(500):
            channel.send(number)
        assert [channel.receive(BOUND_S) for _ in range(500)] == list(range(500))

    def test_items_of_any_size_arrive_whole(self, shared: Gateway) -> None:
        mebibyte = 1 << 20
        channel = shared.remote_exec(ECHO)
        for size in mebibyte - 7, mebibyte - 6, mebibyte - 5, mebibyte, 3 * mebibyte + 1:
            channel.send(os.urandom(1) * size)
            assert len(channel.receive(BOUND_S)) == size
        item = ["x" * 1000, list(range(1000))] * 300
        channel.send(item)
        assert channel.receive(BOUND_S) == item

    def test_an_item_that_cannot_be_sent_leaves_the_channel_as_it_was(
        self, shared: Gateway
    ) -> None:
        channel = shared.remote_exec(ECHO)
        with pytest.raises(DumpError, match=r"item\[1\]\['k'\].*object"):
            channel.send([1, {"k": object()}])
        with pytest.raises(DumpError):
            channel.send(channel.gateway)
        channel.send("next")
        assert channel.receive(BOUND_S) == "next"

    def test_an_item_may_be_sent_before_the_code_asks_for_it(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send([channel.receive() for i in range(3)])")
        for item in "abc":
            channel.send(item)
        assert channel.receive(BOUND_S) == ["a", "b", "c"]


class TestReceive:
    def test_it_ends_after_its_time_and_the_channel_goes_on(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        for timeout in 0, -1, 0.01:
            with pytest.raises(channel.TimeoutError) as caught:
                channel.receive(timeout)
            assert isinstance(caught.value, (OSError, execnet.TimeoutError))
        channel.send(1)
        assert channel.receive(timeout=BOUND_S) == 1

    def test_it_gives_what_was_sent_before_the_end_and_then_says_that_it_is_one(
        self, shared: Gateway
    ) -> None:
        channel = shared.remote_exec("channel.send(1); channel.send(2)")
        channel.waitclose(BOUND_S)
        assert [channel.receive(BOUND_S), channel.receive(BOUND_S)] == [1, 2]
        for _ in range(2):
            with pytest.raises(EOFError):
                channel.receive(BOUND_S)

    def test_iteration_takes_all_items_and_ends_with_the_channel(self, shared: Gateway) -> None:
        assert list(shared.remote_exec("for i in range(5): channel.send(i)")) == [0, 1, 2, 3, 4]

    def test_next_takes_one_item(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(1)")
        assert channel.next() == 1
        with pytest.raises(StopIteration):
            channel.next()
        with pytest.raises(StopIteration):
            next(channel)

    def test_everyone_who_waits_is_told_of_the_end(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.receive()")
        ended = shared.execmodel.queue.Queue()

        def wait() -> None:
            try:
                channel.receive(BOUND_S)
            except EOFError:
                ended.put("EOFError")

        for _ in range(3):
            shared.execmodel.start(wait)
        channel.send(1)
        assert [ended.get(timeout=BOUND_S) for _ in range(3)] == ["EOFError"] * 3


class TestClose:
    def test_it_closes_both_sides(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            inner = channel.receive()
            inner.waitclose(10)
            channel.send(inner.isclosed())
            """
        )
        inner = shared.newchannel()
        channel.send(inner)
        inner.close()
        inner.close()
        assert inner.isclosed()
        assert channel.receive(BOUND_S) is True

    def test_an_error_given_to_it_is_raised_on_the_far_side(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            inner = channel.receive()
            try:
                inner.receive(10)
            except inner.RemoteError as exc:
                channel.send(str(exc))
            """
        )
        inner = shared.newchannel()
        channel.send(inner)
        inner.close("what went wrong")
        inner.waitclose(BOUND_S)
        assert channel.receive(BOUND_S) == "what went wrong"

    def test_a_closed_channel_refuses_to_send(self, shared: Gateway) -> None:
        channel = shared.remote_exec("pass")
        channel.waitclose(BOUND_S)
        with pytest.raises(OSError, match="cannot send"):
            channel.send(1)

    def test_code_cannot_close_its_own_channel(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(channel._executing); channel.close()")
        assert channel.receive(BOUND_S) is True
        with pytest.raises(RemoteError, match=r"OSError.*explicit"):
            channel.waitclose(BOUND_S)

    def test_waitclose_ends_after_its_time(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.receive()")
        with pytest.raises(channel.TimeoutError):
            channel.waitclose(timeout=0.01)
        channel.send(1)
        channel.waitclose(timeout=BOUND_S)

    def test_closing_a_channel_of_a_gateway_that_ended_does_nothing(self, fresh: Gateway) -> None:
        channel = fresh.remote_exec("channel.receive()")
        fresh.exit()
        fresh.join(BOUND_S)
        channel.close()
        channel.close("error")


class TestErrors:
    def test_code_that_raises_gives_its_traceback_to_receive(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(1)\nraise ValueError('the cause')")
        assert channel.receive(BOUND_S) == 1
        with pytest.raises(RemoteError) as caught:
            channel.receive(BOUND_S)
        assert caught.value.formatted.startswith("Traceback")
        assert "ValueError: the cause" in caught.value.formatted
        assert str(caught.value) == caught.value.formatted
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)

    @pytest.mark.parametrize(
        "code",
        [
            "raise SystemExit(3)", "import sys; sys.exit('words')", "1/0", "channel.send(object())",
            "def f(:", "raise BaseException", "raise GeneratorExit", "raise ValueError('\\udc80')",
            "class E(Exception):\n  def __str__(self): raise E\nraise E()", "raise EOFError",
        ],
    )  # fmt: skip
    def test_every_failure_is_a_remote_error_at_waitclose(
        self, makegateway: MakeGateway, code: str
    ) -> None:
        gateway = makegateway()
        channel = gateway.remote_exec(code)
        with pytest.raises(channel.RemoteError):
            channel.waitclose(BOUND_S)
        channel.waitclose(BOUND_S)  # it was taken
        assert gateway.remote_exec("channel.send(1)").receive(BOUND_S) == 1

    def test_an_error_that_nobody_fetched_is_written_when_the_channel_goes(
        self, shared: Gateway, capsys: pytest.CaptureFixture[str]
    ) -> None:
        channel = shared.remote_exec("raise ValueError('unseen')")
        channel._receiveclosed.wait(BOUND_S)
        assert capsys.readouterr().err == ""
        weak = weakref.ref(channel)
        del channel
        collect(weak)
        err = capsys.readouterr().err
        assert "RemoteError" in err
        assert "ValueError: unseen" in err

    def test_an_error_that_was_fetched_is_not_written(
        self, shared: Gateway, capsys: pytest.CaptureFixture[str]
    ) -> None:
        channel = shared.remote_exec("raise ValueError('seen')")
        channel._receiveclosed.wait(BOUND_S)
        error = channel._getremoteerror()
        assert isinstance(error, RemoteError)
        assert channel._getremoteerror() is None
        del channel
        gc.collect()
        assert capsys.readouterr().err == ""

    def test_an_interrupt_is_not_worth_a_warning(
        self, shared: Gateway, capsys: pytest.CaptureFixture[str]
    ) -> None:
        channel = shared.remote_exec("raise KeyboardInterrupt")
        channel._receiveclosed.wait(BOUND_S)
        del channel
        gc.collect()
        assert capsys.readouterr().err == ""


class TestCallback:
    def test_it_gets_queued_and_later_items_in_order_and_the_endmarker_once(
        self, shared: Gateway
    ) -> None:
        channel = shared.remote_exec(
            """
            for i in range(200):
                channel.send(i)
                if i == 100:
                    channel.receive()
            """
        )
        assert channel.receive(BOUND_S) == 0
        calls = Calls(shared)
        channel.setcallback(calls, endmarker="end")
        channel.send("go on")
        channel.waitclose(BOUND_S)
        assert calls.wait_for(200) == [*range(1, 200), "end"]

    def test_setting_it_while_items_arrive_loses_and_reorders_none(self, shared: Gateway) -> None:
        channels = [shared.newchannel() for _ in range(30)]
        sender = shared.remote_exec(
            """
            channels = channel.receive()
            channel.send("ready")
            for i in range(50):
                for inner in channels:
                    inner.send(i)
            for inner in channels:
                inner.close()
            """
        )
        sender.send(channels)
        sender.receive(BOUND_S)
        taken = [[channel.receive(BOUND_S)] for channel in channels]
        calls = [Calls(shared) for _ in channels]
        for channel, call in zip(channels, calls, strict=True):
            channel.setcallback(call, endmarker=None)
        for first, call in zip(taken, calls, strict=True):
            assert first + call.wait_for(50) == [*range(50), None]

    def test_a_closed_channel_gives_it_what_is_queued_and_the_endmarker(
        self, shared: Gateway
    ) -> None:
        channel = shared.remote_exec("channel.send(1); channel.send(2)")
        channel.waitclose(BOUND_S)
        items: list[object] = []
        channel.setcallback(items.append, endmarker=None)
        assert items == [1, 2, None]

    def test_without_an_endmarker_it_gets_items_only(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(1)")
        items: list[object] = []
        channel.setcallback(items.append)
        channel.waitclose(BOUND_S)
        assert items == [1]

    def test_the_endmarker_comes_when_the_worker_dies(self, fresh: Gateway) -> None:
        channel = fresh.remote_exec("import os; channel.send(1); channel.receive(); os._exit(0)")
        calls = Calls(fresh)
        channel.setcallback(calls, endmarker="end")
        channel.send(1)
        assert calls.wait_for(2) == [1, "end"]

    def test_the_endmarker_comes_when_this_side_closes(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        calls = Calls(shared)
        channel.setcallback(calls, endmarker="end")
        channel.send(1)
        calls.wait_for(1)
        channel.close()
        channel.close()
        assert calls.wait_for(2) == [1, "end"]

    def test_the_endmarker_waits_for_the_call_that_is_running(
        self, makegateway: MakeGateway
    ) -> None:
        channel = makegateway().remote_exec("channel.send(1)\n" + ECHO)
        log: list[str] = []
        begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

        def callback(item: object) -> None:
            log.append(f"begin {item}")
            if item == "end":
                ended.set()
            else:
                begun.set()
                go_on.wait(BOUND_S)
            log.append(f"end {item}")

        channel.setcallback(callback, endmarker="end")
        assert begun.wait(BOUND_S)
        closer = threading.Thread(target=channel.close)
        closer.start()
        closer.join(0.2)  # it may wait for the callback, or leave the endmarker to it
        go_on.set()
        assert ended.wait(BOUND_S)
        closer.join(BOUND_S)
        channel.gateway.exit()
        channel.gateway.join(BOUND_S)
        assert log == ["begin 1", "end 1", "begin end", "end end"]

    def test_it_may_use_its_own_channel(self, shared: Gateway) -> None:
        channel = shared.remote_exec("for i in range(3): channel.send(channel.receive() + 1)")
        calls = Calls(shared)

        def callback(item: int) -> None:
            calls(item)
            if item is not None and item < 30:
                channel.send(item * 10)
            else:
                channel.close()

        channel.setcallback(callback)
        channel.send(0)
        assert calls.wait_for(3) == [1, 11, 111]
        channel.waitclose(BOUND_S)

    def test_a_second_one_and_receive_are_refused(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        calls = Calls(shared)
        channel.setcallback(calls)
        assert channel._items is None
        with pytest.raises(OSError, match="callback"):
            channel.setcallback(calls)
        with pytest.raises(OSError, match="callback"):
            channel.receive()
        channel.send(1)
        assert calls.wait_for(1) == [1]

    def test_who_waits_in_receive_meanwhile_is_told(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        told = shared.execmodel.queue.Queue()
        waits = shared.execmodel.Event()

        def receive() -> None:
            waits.set()
            try:
                channel.receive(BOUND_S)
            except Exception as exc:
                told.put(type(exc))

        shared.execmodel.start(receive)
        waits.wait()
        calls = Calls(shared)
        channel.setcallback(calls)
        assert told.get(timeout=BOUND_S) is OSError
        channel.send(1)
        assert calls.wait_for(1) == [1]

    def test_it_outlives_the_channel_object(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        control = shared.newchannel()
        calls = Calls(shared)
        channel.setcallback(calls, endmarker="end")
        channel.send(1)
        channel.send(control)
        calls.wait_for(2)
        del channel, control, calls.items[1]
        gc.collect()


class StealingQueue(SimpleQueue):  # type: ignore[type-arg]
    """Loses each item to another thread, just when somebody looks or asks for it."""

    def _lose(self) -> None:
        with contextlib.suppress(Empty):
            super().get(False)

    def qsize(self) -> int:
        size = super().qsize()
        self._lose()
        return size

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        self._lose()
        return super().get(block, timeout)

    def get_nowait(self) -> Any:
        return self.get(False)


class TestSettingACallback:
    def test_a_receive_may_take_the_item_that_it_has_just_seen(self) -> None:
        channel = ChannelFactory(LonelyGateway()).new()
        channel._items = StealingQueue()
        channel._items.put(1)
        items: list[object] = []
        thread = threading.Thread(target=channel.setcallback, args=(items.append,), daemon=True)
        thread.start()
        thread.join(BOUND_S)
        assert not thread.is_alive()
        assert items == []


class TestACallbackThatRaises:
    def test_both_sides_get_the_error_and_the_gateway_goes_on(self, shared: Gateway) -> None:
        self.check_that_both_sides_get_it(shared, ValueError("cause"))

    def test_an_exit_in_it_is_an_error_like_others(self, makegateway: MakeGateway) -> None:
        self.check_that_both_sides_get_it(makegateway(), SystemExit("cause"))

    def check_that_both_sides_get_it(self, shared: Gateway, error: BaseException) -> None:
        code = """
        inner = channel.receive()
        inner.send(1)
        try:
            inner.receive(10)
        except inner.RemoteError as exc:
            channel.send(str(exc))
        """
        other, channel, inner = shared.newchannel(), shared.remote_exec(code), shared.newchannel()

        def callback(item: object) -> None:
            raise error

        inner.setcallback(callback)
        channel.send(inner)
        with pytest.raises(RemoteError, match=f"{type(error).__name__}: cause"):
            inner.waitclose(BOUND_S)
        assert f"{type(error).__name__}: cause" in channel.receive(BOUND_S)
        assert inner.isclosed()
        assert not other.isclosed()
        assert shared.remote_exec("channel.send(2)").receive(BOUND_S) == 2

    def test_it_is_not_called_again_but_for_the_endmarker(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.receive()\nfor i in range(3): channel.send(i)")
        calls = Calls(shared)

        def callback(item: object) -> None:
            calls(item)
            if item == 0:
                raise ValueError("cause")

        channel.setcallback(callback, endmarker="end")
        channel.send("go on")
        with pytest.raises(RemoteError, match="cause"):
            channel.waitclose(BOUND_S)
        assert shared.remote_exec("channel.send(2)").receive(BOUND_S) == 2
        assert calls.items == [0, "end"]

    def test_queued_items_are_not_passed_to_it_either(self, shared: Gateway) -> None:
        channel = shared.remote_exec("for i in range(3): channel.send(i)\nchannel.receive()")
        wait_until(lambda: channel._items.qsize() == 3, sleep=shared.execmodel.sleep)
        items: list[object] = []

        def callback(item: object) -> None:
            items.append(item)
            if item == 0:
                raise ValueError("cause")

        channel.setcallback(callback, endmarker="end")
        with pytest.raises(RemoteError, match="cause"):
            channel.waitclose(BOUND_S)
        assert items == [0, "end"]

    def test_one_that_raises_at_the_endmarker_harms_nobody(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.receive()")

        def callback(item: object) -> None:
            raise ValueError("at the end")

        channel.setcallback(callback, endmarker="end")
        channel.send(None)
        try:
            channel.waitclose(BOUND_S)
        except RemoteError as exc:
            assert "at the end" in str(exc)  # noqa: PT017 - it may be told
        assert shared.remote_exec("channel.send(2)").receive(BOUND_S) == 2

    def test_one_in_the_worker_does_the_same_the_other_way_round(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            inner = channel.gateway.newchannel()
            def callback(item):
                raise ValueError("far cause")
            inner.setcallback(callback)
            channel.send(inner)
            try:
                inner.waitclose(10)
            except inner.RemoteError as exc:
                channel.send(str(exc))
            """
        )
        inner = channel.receive(BOUND_S)
        inner.send(1)
        assert "far cause" in channel.receive(BOUND_S)
        with pytest.raises(RemoteError, match="far cause"):
            inner.waitclose(BOUND_S)


class TestFile:
    def test_what_is_written_comes_as_items(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            file = channel.makefile()
            file.write("one"); file.flush(); file.write("two"); file.close()
            print("three", file=file)
            channel.send(file.isatty())
            """
        )
        assert list(channel) == ["one", "two", "three", "\n", False]

    def test_items_are_read_as_one_text(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            'for text in ("ab", "c\\nd", "", "e\\n\\nlast"): channel.send(text)'
        )
        file = channel.makefile("r")
        assert not file.isatty()
        assert file.read(1) == "a"
        assert [file.readline() for _ in range(3)] == ["bc\n", "de\n", "\n"]
        assert file.read(2) == "la"
        assert file.read(100) == "st"
        assert [file.read(1), file.readline(), file.read(0)] == ["", "", ""]

    def test_an_empty_channel_reads_as_nothing(self, shared: Gateway) -> None:
        file = shared.remote_exec("pass").makefile("r")
        assert [file.readline(), file.read(5)] == ["", ""]

    def test_closing_it_closes_the_channel_only_if_asked_to(self, shared: Gateway) -> None:
        for mode in "r", "w":
            channel = shared.newchannel()
            channel.makefile(mode, proxyclose=False).close()
            assert not channel.isclosed()
            file = channel.makefile(mode, proxyclose=True)
            file.close()
            assert channel.isclosed()
            assert "closed" in repr(file)

    @pytest.mark.parametrize("mode", ["", "x", "rw", "wb"])
    def test_other_modes_are_refused(self, shared: Gateway, mode: str) -> None:
        with pytest.raises(ValueError, match="mode"):
            shared.newchannel().makefile(mode)


class TestChannelsInItems:
    def test_one_can_be_anywhere_in_an_item(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            item = channel.receive()
            found = [item[0], item[1]["value"], item[2][0][0], list(item[3])[0]]
            for number, inner in enumerate(found):
                inner.send(number)
            channel.send(len(set(map(id, found))))
            """
        )
        inners = [shared.newchannel() for _ in range(4)]
        channel.send([inners[0], {"value": inners[1]}, ([inners[2]],), {inners[3]}])
        assert channel.receive(BOUND_S) == 4
        assert [inner.receive(BOUND_S) for inner in inners] == [0, 1, 2, 3]

    def test_it_is_itself_when_it_comes_back(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        inner = shared.newchannel()
        channel.send({"inner": inner})
        assert channel.receive(BOUND_S)["inner"] is inner
        channel.send(channel)
        assert channel.receive(BOUND_S) is channel

    def test_the_worker_makes_them_with_even_numbers(self, fresh: Gateway) -> None:
        channel = fresh.remote_exec(
            "channel.send([channel.id] + [channel.gateway.newchannel() for i in range(3)])"
        )
        own, *inners = channel.receive(BOUND_S)
        assert own == channel.id == 1
        assert [inner.id for inner in inners] == [2, 4, 6]
        assert [fresh.newchannel().id for _ in range(2)] == [3, 5]

    def test_one_of_another_gateway_is_refused(self, makegateway: MakeGateway) -> None:
        one, other = makegateway(), makegateway()
        channel = one.remote_exec(ECHO)
        for item in other.newchannel(), [other.newchannel()]:
            with pytest.raises(DumpError, match="gateway"):
                channel.send(item)
        with pytest.raises(DumpError, match=r"[Cc]hannel"):
            execnet.dumps(channel)


class TestDrop:
    def test_the_far_side_closes_when_this_one_drops(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            inner = channel.receive()
            inner.waitclose(10)
            channel.send([inner.isclosed(), list(inner)])
            """
        )
        inner = shared.newchannel()
        channel.send(inner)
        inner.send(1)
        del inner
        gc.collect()
        assert channel.receive(BOUND_S) == [True, [1]]

    def test_this_side_closes_when_the_far_one_drops(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            import gc
            inner = channel.gateway.newchannel()
            channel.send(inner)
            inner.send(1)
            del inner
            gc.collect()
            channel.receive()
            """
        )
        inner = channel.receive(BOUND_S)
        inner.waitclose(BOUND_S)
        assert inner.isclosed()
        assert list(inner) == [1]

    def test_one_with_a_callback_keeps_receiving(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            inner = channel.receive()
            inner.waitclose(10)
            channel.send([inner.isclosed(), list(inner), repr(inner)])
            for i in range(3):
                inner.send(i)
            del inner
            __import__("gc").collect()
            """
        )
        inner = shared.newchannel()
        calls = Calls(shared)
        inner.setcallback(calls, endmarker="end")
        channel.send(inner)
        number = inner.id
        del inner
        gc.collect()
        assert number not in shared._channelfactory._channels
        assert channel.receive(BOUND_S) == [False, [], f"<Channel id={number} send-only>"]
        assert calls.wait_for(4) == [0, 1, 2, "end"]  # the worker dropped its end behind them

    def test_neither_side_remembers_a_channel_that_both_have_dropped(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            for inner in channel:
                inner.waitclose(10)
                del inner
                channel.send(sorted(channel.gateway._channelfactory._channels))
            """
        )
        for _ in range(5):
            inner = shared.newchannel()
            channel.send(inner)
            inner.close()
            assert channel.receive(BOUND_S) == [channel.id]
            del inner
        assert shared._channelfactory.channels() == [channel]
        assert list(shared._channelfactory._channels) == [channel.id]
        assert not shared._channelfactory._callbacks

    def test_a_channel_in_a_reference_cycle_goes_with_it(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        channel.me = channel  # type: ignore[attr-defined]
        weak = weakref.ref(channel)
        del channel
        collect(weak)
        assert shared.remote_exec("channel.send(2)").receive(BOUND_S) == 2


class TestAttributes:
    def test_it_has_the_names_that_programs_use(self, fresh: Gateway) -> None:
        channel = fresh.newchannel()
        assert isinstance(channel, Channel)
        assert channel.id == 1
        assert channel.gateway is fresh
        assert channel.RemoteError is execnet.RemoteError
        assert channel.TimeoutError is execnet.TimeoutError
        assert channel._strconfig == fresh._strconfig
        assert channel._executing is False
        assert channel._items.qsize() == 0
        assert isinstance(channel._INTERNALWAKEUP, (int, float))
        assert channel._getremoteerror() is None
        assert repr(channel) == "<Channel id=1 open>"
        assert not channel.isclosed()

    def test_attributes_can_be_set_on_it(self, shared: Gateway) -> None:
        channel = shared.newchannel()
        channel.mine = 1  # type: ignore[attr-defined]
        assert {channel: 1}[channel] == channel.mine  # type: ignore[attr-defined]


class TestReconfigure:
    """Python 2's strings, written as such a worker writes them."""

    def test_a_channel_reads_the_strings_of_python_2_as_it_was_told(
        self, makegateway: MakeGateway
    ) -> None:
        gateway = makegateway()
        channel = gateway.newchannel()
        assert channel._strconfig == (True, False)
        self.deliver(channel, b"\xe9")
        channel.reconfigure(py2str_as_py3str=False)
        self.deliver(channel, b"\xe9")
        other = gateway.newchannel()
        self.deliver(other, b"\xe9")
        assert [channel.receive(BOUND_S), channel.receive(BOUND_S), other.receive(BOUND_S)] == [
            "\xe9",
            b"\xe9",
            "\xe9",
        ]

    def test_a_callback_reads_them_so_too(self, makegateway: MakeGateway) -> None:
        channel = makegateway().newchannel()
        items: list[object] = []
        channel.reconfigure(py2str_as_py3str=False)
        channel.setcallback(items.append)
        self.deliver(channel, b"a")
        assert items == [b"a"]

    def test_the_far_side_is_told(self, shared: Gateway) -> None:
        channel = shared.remote_exec("for item in channel: channel.send(channel._strconfig)")
        channel.send(1)
        assert channel.receive(BOUND_S) == (True, False)
        channel.reconfigure(py2str_as_py3str=False, py3str_as_py2str=True)
        channel.send(1)
        assert channel.receive(BOUND_S) == (False, True)

    def test_a_gateway_tells_it_for_all_channels_from_then_on(self, fresh: Gateway) -> None:
        fresh.reconfigure(py2str_as_py3str=False, py3str_as_py2str=True)
        channel = fresh.remote_exec("channel.send(channel._strconfig)")
        assert channel._strconfig == (False, True)
        assert channel.receive(BOUND_S) == (False, True)

    def deliver(self, channel: Channel, text: bytes) -> None:
        data = opcode.PY2STRING + len(text).to_bytes(4, "big") + text + opcode.STOP
        channel.gateway._channelfactory._local_receive(channel.id, data)


class TestFactory:
    def test_numbers_are_every_second_from_its_start(self) -> None:
        here, there = ChannelFactory(LonelyGateway()), ChannelFactory(LonelyGateway(), 2)
        channels = [here.new() for _ in range(3)] + [there.new() for _ in range(3)]
        assert [channel.id for channel in channels] == [1, 3, 5, 2, 4, 6]

    def test_a_number_gives_the_channel_that_has_it(self) -> None:
        factory = ChannelFactory(LonelyGateway())
        channel = factory.new(77)
        assert channel.id == 77
        assert factory.new(77) is channel
        assert factory.new().id == 1

    def test_it_knows_a_channel_for_as_long_as_somebody_holds_it(self) -> None:
        factory = ChannelFactory(LonelyGateway())
        one, other = factory.new(), factory.new()
        assert sorted(c.id for c in factory.channels()) == [1, 3]
        assert isinstance(factory.channels(), list)
        assert factory._channels[3] is other
        del other
        gc.collect()
        assert factory.channels() == [one]
        assert 3 not in factory._channels

    def test_a_gateway_that_can_only_send_is_enough_for_every_item(self) -> None:
        gateway = LonelyGateway()
        channel = ChannelFactory(gateway).new()
        channel.send(1)
        channel.send(b"x" * (3 << 20))
        channel.close()
        names = [Message._types[code][0] for code, _, _ in gateway.sent]
        assert names[0] == "CHANNEL_DATA"
        assert names[-1] == "CHANNEL_CLOSE"
        assert sum(len(data) for _, _, data in gateway.sent) > 3 << 20

    def test_what_a_channel_sends_another_factory_receives(self) -> None:
        gateway, other = LonelyGateway(), LonelyGateway()
        channel, factory = ChannelFactory(gateway).new(), ChannelFactory(other)
        other._channelfactory = factory  # type: ignore[attr-defined]
        far = factory.new(channel.id)
        channel.send(["item", b"x" * (3 << 20)])
        channel.close("error")
        for message in gateway.sent:
            Message(*message).received(other)
        assert far.receive(BOUND_S) == ["item", b"x" * (3 << 20)]
        with pytest.raises(RemoteError, match="error"):
            far.receive(BOUND_S)

    def test_local_close_ends_a_channel_without_a_word(self) -> None:
        gateway = LonelyGateway()
        factory = ChannelFactory(gateway)
        channel, failed = factory.new(), factory.new()
        factory._local_close(channel.id)
        factory._local_close(failed.id, RemoteError("why"))
        factory._local_close(99)
        channel.waitclose(BOUND_S)
        with pytest.raises(RemoteError, match="why"):
            failed.waitclose(BOUND_S)
        assert gateway.sent == []

    def test_when_it_is_finished_it_makes_no_channels(self) -> None:
        factory = ChannelFactory(LonelyGateway())
        channel = factory.new()
        assert factory.finished is False
        factory._finished_receiving()
        assert factory.finished is True
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)
        with pytest.raises(OSError, match="closed"):
            factory.new()

    def test_an_item_that_nobody_can_read_closes_its_channel_only(self) -> None:
        gateway = LonelyGateway()
        factory = ChannelFactory(gateway)
        gateway._channelfactory = factory  # type: ignore[attr-defined]
        channel, other = factory.new(), factory.new()
        for number in channel.id, 99:
            factory._local_receive(number, b"\x80garbage")
        with pytest.raises(LoadError):
            channel.receive(BOUND_S)
        assert [(code, number) for code, number, _ in gateway.sent] == [
            (Message.CHANNEL_CLOSE_ERROR, channel.id)
        ]
        factory._local_receive(other.id, dumps_internal(1))
        assert other.receive(BOUND_S) == 1

    def test_pieces_of_an_item_go_with_their_channel(self) -> None:
        gateway, sender = LonelyGateway(), LonelyGateway()
        factory = ChannelFactory(gateway)
        gateway._channelfactory = factory  # type: ignore[attr-defined]
        ChannelFactory(sender).new(1).send(b"x" * (3 << 20))
        channel = factory.new(1)
        for message in sender.sent[:2]:
            Message(*message).received(gateway)
        assert factory.parts
        channel.close()
        assert not factory.parts

    def test_a_piece_that_is_on_its_way_goes_with_its_channel(self) -> None:
        gateway, decoder = LonelyGateway(), FrameDecoder(hands_on=True)
        factory = ChannelFactory(gateway)
        gateway._channelfactory = factory  # type: ignore[attr-defined]
        channel, other = factory.new(1), factory.new(3)
        data = dumps_internal(b"x" * 40000)
        stream = b"".join(struct.pack("!bii", 4, id, len(data)) + data for id in (1, 3))
        for start in range(0, len(stream), 10000):
            for message in decoder.feed(stream[start : start + 10000]):
                message.received(gateway)
            channel.close()
        assert other.receive(BOUND_S) == b"x" * 40000
        assert not factory.parts

    @given(st.lists(st.integers(0, 4 << 20), max_size=12))
    def test_large_items_are_the_same_in_any_cut(self, places: list[int]) -> None:
        gateway, sender = LonelyGateway(), LonelyGateway()
        factory, decoder = ChannelFactory(gateway), FrameDecoder(hands_on=True)
        gateway._channelfactory = factory  # type: ignore[attr-defined]
        channel, out = factory.new(1), ChannelFactory(sender).new(1)
        large = bytes(range(256)) * 400
        items = [large, (large, 1), large * 12, "x" * 20000, 7, (large * 12, large), [large] * 11]
        for item in items:
            out.send(item)
        stream = b"".join(struct.pack("!bii", *m[:2], len(m[2])) + m[2] for m in sender.sent)
        edges = [0, *sorted(place % len(stream) for place in places), len(stream)]
        for start, end in itertools.pairwise(edges):
            for message in decoder.feed(stream[start:end]):
                message.received(gateway)
        got = [channel.receive(BOUND_S) for _ in items]
        assert got == items
        assert list(map(type, got)) == list(map(type, items))
        assert not factory.parts

    def test_the_worker_has_the_same_book(self, shared: Gateway) -> None:
        channel = shared.remote_exec(
            """
            book = channel.gateway._channelfactory._channels
            channel.send([book[channel.id] is channel, list(book)])
            """
        )
        assert channel.receive(BOUND_S) == [True, [channel.id]]
