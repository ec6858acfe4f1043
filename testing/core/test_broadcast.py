"""``MultiChannel.send_each``: one item for all, made into bytes once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from processes import stop
from tools import BOUND_S, Resources, call_in_receiver, wait_until

from execnet import DumpError, Group, MultiChannel, _broadcast
from execnet.gateway import Gateway

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="it stops processes")

ITEM = [str(number) * 9 for number in range(1 << 16)]  # more than a pipe holds
ECHO = "for item in channel: channel.send(len(item))"


@pytest.fixture(scope="module")
def workers() -> Iterator[Group]:
    """Three workers, the last one over a socket."""
    with Group() as group:
        group.makegateways(["popen", "popen", "socket//installvia=gw0//heartbeat=0"])
        yield group


class Stopped:
    """A worker that reads nothing within the block."""

    def __init__(self, gateway: Gateway) -> None:
        self._pid = gateway._rinfo().pid

    def __enter__(self) -> None:
        stop(self._pid)

    def __exit__(self, *args: object) -> None:
        os.kill(self._pid, signal.SIGCONT)


@pytest.mark.parametrize("number", range(3))
def test_one_that_does_not_read_holds_up_no_other(workers: Group, number: int) -> None:
    channels = workers.remote_exec(ECHO)
    others = [channel for channel in channels if channel is not channels[number]]
    with Stopped(workers[number]):
        sending = threading.Thread(target=channels.send_each, args=(ITEM,))
        sending.start()
        assert [channel.receive(BOUND_S) for channel in others] == [len(ITEM)] * 2
        assert sending.is_alive() or number == 2  # sockets may hold that much
    sending.join(BOUND_S)
    assert channels[number].receive(BOUND_S) == len(ITEM)
    channels.close()


@pytest.mark.parametrize("item", [ITEM, b"x" * (1 << 20), b"x" * (3 << 20)], ids=type)
def test_all_are_sent_the_same_bytes(
    workers: Group, item: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    dumps = _broadcast.dumps_fast

    def dumps_once(item: object, gateway: object) -> bytes:
        made.append(item)
        return dumps(item, gateway)

    monkeypatch.setattr(_broadcast, "dumps_fast", dumps_once)
    sources: set[int] = set()
    queue = _broadcast.Writer.queue

    def queue_and_look(self: _broadcast.Writer, frame: list[object]) -> None:
        if isinstance(frame[1], memoryview):
            sources.add(id(frame[1].obj))
        elif len(frame[1]):  # type: ignore[arg-type]
            sources.add(id(frame[1]))
        queue(self, frame)

    monkeypatch.setattr(_broadcast.Writer, "queue", queue_and_look)
    channels = workers.remote_exec(ECHO)
    channels.send_each(item)
    assert channels.receive_each() == [len(item)] * 3  # type: ignore[arg-type]
    assert len(made) <= 1
    assert len(sources) == 1
    channels.close()


def test_it_needs_no_thread(workers: Group) -> None:
    channels = workers.remote_exec("channel.receive(); channel.send(len(channel.receive()))")
    threads = set(threading.enumerate())
    with Stopped(workers[0]):
        sending = threading.Thread(target=channels.send_each, args=(ITEM,))
        sending.start()
        wait_until(lambda: workers[0]._writer._frames)
        assert set(threading.enumerate()) - threads == {sending}
    sending.join(BOUND_S)
    channels.send_each(ITEM)
    assert channels.receive_each() == [len(ITEM)] * 3


def test_one_that_is_closed_raises_after_the_others_have_the_item(workers: Group) -> None:
    channels = workers.remote_exec(ECHO)
    channels[0].close()
    with pytest.raises(OSError, match="cannot send to <Channel"):
        channels.send_each("abc")
    assert [channels[number].receive(BOUND_S) for number in (1, 2)] == [3, 3]
    channels.close()


def test_one_that_dies_raises_after_the_others_have_the_item(group: Group) -> None:
    group.makegateways(["popen"] * 3)
    channels = group.remote_exec(ECHO)
    with Stopped(group[1]):
        sending: list[BaseException] = []

        def send() -> None:
            try:
                channels.send_each(ITEM)
            except OSError as exc:
                sending.append(exc)

        thread = threading.Thread(target=send)
        thread.start()
        assert [channels[number].receive(BOUND_S) for number in (0, 2)] == [len(ITEM)] * 2
        os.kill(group[1]._rinfo().pid, signal.SIGKILL)
    thread.join(BOUND_S)
    assert "died, killed by SIGKILL" in str(sending[0])


def test_an_item_that_cannot_be_sent_is_sent_to_none(workers: Group) -> None:
    channels = workers.remote_exec(ECHO)
    with pytest.raises(DumpError, match="object"):
        channels.send_each([object()])
    channels.send_each("next")
    assert channels.receive_each() == [4] * 3
    channels.close()


def test_a_channel_goes_to_its_own_gateway_only(workers: Group) -> None:
    code = "other = channel.receive(); other.send(1); channel.receive()"
    channels = MultiChannel([workers[0].remote_exec(code) for _ in range(2)])
    other = workers[0].newchannel()
    channels.send_each(other)
    assert [other.receive(BOUND_S) for _ in range(2)] == [1, 1]
    with pytest.raises(DumpError, match="belongs to a gateway"):
        workers.remote_exec(code).send_each(workers[1].newchannel())


def test_a_window_is_kept(group: Group) -> None:
    group.makegateways(["popen//window=1000", "popen"])
    channels = group.remote_exec("channel.receive(); channel.send(len(channel.receive()))")
    channels.send_each("x" * 900)
    assert group[0]._channelfactory.windows is not None
    channels.send_each("x" * 900)
    assert channels.receive_each() == [900, 900]


def test_a_callback_of_a_member_sends_without_waiting(workers: Group) -> None:
    channels = workers.remote_exec(ECHO)
    done = threading.Event()

    def send(item: object) -> None:
        channels.send_each(ITEM)
        done.set()

    call_in_receiver(workers[0], send)
    assert done.wait(BOUND_S)
    assert channels.receive_each() == [len(ITEM)] * 3
    channels.close()


def test_an_interrupt_leaves_no_part_of_an_item(group: Group) -> None:
    """What was posted when it came arrives whole, also at the one that does not read."""
    before = Resources.now()
    group.makegateways(["popen"] * 2)
    channels = group.remote_exec(ECHO)

    def interrupt() -> None:
        channels[1].receive(BOUND_S)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may ignore it
    try:
        with Stopped(group[0]):
            interrupting.start()
            with pytest.raises(KeyboardInterrupt):
                channels.send_each(ITEM)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert channels[0].receive(BOUND_S) == len(ITEM)
    channels.send_each("next")
    assert channels.receive_each() == [4, 4]
    group.terminate(5)
    before.assert_nothing_new()
