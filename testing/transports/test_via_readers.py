"""Threads that read for gateways behind others: how many, and that none keeps another's bytes.

How they end is tested with these in ``test_via_death``.
"""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Callable
from typing import Any

import pytest
from chains import MIB, make_chain, pid_of, posix_only
from reading import echoes, names, ping
from tools import BOUND_S, FORKING, run_python, wait_until
from workers import ECHO

from execnet import Gateway, Group, WorkerDied, _readers
from execnet._via.stream import ViaIO
from execnet.gateway_base import CAN_READ_DIRECTLY, ExecModel

# Its stream ends, and its process does not.
LINGER = """
import os, signal
channel.send(None)
os.closerange(0, 100)
os.kill(os.getpid(), signal.SIGSTOP)
"""
STUCK = "import time; channel.send(None); time.sleep(300)"
needs_direct_reads = pytest.mark.skipif(not CAN_READ_DIRECTLY, reason="not with this Python")


@pytest.fixture(autouse=True)
def none_has_its_own(monkeypatch: pytest.MonkeyPatch, nothing_is_left: None) -> None:
    monkeypatch.setattr(_readers, "OWN", 0)


Make = Callable[[int], "list[Gateway]"]


@pytest.fixture
def between(group: Group) -> Gateway:
    """The gateway that all others go via."""
    return group.makegateway("popen//id=between")


@pytest.fixture
def make(group: Group, between: Gateway) -> Make:
    """A function that starts so many gateways behind it."""
    return lambda count: list(group.makegateways(["popen//via=between"] * count))


def refuse(self: object) -> None:
    raise RuntimeError("can't start new thread")


class TestThreads:
    def test_few_read_for_many(self, make: Make) -> None:
        channels = echoes(make(12))
        for _ in range(3):
            ping(*channels)
        wait_until(lambda: names("execnet-receiver") == ["execnet-receiver-between"])
        wait_until(lambda: len(names("execnet-reader")) <= _readers.POLLING)
        ping(*channels)

    def test_greenlets_have_one_each(self, execmodel: ExecModel) -> None:
        group = Group(execmodel=execmodel)
        try:
            gateways = make_chain(group, "", "")
            ping(*echoes(gateways))
            is_shared = gateways[1]._io.is_shared
            assert is_shared == execmodel.has_main_thread
        finally:
            group.terminate(BOUND_S)

    @posix_only
    def test_one_that_others_go_via_keeps_its_own(
        self, group: Group, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else all threads might wait for the ends of workers that it would tell of."""
        middle = make_chain(group, "", "")[1]
        behind = group.makegateways([f"popen//via={middle.id}"] * (3 * _readers.POLLING))
        (channel,) = echoes([middle])
        ping(channel)
        monkeypatch.setattr(_readers._Readers, "_start", refuse)
        lingering = [gateway.remote_exec(LINGER) for gateway in behind]
        readers = _readers._seats._readers[_readers._Told]
        wait_until(lambda: readers._polling == 0)
        ping(channel)
        assert len(lingering) > readers._threads  # so that each was taken by one

    @posix_only
    def test_the_ends_that_workers_take_their_time_for_delay_nobody(self, make: Make) -> None:
        gateways = make(3 * _readers.POLLING)
        lingering = gateways[: 2 * _readers.POLLING]
        channels = echoes(gateways[len(lingering) :])
        for one in [gateway.remote_exec(LINGER) for gateway in lingering]:
            one.receive(BOUND_S)
        wait_until(lambda: not any(gateway.hasreceiver() for gateway in lingering))
        readers = _readers._seats._readers[_readers._Told]
        wait_until(lambda: readers._busy == 0)  # not those threads that wait for the ends
        ping(*channels)

    @needs_direct_reads
    def test_none_is_forgotten_while_the_stream_is_left_to_others(
        self, make: Make, between: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        channels = echoes([between, *make(2)])
        ping(*channels)
        with monkeypatch.context() as patched:
            patched.setattr(between._channelfactory.direct, "IDLE_S", 3 * BOUND_S)
            for _ in range(20):
                ping(*channels)

    @needs_direct_reads
    def test_no_stream_is_offered_that_the_one_between_reads_for_another(self, make: Make) -> None:
        channel, other = echoes(make(2))
        ping(channel, other)
        wait_until(lambda: other.gateway._io._inbox._parked)
        direct = channel.gateway._channelfactory.direct
        uses = direct.uses
        for _ in range(50):
            ping(channel)
        assert direct.uses == uses


class TestCallbacks:
    def test_one_that_sends_much_waits_for_nothing(self, make: Make) -> None:
        (gateway,) = make(1)
        done: queue.Queue[object] = queue.Queue()
        channel = gateway.remote_exec("channel.send(1); channel.send(len(channel.receive()))")

        def answer(item: Any) -> None:
            if item == 1:
                channel.send(b"x" * (5 * MIB))
            done.put(item)

        channel.setcallback(answer)
        assert [done.get(True, BOUND_S) for _ in range(2)] == [1, 5 * MIB]


@posix_only
class TestEnds:
    def test_that_of_the_one_between_is_that_of_all(self, make: Make, between: Gateway) -> None:
        channels = echoes(make(8))
        ping(*channels)
        os.kill(pid_of(between), signal.SIGKILL)
        for channel in channels:
            with pytest.raises(WorkerDied, match="between, which it goes via, has ended"):
                channel.receive(BOUND_S)

    def test_one_whose_channel_is_closed_from_there_ends(
        self, make: Make, between: Gateway
    ) -> None:
        gateway, other = make(2)
        ping(*echoes([gateway, other]))
        code = "channel.gateway._channelfactory.new({}).close()"
        between.remote_exec(code.format(gateway._io._data.id)).waitclose(BOUND_S)
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        ping(*echoes([other]))

    def test_one_whose_bytes_nobody_has_taken_is_not_silent(self, between: Gateway) -> None:
        script = "read line; echo answer; read line"
        request = {"args": ["sh", "-c", script], "address": None, "stderr": False, "timeout": None}
        stream = ViaIO(between, request, ["sh"], None, between.execmodel)
        stream.is_shared = True
        assert not stream.on_silence("silent")
        stream.write(b"\n")
        wait_until(lambda: stream.on_silence("silent"))
        stream.is_shared = False
        stream.discard()

    def test_a_stream_that_is_discarded_is_closed_by_its_reader(self, make: Make) -> None:
        gateway, other = make(2)
        ping(*echoes([gateway, other]))
        gateway._io.discard()  # as when an interrupt comes while it is made
        gateway.join(BOUND_S)
        assert not gateway.hasreceiver()
        ping(*echoes([other]))

    def test_a_fork_leaves_them_to_its_parent(self) -> None:
        result = run_python(
            f"""
import os, sys, execnet
from execnet import _readers
_readers.OWN = 0
ECHO = {ECHO!r}

def make():
    group = execnet.Group(["popen//id=between"])
    gateways = group.makegateways(["popen//via=between"] * 2)
    return group, [gateway.remote_exec(ECHO) for gateway in gateways]

def ping(channels):
    for channel in channels:
        channel.send(1)
        assert channel.receive({BOUND_S}) == 1

_, channels = make()
ping(channels)
if not os.fork():
    assert not _readers._seats._readers
    try:
        channels[0].receive()
    except EOFError as exc:
        print("of which this one is a fork" in str(exc))
    group, mine = make()
    ping(mine)
    group.terminate(5)
    sys.stdout.flush()
    os._exit(0)
os.wait()
ping(channels)
print("well")
""",
            **FORKING,
        )
        assert (result.stdout.split(), result.stderr) == (["True", "well"], "")
