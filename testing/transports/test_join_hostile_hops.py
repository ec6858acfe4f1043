"""Workers that lead to others, or say so, and mean harm: to the coordinator, and to joiners."""

from __future__ import annotations

import gc
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable

import pytest
from processes import stop
from test_join import KEY, Speaker, Start, command, start  # noqa: F401 - fixtures
from tools import BOUND_S, wait_until
from workers import ask

from execnet import Gateway, Group
from execnet._join import hops
from execnet._join.facts import Facts

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the command is for a Unix shell")

HERE = json.dumps({"host": socket.gethostname(), "address": "127.0.0.1"}).encode() + b"\n"
# From now on the worker does something else where it is told to wait for a joiner.
HOSTILE = """
import sys
base = sys.modules[channel.__class__.__module__]
load_part, kept = base.load_part, []
code = compile(channel.receive(), "hostile", "exec")

class Hostile(object):
    @staticmethod
    def main(channel):
        data, news, request = channel.receive()
        kept.append((channel, data, news))
        exec(code, {"channel": channel, "data": data, "news": news, "request": request})

def load(*sent):
    part = load_part(*sent)
    return Hostile if sent[0] == "_via.far_dialled" else part

base.load_part = load
channel.send(None)
channel.receive()
"""
Hop = Callable[[str], Gateway]


@pytest.fixture
def hop(group: Group, pem: str, start: Start) -> Hop:  # noqa: F811
    """A function that has ``group`` listen, and adds a hop that does what code says."""

    def hop(code: str) -> Gateway:
        group.listen("127.0.0.1:0", KEY, pem, fanout=1)
        start(command(group))
        (gateway,) = group.wait_for(1, BOUND_S)
        channel = gateway.remote_exec(HOSTILE)
        channel.send(code)
        channel.receive(BOUND_S)
        return gateway

    return hop


def joins(group: Group, start: Start) -> Gateway:  # noqa: F811
    """Start a joiner; return its gateway."""
    before = set(group)
    start(command(group))
    wait_until(lambda: len(set(group) - before) == 1, BOUND_S)
    (gateway,) = set(group) - before
    assert ask(gateway, "channel.send(channel.receive())", 5) == 5
    return gateway


@pytest.mark.parametrize(
    "code",
    [
        r'news.send((None, b"", b"\x1b[31mred\r\nERROR:root:more" + b"x" * 1000))',
        r'raise ValueError("\x1b[31mred\r\nERROR:root:more" + "x" * 1000)',
    ],
    ids=["reason", "error"],
)
def test_what_it_says_is_one_line_that_no_terminal_obeys(
    group: Group,
    hop: Hop,
    start: Start,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
    code: str,
) -> None:
    caplog.set_level(logging.INFO, "execnet")
    gateway = hop(code)
    assert joins(group, start).spec.via is None
    (text,) = [one for one in caplog.messages if "a joiner is not reached" in one]
    assert text.startswith(f"a joiner is not reached via {gateway.id}: ")
    assert r"\x1b[31mred" in text
    assert text.isprintable()
    assert len(text) < 300


def test_one_that_never_answers_leaves_nothing_here(
    group: Group,
    hop: Hop,
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hops, "READY_S", 0.3)
    monkeypatch.setattr(hops, "REST_S", 0.0)
    gateway = hop("channel.setcallback(id); __import__('threading').Event().wait()")
    factory = gateway._channelfactory
    for _ in range(2):
        with Speaker(str(group._get_joins().ticket)) as speaker:
            assert speaker.say(HERE) == "go on\n"
            wait_until(lambda: not factory._channels, BOUND_S)
    wait_until(lambda: group._get_joins()._starting == 0, BOUND_S)
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, hops.HopIO)] == []


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="it has to be stopped")
def test_one_that_reads_nothing_holds_no_joiner_up(
    group: Group,
    pem: str,
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As with heartbeats, which it may send whether it reads or not.
    group.listen("127.0.0.1:0", KEY, pem, fanout=1, options="heartbeat=0")
    start(command(group))
    (gateway,) = group.wait_for(1, BOUND_S)
    channel = gateway.remote_exec("channel.send(len(channel.receive()))")
    pid = ask(gateway, "import os; channel.send(os.getpid())")
    sender = threading.Thread(target=channel.send, args=(bytes(64 << 20),))
    stop(pid)
    try:
        sender.start()
        wait_until(lambda: gateway._writer._frames, BOUND_S)
        with monkeypatch.context() as patch:
            patch.setattr(hops, "READY_S", 0.3)
            assert joins(group, start).spec.via is None
        assert joins(group, start).spec.via == "gw1"
        (node,) = [one for one in group._get_joins()._hops._nodes if one.gateway is gateway]
        assert (node.rests_until, node.children) == (math.inf, 0)
    finally:
        os.kill(pid, signal.SIGCONT)
    sender.join(BOUND_S)
    assert channel.receive(BOUND_S) == 64 << 20
    wait_until(lambda: node.rests_until < math.inf, BOUND_S)
    node.rests_until = 0.0
    assert joins(group, start).spec.via == gateway.id


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "::ffff:0.0.0.0", "224.0.0.1", "fe80::1%lo"])
def test_what_means_another_machine_to_each_is_no_address_of_a_hop(address: str) -> None:
    said = json.dumps({"address": address}).encode()
    assert Facts("id", said).address is None


def test_where_no_thread_can_be_started_a_joiner_is_reached_from_here(
    group: Group,
    pem: str,
    start: Start,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = threading.Thread.start

    def fails(thread: threading.Thread) -> None:
        if thread.name == "execnet-join-hop":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", fails)
    group.listen("127.0.0.1:0", KEY, pem, fanout=1)
    assert [joins(group, start).spec.via for _ in range(2)] == [None, None]
