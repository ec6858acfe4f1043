"""Gateways whose bytes travel over a channel: ``gatewaymaker`` there, ``ChannelGateway`` here."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from interpreters import far_sides
from processes import is_running
from tools import BOUND_S, MakeGateway, wait_until

import execnet
from execnet import ChannelGateway, Gateway, Group, service

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no services there")

PARENT = "import os; channel.send((os.getppid(), os.getpid()))"
CALLED_BY_CODE = """
from execnet.service import gatewaymaker
channel.send("first")
gatewaymaker(channel)
"""
ECHO = "while 1: channel.send(channel.receive())"


def pid_of(gateway: Gateway) -> int:
    pid: int = gateway._rinfo().pid
    return pid


@pytest.mark.parametrize(
    "spec",
    [
        "popen",
        "socketservice",
        *(f"popen//python={shlex.quote(python.path)}" for python in far_sides()),
    ],
)
def test_the_other_end_makes_the_interpreter(home: Path, group: Group, spec: str) -> None:
    outer = group.makegateway(spec)
    inner = ChannelGateway(outer.remote_exec(service.gatewaymaker), "popen//id=inner", group)
    assert inner.remote_exec(PARENT).receive(BOUND_S)[0] == pid_of(outer)
    assert inner.id == "inner"
    assert inner in group
    item = os.urandom(3 << 19).hex()
    echo = inner.remote_exec(ECHO)
    echo.send(item)
    assert echo.receive(BOUND_S) == item
    inner.exit()
    inner.join(BOUND_S)
    assert outer.remote_exec(PARENT).receive(BOUND_S)[1] == pid_of(outer)


def test_code_may_call_it_and_go_on_or_end(gateway: Gateway, group: Group) -> None:
    channel = gateway.remote_exec(CALLED_BY_CODE)
    assert channel.receive(BOUND_S) == "first"
    inner = ChannelGateway(channel, group=group)
    channel.waitclose(BOUND_S)
    assert inner.remote_exec(PARENT).receive(BOUND_S)[0] == pid_of(gateway)


def test_they_can_be_nested_and_end_together(gateway: Gateway, group: Group) -> None:
    gateways = [gateway]
    for _ in range(3):
        channel = gateways[-1].remote_exec(service.gatewaymaker)
        gateways.append(ChannelGateway(channel, group=group))
    pids = [pid_of(one) for one in gateways]
    assert len(set(pids)) == 4
    group.terminate(timeout=BOUND_S)
    wait_until(lambda: not any(map(is_running, pids)))


def test_one_that_is_killed_is_worker_died(gateway: Gateway, group: Group) -> None:
    inner = ChannelGateway(gateway.remote_exec(service.gatewaymaker), group=group)
    channel = inner.remote_exec("channel.receive()")
    os.kill(pid_of(inner), signal.SIGKILL)
    with pytest.raises(execnet.WorkerDied, match="SIGKILL"):
        channel.receive(BOUND_S)


def test_it_ends_with_the_connection_to_the_service_that_made_it(
    home: Path, makegateway: MakeGateway
) -> None:
    outer = makegateway("socketservice")
    with Group() as group:
        inner = ChannelGateway(outer.remote_exec(service.gatewaymaker), group=group)
        pid = pid_of(inner)
        outer._io.kill()
        wait_until(lambda: not is_running(pid))
    assert service.find().status()["running"] == []


@pytest.mark.parametrize(
    ("source", "spec", "kind", "said"),
    [
        ("raise ValueError('not today')", "popen", execnet.BootstrapError, "not today"),
        (service.gatewaymaker, "popen//python=nosuch", execnet.BootstrapError, "nosuch"),
        (service.gatewaymaker, "popen//via=other", ValueError, "gateway of the channel"),
        (service.gatewaymaker, "nonsense", ValueError, "no gateway type"),
    ],
)
def test_what_goes_wrong_is_told_and_leaves_nothing(
    gateway: Gateway,
    group: Group,
    source: str | Callable[..., object],
    spec: str,
    kind: type[Exception],
    said: str,
) -> None:
    channel = gateway.remote_exec(source)  # type: ignore[arg-type]
    with pytest.raises(kind, match=said):
        ChannelGateway(channel, spec, group)
    assert list(group) == [gateway]
    channel.close()


def test_a_workers_own_end_is_no_place_to_ask_from(gateway: Gateway) -> None:
    code = (
        "import execnet\n"
        "try: execnet.ChannelGateway(channel)\n"
        "except TypeError as exc: channel.send(str(exc))"
    )
    assert "one to a worker" in gateway.remote_exec(code).receive(BOUND_S)
