"""What a worker that means harm may send: its gateway ends, and nothing else does."""

from __future__ import annotations

import struct
import threading
from collections import deque
from types import SimpleNamespace

import pytest
from tools import BOUND_S, wait_until
from workers import ask, assert_ends, frame

from execnet import Gateway, Group, ProtocolError
from execnet._ends import admission
from execnet.gateway_base import Message, dumps_internal

EXEC = dumps_internal(("1/0", None, None, {}))
REFUSED = {
    "STATUS": (0, 2, b"", "may not send STATUS"),
    "TERMINATE": (2, 0, b"", "may not send GATEWAY_TERMINATE"),
    "EXEC": (3, 2, EXEC, "may not send CHANNEL_EXEC"),
    "a second HELLO": (8, 0, dumps_internal({}), "a second HELLO"),
    "SOURCE": (10, 0, b"1/0", "may not send SOURCE"),
    "SOURCES": (20, 1, b"p", "may not send SOURCES"),
    "an IMPORT, where nothing is forwarded": (19, 1, b"", "none is forwarded"),
    "asks for stacks": (11, 2, b"", "STACKS for channel 2"),
    "asks for stacks of all": (11, 0, b"", "may not ask for stacks"),
    "a PING that starts a thread": (12, 0, dumps_internal((0.1, 1)), "PING of"),
    "a WINDOW for all": (13, 0, dumps_internal(1), "WINDOW without a channel"),
    "RECONFIGURE for all": (1, 0, dumps_internal((True, True)), "RECONFIGURE without"),
    "of a channel that never was": (13, 99999, dumps_internal(1), "never was a channel 99999"),
    "a large one": (14, 1, bytes(2000), "CREDIT of 2000 bytes"),
    "an item without a channel": (4 + 5, 0, bytes(10), "PART without a channel"),
}


def send_raw(gateway: Gateway, data: bytes) -> None:
    """Have a worker put bytes on its stream."""
    channel = gateway.remote_exec(
        "channel.gateway._io.write(channel.receive())\nchannel.send(1)\nchannel.receive()"
    )
    channel.send(data)
    channel.receive(BOUND_S)


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_may_not_send_ends_its_gateway_and_no_other(group: Group, name: str) -> None:
    *parts, words = REFUSED[name]
    bad, good = group.makegateways(["popen"] * 2)
    before = threading.active_count()
    assert_ends(bad, frame(*parts), words)
    wait_until(lambda: threading.active_count() <= before)
    assert ask(good, "channel.send(1)") == 1


def test_a_frame_is_refused_before_its_bytes_are_there(group: Group) -> None:
    gateway = group.makegateway()
    header = struct.pack("!bii", 6, 1, 1_000_000_000)
    assert_ends(gateway, header, "CHANNEL_CLOSE_ERROR of 1000000000 bytes")


@pytest.mark.parametrize("code", [Message.RECONFIGURE, Message.WINDOW, Message.CREDIT])
def test_what_is_late_is_dropped(gateway: Gateway, code: int) -> None:
    """As an honest worker sends it, after a channel was closed here."""
    channel, closed = gateway.newchannel(), gateway.newchannel()
    closed.close()
    data = dumps_internal((False, False) if code == Message.RECONFIGURE else 1)
    send_raw(gateway, frame(code, closed.id, data) * 2000)
    brought = ask(gateway, "inner = channel.gateway.newchannel(); channel.send(inner)")
    brought.close()
    send_raw(gateway, frame(code, brought.id, data) * 2000)
    assert ask(gateway, "channel.send(1)") == 1
    assert not channel.isclosed()


def test_what_is_early_is_kept_for_the_channel_that_it_is_about(gateway: Gateway) -> None:
    channel = gateway.remote_exec(
        """
        inner = channel.gateway.newchannel()
        inner.reconfigure(py2str_as_py3str=False, py3str_as_py2str=True)
        inner.set_window(1000)
        channel.send(inner)
        channel.receive()
        """
    )
    inner = channel.receive(BOUND_S)
    assert inner._strconfig == (False, True)
    assert gateway._channelfactory.windows.of(inner.id) == 1000
    channel.send(1)


def test_channels_that_never_come_can_not_be_configured_for_ever(gateway: Gateway) -> None:
    data = b"".join(frame(13, 2 * n + 1000, dumps_internal(5)) for n in range(1001))
    assert_ends(gateway, data, "1000 channels were configured and never came")


class Factory:
    """Channels that a worker's ``Admission`` looks at."""

    def __init__(self) -> None:
        self.count = 3
        self._channels = {1: "a channel"}
        self._callbacks: dict[int, object] = {}
        self.arrived: deque[int] = deque()


def admission_of(factory: Factory) -> admission.Admission:
    handshake = SimpleNamespace(answered=threading.Event())
    return admission.Admission(SimpleNamespace(factory=factory, handshake=handshake))


@pytest.mark.parametrize("code", [Message.RECONFIGURE, Message.WINDOW, Message.CREDIT])
@pytest.mark.parametrize(("ids", "each", "most"), [(1, 101, 100), (1000, 11, 10_000)])
def test_a_channel_that_never_comes_can_not_be_configured_for_ever(
    code: int, ids: int, each: int, most: int
) -> None:
    check = admission_of(Factory())
    frames = [2 * (n + 1) for n in range(ids) for _ in range(each)]
    assert all(check(code, channel_id, 9) for channel_id in frames[:most])
    with pytest.raises(ProtocolError, match=f"configured {most} times"):
        check(code, frames[most], 9)


def test_channels_that_came_count_no_more() -> None:
    factory = Factory()
    check = admission_of(factory)
    for n in range(20_000):
        assert check(Message.RECONFIGURE, 2 * n + 2, 9)
        factory.arrived.append(2 * n + 2)
        if len(factory.arrived) > 900:
            factory.arrived.popleft()


def test_what_floods_a_channel_that_never_comes_ends_its_gateway(gateway: Gateway) -> None:
    frames = frame(1, 1000, dumps_internal((True, True))) * 101
    assert_ends(gateway, frames, "configured 100 times")


LIMITS = [
    (Message.CHANNEL_CLOSE_ERROR, 1, 1 << 24),
    (Message.STACKS, 0, 1 << 24),
    (Message.HELLO, 0, 1 << 16),
    (Message.GOODBYE, 0, 1 << 16),
]


@pytest.mark.parametrize(("code", "channel_id", "most"), LIMITS)
def test_what_is_no_item_is_taken_up_to_its_limit(code: int, channel_id: int, most: int) -> None:
    check = admission_of(Factory())
    assert check(code, channel_id, most)
    with pytest.raises(ProtocolError, match=f"of {most + 1} bytes"):
        check(code, channel_id, most + 1)
