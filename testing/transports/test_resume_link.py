"""``resume=``: what is kept and acknowledged, and when another connection is tried."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cut_links import CutLink
from tools import BOUND_S, wait_until

from execnet import Gateway, Group
from execnet._resume import far_link
from execnet.gateway_base import get_execmodel

SIZES = 100, 300_000  # of which the second is not copied for other streams


@pytest.fixture
def gateway(link: CutLink) -> Iterator[Gateway]:
    """A gateway that goes over that."""
    with Group() as group:
        yield group.makegateway(f"ssh=host//python={sys.executable}//resume=3600")


def io_of(gateway: Gateway) -> Any:
    return gateway._io


class Attempts:
    """Stands for the flag that ends a pause; no pause lasts, and the last one brings a network."""

    def __init__(self, link: CutLink, count: int) -> None:
        self.pauses: list[float] = []
        self._link, self._count = link, count

    def wait(self, seconds: float) -> None:
        self.pauses.append(seconds)
        if len(self.pauses) == self._count:
            self._link.go_up()

    def set(self) -> None:
        """No pause lasts."""


def test_attempts_are_a_tenth_of_a_second_to_half_a_minute_apart_and_differ(
    gateway: Gateway, link: CutLink
) -> None:
    count = 13
    attempts = io_of(gateway)._pause = Attempts(link, count)
    channel = gateway.remote_exec("channel.send(channel.receive())")
    link.go_down()
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    pauses = attempts.pauses
    assert len(pauses) == len(set(pauses)) == count  # also where they are as long as may be
    assert all(0.1 <= seconds <= 30 for seconds in pauses)
    assert pauses[0] <= 0.2
    assert min(pauses[9:]) >= 15


def test_what_is_read_is_acknowledged_after_64_KiB_or_200_ms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr(far_link, "clock", lambda: now_s)
    here, there = socket.socketpair()
    with here, there:
        fds = [os.dup(here.fileno()) for _ in range(2)]
        connection = far_link.Connection(*fds, 0)
        link = far_link.Link(get_execmodel("thread"), connection)
        there.send(b"x" * 100)
        link.read_some(1000)
        assert link._acknowledge() == pytest.approx(0.2)
        now_s += 0.15
        assert link._acknowledge() == pytest.approx(0.05)
        assert not link._ahead
        now_s += 0.06
        assert link._acknowledge() is None
        assert list(link._ahead) == [far_link.ack_frame(100)]
        there.send(b"x" * (64 << 10))
        count = 100
        while count < 100 + (64 << 10):
            count += len(link.read_some(1 << 20))
        assert link._acknowledge() is None
        assert link._ahead[-1] == far_link.ack_frame(count)
        connection.close()
        link.close_read()
        link.bell.close()


def test_a_worker_acknowledges_a_small_item_when_nothing_else_is_sent(gateway: Gateway) -> None:
    io = io_of(gateway)
    channel = gateway.remote_exec("channel.receive(); channel.receive()")
    sent = io._after + 10_000
    channel.send("x" * 10_000)
    wait_until(lambda: io._after >= sent)
    wait_until(lambda: io._acked >= sent, timeout_s=15)


@pytest.mark.parametrize("size", SIZES)
def test_bytes_that_are_changed_after_they_were_sent_without_a_network_arrive_as_they_were(
    size: int, gateway: Gateway, link: CutLink
) -> None:
    channel = gateway.remote_exec("for item in channel: channel.send(item.count(b'a'))")
    link.go_down()
    wait_until(lambda: io_of(gateway).connection is None)
    data = bytearray(b"a") * size
    channel.send_bytes(data)
    data[:] = b"b" * size
    link.go_up()
    assert channel.receive(BOUND_S) == size


@pytest.mark.parametrize("size", SIZES)
def test_bytes_that_a_worker_changes_after_it_sent_them_arrive_as_they_were(
    size: int, gateway: Gateway, link: CutLink
) -> None:
    channel = gateway.remote_exec(
        "import os\n"
        "size, go, changed = channel.receive()\n"
        "while os.path.exists(go): pass\n"
        "data = bytearray(b'a') * size\n"
        "channel.send_bytes(data)\n"
        "data[:] = b'b' * size\n"
        "os.unlink(changed)\n"
    )
    go, changed = link.flag("go"), link.flag("changed")
    channel.send((size, str(go), str(changed)))
    assert gateway.remote_status(BOUND_S).numexecuting == 1
    link.go_down()
    go.unlink()
    wait_until(lambda: not changed.exists())
    link.go_up()
    assert channel.receive(BOUND_S) == b"a" * size
