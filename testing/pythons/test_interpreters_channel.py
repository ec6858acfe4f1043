"""Channels to workers on every Python: both directions, files, ends, errors, time-outs."""

from __future__ import annotations

import gc
import time

import pytest
from tools import BOUND_S, wait_until
from workers import ECHO, ask

from execnet import Channel, Gateway, RemoteError
from execnet.gateway_base import TimeoutError as ChannelTimeoutError

pytest_plugins = ["worker_fixtures"]


class TestOrder:
    def test_items_keep_it_in_both_directions(self, shared: Gateway) -> None:
        channel = shared.remote_exec(ECHO)
        for number in range(300):
            channel.send(number)
        assert [channel.receive(BOUND_S) for _ in range(300)] == list(range(300))

    def test_many_channels_do_not_mix(self, shared: Gateway) -> None:
        code = "n = channel.receive()\nfor item in range(20): channel.send((n, item))"
        channels = [shared.remote_exec(code) for _ in range(8)]
        for number, channel in reversed(list(enumerate(channels))):
            channel.send(number)
        for number, channel in enumerate(channels):
            assert list(channel) == [(number, item) for item in range(20)]

    def test_several_threads_of_a_worker_send_whole_items(self, shared: Gateway) -> None:
        code = """
import threading
def send(n):
    for _ in range(10):
        channel.send([n] * 2000)
threads = [threading.Thread(target=send, args=(n,)) for n in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
        items = list(shared.remote_exec(code))
        assert sorted(item[0] for item in items) == [n for n in range(4) for _ in range(10)]
        assert all(item == [item[0]] * 2000 for item in items)


class TestChannelsInItems:
    def test_one_sent_to_a_worker_is_the_same_channel_there(self, shared: Gateway) -> None:
        inner = shared.newchannel()
        code = """
first = channel.receive()["channel"][0]
second = channel.receive()
channel.send((first is second, first.id, repr(first)))
first.send(u"over it")
"""
        channel = shared.remote_exec(code)
        channel.send({"channel": (inner, 1)})
        channel.send(inner)
        assert channel.receive(BOUND_S) == (True, inner.id, f"<Channel id={inner.id} open>")
        assert inner.receive(BOUND_S) == "over it"
        channel.waitclose(BOUND_S)

    def test_one_made_by_a_worker_arrives(self, shared: Gateway) -> None:
        code = """
inner = channel.gateway.newchannel()
channel.send([inner])
channel.send(inner.receive() + 1)
"""
        channel = shared.remote_exec(code)
        (inner,) = channel.receive(BOUND_S)
        assert isinstance(inner, Channel)
        assert inner.id % 2 == 0
        inner.send(6)
        assert channel.receive(BOUND_S) == 7
        channel.waitclose(BOUND_S)


class TestEnds:
    def test_code_that_ends_closes_its_channel(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(1)")
        channel.waitclose(BOUND_S)
        assert list(channel) == [1]
        assert channel.isclosed()
        with pytest.raises(EOFError):
            channel.receive(BOUND_S)
        with pytest.raises(OSError, match="cannot send"):
            channel.send(1)

    def test_closing_it_ends_the_iteration_of_a_worker(self, shared: Gateway) -> None:
        log = shared.newchannel()
        code = """
log = channel.receive()
items = list(channel)
log.send((items, channel.isclosed()))
try:
    channel.send(1)
except (IOError, OSError):
    log.send("refused")
"""
        channel = shared.remote_exec(code)
        for item in log, 1, 2:
            channel.send(item)
        channel.close()
        assert log.receive(BOUND_S) == ([1, 2], True)
        assert log.receive(BOUND_S) == "refused"

    def test_closing_it_with_an_error_raises_that_in_the_worker(self, shared: Gateway) -> None:
        log = shared.newchannel()
        code = """
log = channel.receive()
try:
    channel.receive()
except channel.RemoteError as error:
    log.send(str(error))
"""
        channel = shared.remote_exec(code)
        channel.send(log)
        channel.close("it is over")
        assert log.receive(BOUND_S) == "it is over"

    def test_a_worker_closes_another_channel_with_an_error(self, shared: Gateway) -> None:
        inner = shared.newchannel()
        channel = shared.remote_exec("channel.receive().close('it is over')")
        channel.send(inner)
        with pytest.raises(RemoteError, match=r"^it is over$"):
            inner.receive(BOUND_S)
        channel.waitclose(BOUND_S)

    def test_code_cannot_close_its_own(self, shared: Gateway) -> None:
        with pytest.raises(RemoteError, match="explicit"):
            ask(shared, "channel.close()")

    def test_one_dropped_here_is_closed_there(self, shared: Gateway) -> None:
        log = shared.newchannel()
        code = "log = channel.receive()\nlog.send(list(channel))"
        channel = shared.remote_exec(code)
        channel.send(log)
        channel.send(1)
        del channel
        gc.collect()
        assert log.receive(BOUND_S) == [1]

    def test_one_dropped_there_is_closed_here(self, shared: Gateway) -> None:
        code = """
