"""``resume=``: the end of a worker that can't be reached, or only by a login."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from cut_links import CutLink, assert_gone, supervisor_of
from interpreters import Interpreter, far_sides
from processes import stop
from tools import BOUND_S, wait_until

from execnet import Gateway, Group
from execnet._ends import terminate
from execnet._ends.failure import tcp_states
from execnet._resume import logins, near, records
from execnet._resume.logins import Login, Unreachable
from execnet.gateway_base import get_execmodel
from execnet.gateway_io import Popen2IOMaster


@pytest.fixture
def group(link: CutLink) -> Iterator[Group]:
    """A group whose gateways go over that."""
    with Group() as group:
        yield group


def spec_of(seconds: float, python: str = sys.executable, more: str = "") -> str:
    return f"ssh=host//python={python}//resume={seconds:g}{more}"


def pid_of(gateway: Gateway) -> int:
    return int(gateway._rinfo().pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_tcp_connection_of_a_proxy_command_counts_as_that_of_its_ssh() -> None:
    code = "import socket; socket.create_connection(('127.0.0.1', {})).recv(1)"
    with socket.create_server(("127.0.0.1", 0)) as server:
        dial = [sys.executable, "-c", code.format(server.getsockname()[1])]
        ssh = [sys.executable, "-c", f"import subprocess; subprocess.call({dial})"]
        with subprocess.Popen(ssh) as process:
            with server.accept()[0]:
                assert wait_until(lambda: "ESTABLISHED" in tcp_states(process.pid))
            process.wait(BOUND_S)
            assert tcp_states(process.pid) == set()


def makes(gateway: Gateway) -> Callable[[float], Any]:
    """Return what makes another connection to a gateway's worker."""
    return lambda deadline: gateway._io._maker.anew(deadline, bool)  # type: ignore[attr-defined]


def test_a_kill_without_a_network_returns_and_warns(group: Group, link: CutLink) -> None:
    gateway = group.makegateway(spec_of(1, more="//grace=0.2"))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    link.go_down()
    with pytest.warns(ResourceWarning, match=r"could not be reached to be killed .*out of reach"):
        group.terminate(0.1)
    ((path, told),) = records.left()
    assert_gone(pid, supervisor)
    link.go_up()
    ended = records.end(path, told, lambda *place: makes(gateway))
    assert ended == "has ended before: neither it nor its supervisor is there any more"
    assert list(records.left()) == []


@pytest.mark.parametrize(
    "lose", [CutLink.go_down, CutLink.stop], ids=["lost", "silent, and nobody has noticed"]
)
def test_terminate_logs_in_within_its_time_where_a_worker_is_out_of_reach(
    group: Group, link: CutLink, monkeypatch: pytest.MonkeyPatch, lose: Callable[[CutLink], None]
) -> None:
    lefts_s = []

    class Noting(Login):
        def kill(self, keep: Callable[[object], object]) -> int | None:
            lefts_s.append(self._deadline - time.monotonic())
            raise Unreachable("there is no network")

    gateway = group.makegateway(spec_of(BOUND_S))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    lose(link)
    monkeypatch.setattr(near, "Login", Noting)
    with pytest.warns(ResourceWarning, match="could not be reached to be killed"):
        group.terminate(4.0)  # of which half is at least ``SILENT_S``, also on a busy machine
    assert [left_s < 4.0 for left_s in lefts_s] == [True]
    if lose is CutLink.go_down:
        link.go_up()
    ((path, told),) = records.left()
    records.end(path, told, lambda *place: makes(gateway))
    assert_gone(pid, supervisor)


@pytest.mark.parametrize("looks", [[True], [False], [True, False]], ids=str)
def test_the_login_of_a_kill_gets_little_time_while_its_host_does_not_answer(
    group: Group, link: CutLink, monkeypatch: pytest.MonkeyPatch, looks: list[bool]
) -> None:
    is_reached, seen = looks[-1], iter(looks)
    gateway = group.makegateway(spec_of(600, more="//grace=0.2"))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    stop(pid)
    link.stop()
    monkeypatch.setattr(terminate, "REACH_S", 0.0)
    monkeypatch.setattr(terminate, "LEAST_S", 0.0)  # a login may take no longer
    monkeypatch.setattr(logins, "LOOK_MS", 1)
    monkeypatch.setattr(Popen2IOMaster, "is_reached", lambda io: next(seen, looks[-1]))
    why = "did not end in time" if is_reached else "to be killed .the host does not answer"
    with pytest.warns(ResourceWarning, match=why):
        group.terminate(0.1)
    if not is_reached:
        ((path, told),) = records.left()
        records.end(path, told, lambda *place: makes(gateway))
    assert_gone(pid, supervisor)


def test_it_gets_more_where_the_worker_shows_that_there_is_a_network(
    group: Group, link: CutLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = group.makegateway(spec_of(600, more="//grace=600"))
    pid = pid_of(gateway)
    supervisor = supervisor_of(pid)
    channel = gateway.remote_exec(
        """
        import time
        try:
            channel.send(1)
            while True: time.sleep(1)
        finally:
            while True: time.sleep(1)
        """
    )
    assert channel.receive(BOUND_S) == 1
    monkeypatch.setattr(terminate, "REACH_S", 0.0)
    monkeypatch.setattr(terminate, "LEAST_S", 0.0)
    monkeypatch.setattr(Popen2IOMaster, "is_reached", lambda io: False)
    login = near.Login

    def after_an_answer(*args: Any) -> Login:
        wait_until(args[-1])
        return login(*args)

    monkeypatch.setattr(near, "Login", after_an_answer)
    with pytest.warns(ResourceWarning, match="did not end in time"):
        group.terminate(0.1)
    assert_gone(pid, supervisor)


@pytest.mark.parametrize(
    ("now", "read_at", "reach_by"),
    [
        (10.5, 9.0, 10.5 + terminate.REACH_S),
        (11.0, 9.0, 10.5 + terminate.REACH_S),
        (12.0, 9.0, 12.0 + terminate.LEAST_S),
        (11.0, 10.2, 11.0 + terminate.REACH_S),
        (10.2, 9.0, 10.2 + terminate.REACH_S),  # interrupted
    ],
)
def test_a_lost_network_takes_no_longer_however_many_need_it(
    monkeypatch: pytest.MonkeyPatch, now: float, read_at: float, reach_by: float
) -> None:
    io = SimpleNamespace(kills_by_login=True, kill_by=None, read_at=read_at, kill=int, wait=int)
    gateway: Any = SimpleNamespace(
        _io=io, settings=SimpleNamespace(kills_group=False), await_receiver=int
    )
    monkeypatch.setattr(terminate, "monotonic", lambda: now)
    terminate._kill_and_reap(get_execmodel("thread"), [gateway], [], began=10.0, deadline=10.5)
    assert vars(io)["reach_by"] == reach_by


@pytest.mark.parametrize("python", [far_sides()[0], far_sides()[-1]], ids=str)
def test_a_worker_that_can_not_notice_that_it_is_lost_is_ended_in_time(
    link: CutLink, monkeypatch: pytest.MonkeyPatch, python: Interpreter
) -> None:
    monkeypatch.setattr(near, "MARGIN_S", 0.1)  # after its time
    group = Group([spec_of(1, python.path, "//grace=0.2")])
    pid = pid_of(group[0])
    supervisor = supervisor_of(pid)
    stop(pid)
    link.go_down()
    assert_gone(pid, supervisor)
    group.terminate(timeout=5)
