"""``resume=`` with ``share=yes``: a lost login is made anew once, and all go on over that."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cut_links import CutLink, assert_gone, clean, exchange, program_with, supervisor_of
from interpreters import far_sides
from tools import BOUND_S, some_of, wait_until

from execnet import Gateway, Group, WorkerDied
from execnet._resume import records

ECHO = "for item in channel: channel.send(item)"
BOOT_BYTES = 120_000  # so many pass before two workers can be found again


@pytest.fixture
def link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CutLink:
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return CutLink(tmp_path)


@pytest.fixture
def states(group: Group) -> Iterator[list[str]]:
    told: list[str] = []
    group.on_state(lambda gateway, state: told.append(f"{gateway.id} {state}"))
    yield told
    group.terminate(5.0)


def spec(seconds: float = BOUND_S, more: str = "", python: str = sys.executable) -> str:
    return f"ssh=host//share=yes//python={python}//resume={seconds:g}{more}"


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


def connection_of(group: Group) -> Gateway:
    (connection,) = group._connections.gateways()
    return connection


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("python", [one.path for one in far_sides()], ids=map(str, far_sides()))
def test_all_that_is_sent_comes_once_and_in_order_over_a_link_that_is_cut_at_random_bytes(
    group: Group, link: CutLink, python: str
) -> None:
    draw = random.Random(f"cuts {python}")
    count = some_of(10)
    link.set_cuts([BOOT_BYTES + 200_000, *(draw.randrange(60_000, 400_000) for _ in range(count))])
    gateways = group.makegateways([spec(python=python)] * 2)
    sizes = [draw.choice((3, 300, 30_000)) for _ in range(40 * count)]
    exchange(gateways[0], sizes)
    exchange(gateways[1], sizes[:10])
    assert link.runs() > count // 2


def test_a_lost_login_is_made_anew_once_and_all_go_on(
    group: Group, link: CutLink, states: list[str]
) -> None:
    gateways = group.makegateways([spec()] * 4)
    pids = [pid_of(gateway) for gateway in gateways]
    channels = [gateway.remote_exec(ECHO) for gateway in gateways]
    for number in range(3):
        link.cut()
        for channel in channels:
            channel.send(number)
        assert [channel.receive(BOUND_S) for channel in channels] == [number] * 4
        wait_until(lambda number=number: len(states) == 8 * (number + 1))  # type: ignore[misc]
        assert link.runs() == number + 2
    assert [pid_of(gateway) for gateway in gateways] == pids
    group.terminate(BOUND_S)
    assert_gone(*pids)
    assert list(records.left()) == []


@pytest.mark.usefixtures("link", "states")
def test_a_worker_survives_that_of_the_login(group: Group) -> None:
    gateway = group.makegateway(spec())
    first = connection_of(group)
    channel = gateway.remote_exec(ECHO)
    os.kill(pid_of(first), signal.SIGKILL)
    channel.send(1)
    assert channel.receive(BOUND_S) == 1
    assert connection_of(group) is not first


@pytest.mark.usefixtures("states")
def test_errors_come_only_when_the_time_is_over_and_then_nothing_is_left(
    group: Group, link: CutLink
) -> None:
    gateways = group.makegateways([spec(1, "//grace=0.2")] * 2)
    pids = [pid_of(gateway) for gateway in gateways]
    supervisors = [supervisor_of(pid) for pid in pids]
    channels = [gateway.remote_exec("channel.receive()") for gateway in gateways]
    link.go_down()
    for channel in channels:
        with pytest.raises(WorkerDied, match=r"was given up: it was out of reach for 1 s; "):
            channel.receive(BOUND_S)
    assert_gone(*pids, *supervisors)
    wait_until(lambda: not [one for one in group._connections.gateways() if one.hasreceiver()])


@pytest.mark.parametrize("victim", ["worker", "supervisor"])
@pytest.mark.usefixtures("link", "states")
def test_who_waits_is_told_of_a_death(group: Group, victim: str) -> None:
    gateway = group.makegateway(spec(more="//grace=0.2"))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    channel = gateway.remote_exec("channel.receive()")
    os.kill(pid if victim == "worker" else supervisor, signal.SIGKILL)
    how = "SIGKILL" if victim == "worker" else "its supervisor ended"
    with pytest.raises(WorkerDied, match=how):
        channel.receive(BOUND_S)
    assert_gone(pid, supervisor)


def test_terminate_without_a_network_returns_and_warns(
    group: Group, link: CutLink, states: list[str]
) -> None:
    gateway = group.makegateway(spec(1, "//grace=0.2"))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    link.go_down()
    wait_until(lambda: states == [f"{gateway.id} lost"])
    with pytest.warns(ResourceWarning, match="could not be reached to be killed"):
        group.terminate(0.1)
    assert_gone(pid, supervisor)


@pytest.mark.usefixtures("link")
def test_execnet_clean_ends_a_worker_whose_program_was_killed() -> None:
    with program_with(spec(600)) as (program, pid):
        supervisor = supervisor_of(pid)
        program.kill()
    clean()
    assert list(records.left()) == []
    assert_gone(pid, supervisor)