import gc
inner = channel.gateway.newchannel()
channel.send(inner)
channel.receive()
inner.send(1)
del inner
gc.collect()
channel.receive()
"""
        channel = shared.remote_exec(code)
        inner = channel.receive(BOUND_S)
        channel.send(None)
        inner.waitclose(BOUND_S)
        assert inner.receive(BOUND_S) == 1
        with pytest.raises(EOFError):
            inner.receive(BOUND_S)
        channel.send(None)
        channel.waitclose(BOUND_S)


class TestTimeouts:
    @pytest.mark.parametrize("wait", ["receive", "waitclose"])
    def test_what_does_not_come_is_a_timeout_here(self, shared: Gateway, wait: str) -> None:
        channel = shared.remote_exec("channel.receive()")
        with pytest.raises(ChannelTimeoutError):
            getattr(channel, wait)(0.01)
        channel.send(None)
        channel.waitclose(BOUND_S)

    @pytest.mark.parametrize("wait", ["receive", "waitclose"])
    def test_and_in_the_worker(self, shared: Gateway, wait: str) -> None:
        code = f"""
import time
started, inner = time.time(), channel.gateway.newchannel()
try:
    inner.{wait}(0.05)
except channel.TimeoutError as error:
    channel.send((isinstance(error, (IOError, OSError)), 0.04 < time.time() - started < 5))
inner.close()
channel.send(channel.receive(timeout=5))
"""
        channel = shared.remote_exec(code)
        assert channel.receive(BOUND_S) == (True, True)
        channel.send("in time")
        assert channel.receive(BOUND_S) == "in time"
        channel.waitclose(BOUND_S)

    def test_a_worker_that_waits_is_woken_by_the_item(self, shared: Gateway) -> None:
        channel = shared.remote_exec("channel.send(0); channel.receive(60); channel.send(1)")
        assert channel.receive(BOUND_S) == 0
        started = time.monotonic()
        channel.send(None)
        assert channel.receive(BOUND_S) == 1
        assert time.monotonic() - started < 5


class TestFiles:
    def test_a_worker_writes_what_is_read_here(self, shared: Gateway) -> None:
        code = """
file = channel.makefile("w")
file.write(u"one\\ntwo\\nrest")
file.flush()
file.write(u" of it")
assert not file.isatty()
file.close()
"""
        file = shared.remote_exec(code).makefile("r")
        assert [file.readline(), file.read(2), file.readline(), file.readline()] == [
            "one\n", "tw", "o\n", "rest of it"
        ]  # fmt: skip
        assert file.read(1) == ""
        file.channel.waitclose(BOUND_S)

    def test_a_worker_reads_what_is_written_here(self, shared: Gateway) -> None:
        code = """
log = channel.receive()
file = channel.makefile("r")
log.send([file.readline(), file.read(2), file.readline(), file.read(5), file.readline()])
"""
        channel, log = shared.remote_exec(code), shared.newchannel()
        channel.send(log)
        file = channel.makefile("w", proxyclose=True)
        for text in "o", "ne\ntwo", "\nr", "est":
            file.write(text)
        file.close()
        assert channel.isclosed()
        assert log.receive(BOUND_S) == ["one\n", "tw", "o\n", "rest", ""]

    def test_print_of_a_worker_goes_through_it(self, shared: Gateway) -> None:
        code = """
import sys
sys.stdout, old = channel.makefile("w"), sys.stdout
try:
    exec("print('hello')")
finally:
    sys.stdout = old
"""
        assert "".join(shared.remote_exec(code)) == "hello\n"

    def test_a_file_of_another_mode_is_refused(self, shared: Gateway) -> None:
        with pytest.raises(RemoteError, match="ValueError"):
            ask(shared, "channel.makefile('rw')")


class TestStates:
    def test_a_worker_counts_its_channels(self, shared: Gateway) -> None:
        channels = [shared.remote_exec("channel.receive()") for _ in range(3)]
        status = shared.remote_status()
        assert (status.numchannels, status.numexecuting) == (3, 3)
        assert status.execmodel == "thread"
        for channel in channels:
            channel.send(None)
            channel.waitclose(BOUND_S)
        wait_until(lambda: shared.remote_status().numchannels == 0)

    def test_a_worker_has_the_names_of_channels(self, shared: Gateway) -> None:
        code = """
factory = channel.gateway._channelfactory
channel.send((channel in factory.channels(), channel.id in factory._channels, factory.finished))
channel.send((channel.isclosed(), repr(channel), channel.RemoteError.__name__))
"""
        channel = shared.remote_exec(code)
        assert channel.receive(BOUND_S) == (True, True, False)
        assert channel.receive(BOUND_S) == (False, f"<Channel id={channel.id} open>", "RemoteError")
        channel.waitclose(BOUND_S)
